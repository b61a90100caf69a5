"""A hundred thousand passages in Chroma: how long they take to build, load and search, beside numpy's brute force.

python -m tests.bench_retrieve [PASSAGES]
"""
import random
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil

from helpers.ask import models
from helpers.knowledge.facts import read_relations
from helpers.knowledge.reading import Reading
from helpers.machine import profile
from helpers.retrieve import database, embeddings, server
from helpers.retrieve.passages import Passage

PASSAGES, QUESTIONS, NEAREST, PEOPLE = 100_000, 500, 10, 8
LEAST_RECALL = 0.95  # of the HNSW index, against comparing with every passage
SEED = 42


def invented(count):
    """So many passages about things that exist nowhere, and a question about each of the last ones."""
    rng, reading = random.Random(SEED), Reading(read_relations())
    passages, questions = {}, []
    while len(passages) < count:
        text, told, *_ = reading.passage(rng, 4, prose=0.5, written=0.3)
        passages[text] = Passage(text, "想象", "1", str(len(passages) % 100))
        questions.append(rng.choice(rng.choice(told).asks))
    return list(passages.values()), questions[-QUESTIONS:]


def timed(work, *arguments):
    """What work gives, and how many seconds it took."""
    started = time.perf_counter()
    return work(*arguments), time.perf_counter() - started


def nearest(collection, vector):
    """The texts that Chroma finds."""
    return collection.query(vector[None], n_results=NEAREST)["documents"][0]


def compared(vectors, vector):
    """The places of the vectors that are really nearest."""
    return np.argpartition(-(vectors @ vector), NEAREST)[:NEAREST]


def line(name, seconds):
    """The latencies of one way of searching."""
    *_, p95 = statistics.quantiles(seconds, n=20)
    print(f"  {name:<44} p50 {1000 * statistics.median(seconds):7.1f} ms   p95 {1000 * p95:7.1f} ms", flush=True)


def memory():
    """What this process holds, in MB."""
    return psutil.Process().memory_info().rss / 1e6


def size(folder):
    """What a folder holds, in MB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def bench(folder, count):
    """Prints the figures, and says whether the index finds nearly all that brute force finds."""
    passages, questions = invented(count)
    small = embeddings.of_model(*models.load(profile.TINY_BASE, num_hidden_layers=embeddings.LAYER + 1))
    vectors, seconds = timed(small.passages, [passage.text for passage in passages])
    print(f"{count} passages, {vectors.shape[1]} numbers each: embedded in {seconds:.0f} s")
    known = dict(zip((passage.text for passage in passages), vectors))
    embedding = small._replace(passages=lambda texts: np.stack([known[text] for text in texts]))
    held = memory()
    _, seconds = timed(database.build, folder, embedding, passages)
    print(f"  built without the embedding in {seconds:.0f} s, {size(folder):.0f} MB on the disk")
    changed = [replace(passage, edition="2") for passage in passages[:count // 100]] + passages[count // 100:]
    changes, seconds = timed(database.build, folder, embedding, changed)
    print(f"  {changes}: {seconds:.0f} s")
    opened, seconds = timed(database.load, folder, embedding)
    opened.search(questions[:1])
    print(f"  checked and loaded in {seconds:.1f} s, {memory() - held:.0f} MB of memory beside the vectors")
    asked = embedding.questions(questions)
    found, hnsw, brute = [], [], []
    for vector in asked:
        rows, seconds = timed(nearest, opened.collection, vector)
        hnsw.append(seconds)
        places, seconds = timed(compared, vectors, vector)
        brute.append(seconds)
        found.append(len({passages[place].text for place in places} & set(rows)) / NEAREST)
    line("Chroma", hnsw)
    line("numpy, every passage compared", brute)
    opened.close()
    with server.serve(folder, embedding) as url, ThreadPoolExecutor(PEOPLE) as threads:
        asking = server.connect(url, embedding).collection
        together = threads.map(lambda vector: timed(nearest, asking, vector), asked)
        line(f"Chroma's server, {PEOPLE} at the same time", [seconds for _, seconds in together])
    recall = statistics.mean(found)
    print(f"  of the {NEAREST} nearest the index finds {recall:.1%}   >= {LEAST_RECALL:.0%}")
    return recall >= LEAST_RECALL


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(not bench(Path(temporary) / "invented", int(sys.argv[1]) if sys.argv[1:] else PASSAGES))
