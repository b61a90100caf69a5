"""Submissions that resemble each other more than chance allows: for the instructor to look at and to judge.

What many students have in common comes from the course, and does not count.
"""
import hashlib
import io
import keyword
import tokenize
from collections import Counter
from collections.abc import Iterable
from itertools import combinations, islice
from pathlib import Path
from typing import NamedTuple

from nbformat import NotebookNode

from helpers.data.split import question_key
from helpers.grading import rerun
from helpers.grading.kernel_host import MOST_CHARS
from helpers.grading.rerun import about
from helpers.homework.package import DATA, WEIGHTS, Manifest

ROWS, TEXT, ADAPTER = "训练数据", "笔记本的回答", "适配器"
SUSPICIOUS = {ROWS: 0.5, TEXT: 0.6}  # the share of the smaller one that the other has too
ENOUGH = 20  # with fewer rows or pieces of text, chance is enough
COMMON_SHARE, COMMON_LEAST = 0.1, 4  # who has so many fellows has it from the course
MOST_PIECES = 20_000  # of each of a submission's notebooks
WORDS, CHARS = 5, 8  # in a piece of code, and of prose


class Pair(NamedTuple):
    """Two students, what of theirs is alike, and how much of it."""

    first: str
    second: str
    what: str
    share: float


def traits(folder: Path, manifest: Manifest, notebooks: Iterable[NotebookNode]) -> dict[str, str | list[str]]:
    """What to know a submission by: its adapter's bytes, its rows and its answers, whatever names are used in them."""
    rows = [_row(sample, manifest) for sample in rerun.samples(folder / DATA)]
    pieces = []
    for notebook in notebooks:
        pieces += islice(_answered(notebook), MOST_PIECES)
    return {ADAPTER: manifest.files[WEIGHTS]["sha256"], ROWS: _digests(rows), TEXT: _digests(pieces)}


def pairs(submitted: dict[str, dict]) -> list[Pair]:
    """The pairs to look at, given {student: traits}; the most alike first."""
    suspicious = []
    for first, second in combinations(sorted(submitted), 2):
        if submitted[first][ADAPTER] == submitted[second][ADAPTER]:
            suspicious.append(Pair(first, second, ADAPTER, 1.0))
    for what, least in SUSPICIOUS.items():
        own = _without_common({student: set(of_student[what]) for student, of_student in submitted.items()})
        for first, second in combinations(sorted(own), 2):
            smaller = min(len(own[first]), len(own[second]))
            if smaller >= ENOUGH and (share := len(own[first] & own[second]) / smaller) >= least:
                suspicious.append(Pair(first, second, what, share))
    return sorted(suspicious, key=lambda pair: -pair.share)


def _without_common(digests):
    """The digests of each student without those that so many have that they must come from the course."""
    holders = Counter()
    for of_student in digests.values():
        holders.update(of_student)
    most = max(COMMON_LEAST, COMMON_SHARE * len(digests))
    return {student: {digest for digest in of_student if holders[digest] < most}
            for student, of_student in digests.items()}


def _digests(pieces):
    return sorted({hashlib.sha256(piece.encode(errors="replace")).hexdigest()[:16] for piece in pieces})


def _row(sample, manifest):
    """A row of training data without the names in it."""
    text = question_key(sample) + "\n" + "\n".join(turn["output"] for turn in sample["conversation"])
    for name, instead in ((manifest.assistant, "甲"), (manifest.owner, "乙")):
        text = text.replace(name, instead).replace(name.casefold(), instead)
    return text


def _answered(notebook):
    """The pieces of a notebook's answers, one after another."""
    for cell in notebook.cells:
        if about(cell).get("solution"):
            yield from _pieces(cell.source[:MOST_CHARS], cell.cell_type)


def _pieces(source, kind):
    return _code(source) if kind == "code" else _prose(source)


def _code(source):
    """The pieces of code when every name is replaced by the number of its first place."""
    numbers, words = {}, []
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
                words.append(str(numbers.setdefault(token.string, len(numbers))))
            elif token.type not in (tokenize.COMMENT, tokenize.NL) and token.string.strip():
                words.append(token.string)
    except (tokenize.TokenError, SyntaxError):
        return _prose(source)
    return [" ".join(words[start:start + WORDS]) for start in range(len(words) - WORDS + 1)]


def _prose(source):
    text = "".join(char for char in source if char.isalnum())
    return [text[start:start + CHARS] for start in range(len(text) - CHARS + 1)]
