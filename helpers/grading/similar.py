"""Submissions that resemble each other, or what the course has published, more than chance allows: for the instructor
to look at and to judge.

However many share something, it is theirs: what the course itself gives to everybody was left out of the traits.
"""
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from helpers.grading.traits import ADAPTER, CODE, FOREIGN, NAMED, PROSE, ROWS

PUBLISHED, EXAM = "（课程公布的解答）", "（隐藏的考卷）"
QUESTIONS, FACTS = "考卷的原题", "考卷问的事"
# The share from which on it is suspicious, and how much there has to be; tests/test_copying.py measures both.
SUSPICIOUS = {CODE: 0.98, NAMED: 0.55, PROSE: 0.45, ROWS: 0.5, ADAPTER: 0.98}
TOLD = 0.6  # of what the exam asks for; a quarter is what the draw gives everyone
ENOUGH = {CODE: 150, PROSE: 30, ROWS: 20}


class Pair(NamedTuple):
    """Two students, what of theirs is alike, and how much of it."""

    first: str
    second: str
    what: str
    share: float


class Group(NamedTuple):
    """Students who are alike, each to some other of them, and the pairs that say so, the most alike first."""

    members: list[str]
    pairs: list[Pair]


def pairs(submitted: dict[str, dict]) -> list[Pair]:
    """The pairs to look at, given {student: traits}; the most alike first."""
    prepared = {student: _prepared(traits) for student, traits in submitted.items()}
    found = []
    for first, second in combinations(sorted(prepared), 2):
        for what, share in SHARES.items():
            alike = share(prepared[first], prepared[second])
            if alike >= SUSPICIOUS[what]:
                found.append(Pair(first, second, what, min(1.0, alike)))
    return sorted(found, key=lambda pair: -pair.share)


def with_the_exam(student: str, leaked: int = 0, told: int = 0, count: int = 0) -> list[Pair]:
    """What of the hidden exam's `count` questions stands in the training data: in the same words, in any words."""
    found = []
    if leaked:
        found.append(Pair(student, EXAM, QUESTIONS, leaked / count))
    if count and told / count >= TOLD:
        found.append(Pair(student, EXAM, FACTS, told / count))
    return found


def groups(pairs: Sequence[Pair]) -> list[Group]:
    """Who is alike, however many they are: two are in one group if a chain of pairs joins them; the largest first."""
    if not pairs:
        return []
    students = sorted({student for pair in pairs for student in pair[:2]})
    firsts, seconds = ([students.index(pair[end]) for pair in pairs] for end in (0, 1))
    links = coo_array((numpy.ones(len(pairs)), (firsts, seconds)), shape=(len(students), len(students)))
    count, group_of = connected_components(links, directed=False)
    found = []
    for number in range(count):
        members = [student for student, group in zip(students, group_of) if group == number]
        found.append(Group(members, [pair for pair in pairs if pair.first in members]))
    return sorted(found, key=lambda group: -len(group.members))


def _prepared(traits):
    """The traits as they are compared."""
    return traits | {PROSE: set(traits[PROSE]), ROWS: set(traits[ROWS]), ADAPTER: numpy.array(traits[ADAPTER])}


def _shapes(first, second):
    return _code(first[CODE], second[CODE])


def _named(first, second):
    return _code(first[NAMED], second[NAMED])


def _code(pieces, others):
    """How much of the smaller one's code, by size, has a part of the same shape in the other."""
    smaller = min(sum(pieces.values()), sum(others.values()))
    common = sum(size for piece, size in pieces.items() if piece in others)
    return common / smaller if smaller >= ENOUGH[CODE] else 0.0


def _prose(first, second):
    """How many of the smaller one's stretches the other has too."""
    smaller = min(len(first[PROSE]), len(second[PROSE]))
    return len(first[PROSE] & second[PROSE]) / smaller if smaller >= ENOUGH[PROSE] else 0.0


def _rows(first, second):
    """How many of one's rows that neither the course nor the draw gave to that student are the other's."""
    shares = [len(one[FOREIGN].keys() & other[ROWS]) / len(one[FOREIGN])
              for one, other in ((first, second), (second, first)) if len(one[FOREIGN]) >= ENOUGH[ROWS]]
    return max(shares, default=0.0)


def _adapter(first, second):
    """The cosine between what the two adapters do."""
    if not (len(first[ADAPTER]) and len(second[ADAPTER])):
        return 0.0
    return float(first[ADAPTER] @ second[ADAPTER])


SHARES = {CODE: _shapes, NAMED: _named, PROSE: _prose, ROWS: _rows, ADAPTER: _adapter}
