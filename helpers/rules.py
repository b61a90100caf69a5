"""What decides the homework's points: hidden inputs for the students' functions, hidden questions for their adapters.

They stand in a TOML file that an instructor replaces as a whole, with this in it:

    [[check]]
    notebook = "data"
    grade_id = "clean_text"      # the grade cell that gets its points by the share of its checks that pass
    call = "clean_text"          # a function in the student's notebook; without args, a variable
    args = [" 北京\\t"]
    expected = "北京"

    [adapter]
    exam = "exam.jsonl"          # beside this file: conversations whose last word the adapter is to say exactly
    count = 40                   # general questions of each kind
    seed = 2024                  # which of them

    [adapter.identity]           # the grade cell adapter_identity in basic.ipynb; likewise task, retention, memorised
    none = 0.3                   # a share that earns nothing,
    full = 0.8                   # one that earns everything; in between it is in proportion
"""
import hashlib
import json
import math
import tomllib
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nbformat

from helpers import profile
from helpers.homework import SOURCE
from helpers.submission import NOTEBOOKS

DEFAULT = profile.ROOT / "data" / "homework" / "checks.toml"
LEARNT, KEPT = ("task", "identity"), ("retention", "memorised")
ADAPTER_NOTEBOOK = "basic"


class RulesError(ValueError):
    """Rules that cannot decide the points of this homework: where, and what to do."""


@dataclass(frozen=True)
class Check:
    """One call of a student's function, and what it should give."""

    notebook: str
    grade_id: str
    call: str
    expected: object
    args: list | None = None

    @property
    def expression(self):
        """What the student's kernel computes: the value as JSON, spelt in hexadecimal so that it needs no quotes."""
        json_module, called = "__import__('json')", self.call
        if self.args is not None:
            called += f"(*{json_module}.loads({json.dumps(self.args)!r}))"
        return f"{json_module}.dumps({called}, default=lambda value: value.tolist()).encode().hex()"

    def passes(self, value):
        """Whether what came out of the kernel is what was expected; whatever it is, it is only compared."""
        try:
            return same(self.expected, json.loads(bytes.fromhex(value.strip("'"))))
        except (AttributeError, ValueError, RecursionError):
            return False


@dataclass(frozen=True)
class Criterion:
    """The share that earns nothing and the one that earns everything; the former may be the higher one."""

    none: float
    full: float

    def share(self, measured):
        """The share of the points."""
        return min(1.0, max(0.0, (measured - self.none) / (self.full - self.none)))


@dataclass(frozen=True)
class GradeCell:
    """A cell with points."""

    notebook: str
    grade_id: str
    points: float
    by_hand: bool


class Rules:
    """The checks and the criteria, which together decide every cell that is not graded by hand."""

    def __init__(self, path=DEFAULT, source=SOURCE):
        self.path, self.source = Path(path), Path(source)
        try:
            content = tomllib.loads(self.path.read_text(encoding="utf-8"))
            adapter = content.get("adapter", {})
            self.checks = [Check(**check) for check in content.get("check", [])]
            self.criteria = {name: Criterion(**adapter[name]) for name in LEARNT + KEPT if name in adapter}
        except (OSError, TypeError, ValueError) as error:
            raise RulesError(f"评分规则 {self.path} 读不懂（{error}）：请照 helpers/rules.py 的开头改正。") from error
        self.exam = self.path.parent / adapter["exam"] if "exam" in adapter else None
        self.count, self.seed = adapter.get("count", 40), adapter.get("seed", 0)
        self._check_completeness()

    @cached_property
    def course(self):
        """The course's notebooks by name, with their solutions."""
        return {name: nbformat.read(self.source / f"{name}.ipynb", as_version=4) for name in NOTEBOOKS}

    @cached_property
    def cells(self):
        """All cells with points."""
        return [GradeCell(name, about.grade_id, about.points, about.solution)
                for name, notebook in self.course.items() for cell in notebook.cells
                if (about := cell.metadata.get("nbgrader")) and about.grade]

    @cached_property
    def checks_of(self):
        """The checks by notebook."""
        found = defaultdict(list)
        for check in self.checks:
            found[check.notebook].append(check)
        return found

    @cached_property
    def fingerprint(self):
        """Changes with everything that points depend on, apart from what was submitted."""
        files = [self.path, *([self.exam] if self.exam else []), *sorted(self.source.glob("*.ipynb"))]
        parts = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        return hashlib.sha256("".join([*parts, str(profile.current().base_model)]).encode()).hexdigest()

    def earned(self, measured):
        """The share of the points by measure; nobody who has learnt nothing earns any for having forgotten nothing."""
        shares = {name: rule.share(measured.get(name, rule.none)) for name, rule in self.criteria.items()}
        learnt = max((shares[name] for name in LEARNT if name in shares), default=1.0)
        return {name: min(share, learnt) for name, share in shares.items()}

    def _check_completeness(self):
        decided = {(check.notebook, check.grade_id) for check in self.checks}
        decided |= {(ADAPTER_NOTEBOOK, f"adapter_{name}") for name in self.criteria}
        wanted = {(cell.notebook, cell.grade_id) for cell in self.cells if not cell.by_hand}
        if odd := sorted(decided ^ wanted):
            names = "、".join(f"{notebook}.ipynb 的 {grade_id}" for notebook, grade_id in odd)
            raise RulesError(f"评分规则 {self.path} 和作业对不上，只在一边有：{names}。请改正规则或作业。")
        if "task" in self.criteria and not (self.exam and self.exam.is_file()):
            raise RulesError(f"评分规则 {self.path} 有 task，却没有考卷：请在 [adapter] 里写 exam = \"文件名\"。")


def same(expected, found):
    """Whether two JSON values are the same, numbers nearly so."""
    if isinstance(expected, bool) or isinstance(found, bool):
        return expected is found
    if isinstance(expected, int | float) and isinstance(found, int | float):
        return math.isclose(expected, found, rel_tol=1e-6, abs_tol=1e-9)
    if isinstance(expected, list) and isinstance(found, list):
        return len(expected) == len(found) and all(map(same, expected, found))
    if isinstance(expected, dict) and isinstance(found, dict):
        return expected.keys() == found.keys() and all(same(expected[key], found[key]) for key in expected)
    return expected == found
