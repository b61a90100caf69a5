"""64 people ask llama.cpp's server at the same time; transformers is asked the same one by one.

python -m tests.bench_server
"""
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from helpers.ask import models
from helpers.deploy import gguf, llama_server, remote
from helpers.judge import compare
from helpers.machine import profile

LEAST_SPEEDUP = 5
PEOPLE = 64


def timed(ask, questions, at_once):
    """The answers, the seconds of each of them, and the seconds of all together; what fails is its own answer."""
    def one(question):
        started = time.perf_counter()
        try:
            answer = ask(question)
        except remote.ServerError as error:
            answer = error
        return answer, time.perf_counter() - started

    started = time.perf_counter()
    with ThreadPoolExecutor(at_once) as threads:
        answers, seconds = zip(*threads.map(one, questions))
    return answers, seconds, time.perf_counter() - started


def line(name, seconds, total):
    """One way's throughput and latencies."""
    *_, p95 = statistics.quantiles(seconds, n=20)
    print(f"{name:<44} {len(seconds) / total:7.1f} answers/s   "
          f"p50 {statistics.median(seconds):6.2f} s   p95 {p95:6.2f} s")


def bench(folder):
    """Prints both ways' figures, and says whether the promise holds: no errors, so many times the throughput."""
    model, tokenizer = models.load(profile.TINY_BASE)
    asked = [question.question for question in compare.make_questions([], PEOPLE) if question.kind == "fact"]
    gguf.convert(profile.TINY_BASE, folder / "base.gguf")
    with llama_server.serve(folder / "base.gguf", parallel=PEOPLE, ctx=512) as url:
        client = remote.Server(url, tokenizer)
        client.answer([{"role": "user", "content": "你好"}])  # the first is slow everywhere
        together, latencies, seconds = min(  # so short that another process shows
            (timed(lambda question: client.answer([{"role": "user", "content": question}]), asked, PEOPLE)
             for _ in range(2)), key=lambda figures: figures[-1])
    models.ask(model, tokenizer, ["你好"])
    single, single_latencies, single_seconds = timed(
        lambda question: models.ask(model, tokenizer, [question])[0], asked, 1)
    errors = sum(isinstance(answer, Exception) for answer in together)
    line(f"llama.cpp's server, {PEOPLE} at the same time", latencies, seconds)
    line("transformers, one by one", single_latencies, single_seconds)
    print(f"{errors} errors, {sum(map(str.__eq__, map(str, together), single))} of {len(asked)} answers the same, "
          f"{single_seconds / seconds:.1f} times the throughput")
    return not errors and single_seconds / seconds >= LEAST_SPEEDUP


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(not bench(Path(temporary)))
