"""Passages and their vectors in a Chroma database: made whole, found again, and one program's at a time.

Chroma opens an index that is damaged without a word and then misses what it has lost, or it brings the whole program
down; and two programs that have one folder open ruin it. So every folder is sealed when it is whole, and Chroma comes
near it only when the seal holds and nobody else has it open.
"""
import json
import shutil
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from typing import NamedTuple, TextIO

import chromadb
import numpy as np
from chromadb.config import Settings

from helpers.machine.commands import CourseError
from helpers.machine.files import locked, replaced, replaced_folder, sha256
from helpers.machine.process import shown
from helpers.retrieve.embeddings import Embedding
from helpers.retrieve.passages import Passage

COLLECTION = {
    "name": "passages",
    "embedding_function": None,  # vectors are our own; Chroma's own function would download a model
    "configuration": {"hnsw": {"space": "cosine"}},  # the default is another distance, and cannot be changed later
}
BATCH_SIZE = 1000  # Chroma takes at most 5,461 at once
SEAL, SQLITE, INDEX_WRITTEN = "sealed.json", "chroma.sqlite3", "index_metadata.pickle"
PROBE = "床前明月光，疑是地上霜。"  # whoever gives this another vector is another embedding
ALIKE = 0.999
ANEW = "修复：build(…, anew=True) 从文档重新建一个；文字都在文档里，什么也不会丢。"


class Found(NamedTuple):
    """A passage that was found, and how like the question it is: 1 is the same, 0 has nothing in common."""

    passage: Passage
    similarity: float


class Changes(NamedTuple):
    """What became of a database's passages."""

    added: int
    removed: int
    kept: int

    def __str__(self) -> str:
        return f"新增 {self.added} 段，删除 {self.removed} 段，没有变的 {self.kept} 段"


class Database:
    """A collection of Chroma's with the embedding that it was made with; open until it is closed."""

    def __init__(self, client: chromadb.ClientAPI, embedding: Embedding):
        self.collection = client.get_or_create_collection(**COLLECTION)
        self.embedding = embedding
        self.opened = ExitStack()  # what ends when it is closed

    def __len__(self) -> int:
        return self.collection.count()

    def update(self, passages: Iterable[Passage]) -> Changes:
        """Makes it hold exactly these passages; only those that it does not hold yet are embedded."""
        wanted = {passage.key: passage for passage in passages}
        present = set(self.collection.get(include=[])["ids"])
        new, gone = [key for key in wanted if key not in present], list(present - wanted.keys())
        for keys in _batches(new):
            chosen = [wanted[key] for key in keys]
            texts = [passage.text for passage in chosen]
            self.collection.upsert(keys, embeddings=self.embedding.passages(texts), documents=texts,
                                   metadatas=[passage.place for passage in chosen])
        for keys in _batches(gone):
            self.collection.delete(keys)
        return Changes(len(new), len(gone), len(present) - len(gone))

    def search(self, questions: Sequence[str], count: int = 3, where: dict | None = None) -> list[list[Found]]:
        """For each question the passages most like it, the best first; `where` is Chroma's filter of their places."""
        rows = self.collection.query(query_embeddings=self.embedding.questions(questions), n_results=count, where=where)
        return [[Found(Passage(text, **place), 1 - distance) for text, place, distance in zip(*row)]
                for row in zip(rows["documents"], rows["metadatas"], rows["distances"])]

    def close(self) -> None:
        """Lets others open it."""
        self.opened.close()


_open: dict[Path, Database] = {}  # by this very program, which may open a folder again


def build(folder: str | Path, embedding: Embedding, passages: Iterable[Passage], anew: bool = False) -> Changes:
    """Makes the database in a folder hold exactly these passages; until it does, the former one stays as it is."""
    folder = Path(folder).resolve()
    with alone(folder), replaced_folder(folder) as new:
        if folder.exists():
            _check_ours(folder)
        if folder.exists() and not anew:
            check(folder, embedding)
            shutil.copytree(folder, new, dirs_exist_ok=True)
        with _client(new) as client:
            database = Database(client, embedding)
            changes = database.update(passages)
            count = len(database)
        _seal(new, embedding, count)
    return changes


def load(folder: str | Path, embedding: Embedding) -> Database:
    """The database in a folder, open; one that is damaged, or of another embedding, is not opened."""
    folder = Path(folder).resolve()
    with ExitStack() as opened:
        opened.enter_context(alone(folder))
        check(folder, embedding)
        database = Database(opened.enter_context(_client(folder)), embedding)
        opened.callback(_open.pop, folder)
        database.opened = opened.pop_all()
    _open[folder] = database
    return database


def alone(folder: Path) -> AbstractContextManager[TextIO]:
    """Holds a folder's database for this program; where this very program has it open, that ends."""
    if folder in _open:
        _open[folder].close()
    return locked(folder.with_name(f".{folder.name}.lock"),
                  f"数据库 {shown(folder)} 已经在另一个笔记本或终端里打开了，两个程序一起用会弄坏它。"
                  "修复：在那边把它 close()，或者用 helpers.retrieve.server 开一个服务，大家都去问它。")


def settings() -> Settings:
    """How Chroma is used: it tells nobody. Every client wants settings of its own, it writes its address into them."""
    return Settings(anonymized_telemetry=False)


def _client(folder):
    return chromadb.PersistentClient(folder, settings())


def _seal(folder, embedding, count):
    """Notes how a whole database looks: how many passages, what its index is, and what its embedding gives."""
    seal = {"count": count, "index": _index(folder), "probe": _probe(embedding)}
    with replaced(folder / SEAL) as file:
        json.dump(seal, file)


def seal_again(folder: Path) -> None:
    """Notes how a database looks now, after a server has ended that may have changed it."""
    seal = json.loads((folder / SEAL).read_text(encoding="utf-8"))
    with replaced(folder / SEAL) as file:
        json.dump(seal | {"count": _rows(folder / SQLITE), "index": _index(folder)}, file)


def _index(folder):
    """The files of an index, by name; before Chroma writes one, what lies there is made anew at every opening."""
    written = [path for mark in sorted(folder.glob(f"*/{INDEX_WRITTEN}")) for path in sorted(mark.parent.iterdir())]
    return {str(path.relative_to(folder)): sha256(path) for path in written}


def _probe(embedding):
    return embedding.questions([PROBE])[0].round(4).tolist()


def check(folder: Path, embedding: Embedding) -> None:
    """Raises CourseError unless the database in a folder is whole and was made with this embedding."""
    name = shown(folder)
    if not folder.exists():
        raise CourseError(f"没有数据库 {name}。修复：先用 build 建一个。")
    _check_ours(folder)
    try:
        seal = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        whole = _rows(folder / SQLITE) == seal["count"] and _index(folder) == seal["index"]
        probe = np.array(seal["probe"])
    except (OSError, ValueError, LookupError, sqlite3.Error):
        whole = False
    if not whole:
        raise CourseError(f"数据库 {name} 坏了：里面的文件和写完的时候不一样。{ANEW}")
    now = np.array(_probe(embedding))
    if now.shape != probe.shape or now @ probe < ALIKE:
        raise CourseError(f"数据库 {name} 里的向量是另一种方法或另一个模型算的，和现在的不能比。"
                          f"修复：换回原来的，或者 build(…, anew=True) 用现在的重新算。")


def _check_ours(folder):
    if not (folder / SEAL).is_file():
        raise CourseError(f"{shown(folder)} 不是 build 建的数据库（没有 {SEAL}），没有动它。修复：换一个文件夹。")


def _rows(database):
    """How many passages Chroma's SQLite file tells of; -1 where it is damaged."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        [sound] = connection.execute("PRAGMA quick_check(1)").fetchone()
        [count] = connection.execute("SELECT count(*) FROM embeddings").fetchone()
    return count if sound == "ok" else -1


def _batches(keys):
    return (keys[start:start + BATCH_SIZE] for start in range(0, len(keys), BATCH_SIZE))
