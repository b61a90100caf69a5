"""What decides the homework's points: hidden inputs for the students' functions, hidden questions for their adapters.

They stand in a TOML file that an instructor replaces as a whole, with this in it:

    drawn = "checks.jsonl"       # beside this file: more checks, one a line, as `make exam` writes them

    [[check]]
    notebook = "data"
    grade_id = "clean_text"      # the grade cell that gets its points by the share of its checks that pass
    call = "clean_text"          # a function in the student's notebook; without args, a variable
    args = [" 北京‹invisible›\\t"]  # ‹…› is what was drawn for the student: helpers/homework/own.py, values
    expected = "北京"            # or formula = "samples // batch", computed from what was drawn

    [adapter]
    questions = "questions.jsonl"   # beside this file: what the adapter is asked; `make exam` writes it

    [adapter.identity]           # the grade cell adapter_identity in basic.ipynb; likewise task, retention, memorised
    none = 0.3                   # a share that earns nothing,
    full = 0.8                   # one that earns everything; in between it is in proportion
"""
import hashlib
import json
import math
import re
import tomllib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from helpers.data.split import read_samples
from helpers.homework import own
from helpers.homework.package import NOTEBOOKS
from helpers.homework.release import SOURCE, known_cells
from helpers.machine import profile
from helpers.machine.commands import CourseError
from helpers.machine.files import sha256

DEFAULT = profile.ROOT / "data" / "homework" / "checks.toml"
OWN = profile.ROOT / "workspace" / "rules"  # where `make exam` puts an instructor's
DRAWN = re.compile("‹(\\w+)›")
OUT = profile.ROOT / "workspace" / "grading"
LEARNT, KEPT = ("task", "identity"), ("retention", "memorised")
ADAPTER_NOTEBOOK = "basic"


@dataclass(frozen=True)
class Check:
    """One call of a student's function, and what it should give."""

    notebook: str
    grade_id: str
    call: str
    expected: object = None
    args: list | None = None
    formula: str | None = None
    numbers: list[int] | None = None  # of the pairs in the first argument, which some go to the test by

    def of(self, words: dict[str, object]) -> "Check":
        """The check for one student, given what was drawn for that student."""
        args = filled(self.args, words)
        if self.formula:  # the instructor's own, as the rest of the rules
            expected = eval(self.formula, {"__builtins__": {}}, words)
        elif self.numbers:
            numbered = list(zip(args[0], self.numbers))
            expected = [[pair for pair, number in numbered if (number % 10 in words["tested"]) is side]
                        for side in (False, True)]
        else:
            expected = filled(self.expected, words)
        return replace(self, args=args, expected=expected, formula=None, numbers=None)

    @property
    def expression(self) -> str:
        """What the student's kernel computes: the value as JSON, spelt in hexadecimal so that it needs no quotes."""
        json_module, called = "__import__('json')", self.call
        if self.args is not None:
            called += f"(*{json_module}.loads({json.dumps(self.args)!r}))"
        return f"{json_module}.dumps({called}, default=lambda value: value.tolist()).encode().hex()"

    def passes(self, value: object) -> bool:
        """Whether what came out of the kernel is what was expected; whatever it is, it is only compared."""
        try:
            return same(self.expected, json.loads(bytes.fromhex(value.strip("'"))))
        except (AttributeError, ValueError, RecursionError, OverflowError):
            return False


@dataclass(frozen=True)
class Criterion:
    """The share that earns nothing and the one that earns everything; the former may be the higher one."""

    none: float
    full: float

    def share(self, measured: float) -> float:
        """The share of the points."""
        return min(1.0, max(0.0, (measured - self.none) / (self.full - self.none)))


@dataclass(frozen=True)
class GradeCell:
    """A cell with points."""

    notebook: str
    grade_id: str
    points: float
    by_hand: bool

    @property
    def name(self) -> str:
        """What tells it from all others: notebook/cell."""
        return f"{self.notebook}/{self.grade_id}"


class Rules:
    """The checks and the criteria, which together decide every cell that is not graded by hand."""

    def __init__(self, path: str | Path = DEFAULT, source: str | Path = SOURCE):
        self.path, self.source = Path(path), Path(source)
        try:
            content = tomllib.loads(self.path.read_text(encoding="utf-8"))
            adapter = content.get("adapter", {})
            self.drawn = self.path.parent / content["drawn"] if "drawn" in content else None
            drawn = read_samples(self.drawn) if self.drawn else []
            self.checks = [Check(**check) for check in content.get("check", []) + drawn]
            self.criteria = {name: Criterion(**adapter[name]) for name in LEARNT + KEPT if name in adapter}
        except (OSError, TypeError, ValueError) as error:
            raise CourseError(f"评分规则 {self.path} 读不懂（{error}）："
                              "请照 helpers/grading/rules.py 的开头改正。") from error
        self.questions = self.path.parent / adapter["questions"] if "questions" in adapter else None
        self._check_completeness()

    @cached_property
    def course(self) -> dict[str, NotebookNode]:
        """The course's notebooks by name, with their solutions."""
        return {name: nbformat.read(self.source / f"{name}.ipynb", as_version=4) for name in NOTEBOOKS}

    @cached_property
    def cells(self) -> list[GradeCell]:
        """All cells with points."""
        cells = []
        for name, notebook in self.course.items():
            for cell in notebook.cells:
                about = cell.metadata.get("nbgrader")
                if about and about.grade:
                    cells.append(GradeCell(name, about.grade_id, about.points, about.solution))
        return cells

    @cached_property
    def solutions(self) -> dict[str, str]:
        """The course's own answers by notebook/cell."""
        return {f"{name}/{grade_id}": cell.source for name, notebook in self.course.items()
                for grade_id, cell in known_cells(notebook).items() if cell.metadata.nbgrader.solution}

    def checks_of(self, student: str) -> dict[str, list[Check]]:
        """The checks of each notebook, with what was drawn for a student."""
        words = own.values(student)
        return {name: [check.of(words) for check in self.checks if check.notebook == name] for name in NOTEBOOKS}

    @cached_property
    def fingerprint(self) -> str:
        """Changes with everything that points depend on, apart from what was submitted."""
        beside = [file for file in (self.drawn, self.questions) if file]
        files = [self.path, *beside, *sorted(self.source.glob("*.ipynb"))]
        parts = [*map(sha256, files), str(profile.current().base_model)]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def earned(self, measured: dict[str, float]) -> dict[str, float]:
        """The share of the points by measure; nobody who has learnt nothing earns any for having forgotten nothing."""
        shares = {name: rule.share(measured.get(name, rule.none)) for name, rule in self.criteria.items()}
        learnt = max((shares[name] for name in LEARNT if name in shares), default=1.0)
        return {name: min(share, learnt) for name, share in shares.items()}

    def _check_completeness(self):
        decided = {(check.notebook, check.grade_id) for check in self.checks}
        decided |= {(ADAPTER_NOTEBOOK, f"adapter_{name}") for name in self.criteria}
        wanted = {(cell.notebook, cell.grade_id) for cell in self.cells if not cell.by_hand}
        if unmatched := sorted(decided ^ wanted):
            names = "、".join(f"{notebook}.ipynb 的 {grade_id}" for notebook, grade_id in unmatched)
            raise CourseError(f"评分规则 {self.path} 和作业对不上，只在一边有：{names}。请改正规则或作业。")
        if self.criteria and not (self.questions and self.questions.is_file()):
            raise CourseError(f"评分规则 {self.path} 要量适配器，却没有问题："
                              "请在 [adapter] 里写 questions = \"文件名\"，用 make exam 抽一份。")


def of_the_class() -> Path:
    """The rules that an instructor has drawn, the public ones where there are none."""
    drawn = OWN / DEFAULT.name
    return drawn if drawn.is_file() else DEFAULT


def filled(value: object, words: dict[str, object]) -> object:
    """A value with what was drawn in place of every ‹name›."""
    if isinstance(value, list):
        return [filled(part, words) for part in value]
    if isinstance(value, dict):
        return {key: filled(part, words) for key, part in value.items()}
    return DRAWN.sub(lambda found: str(words[found[1]]), value) if isinstance(value, str) else value


def same(expected: object, given: object) -> bool:
    """Whether two JSON values are the same, numbers nearly so; OverflowError for a number that no float comes near."""
    if isinstance(expected, bool) or isinstance(given, bool):
        return expected is given
    if isinstance(expected, int | float) and isinstance(given, int | float):
        return math.isclose(expected, given, rel_tol=1e-6, abs_tol=1e-9)
    if isinstance(expected, list) and isinstance(given, list):
        return len(expected) == len(given) and all(map(same, expected, given))
    if isinstance(expected, dict) and isinstance(given, dict):
        return expected.keys() == given.keys() and all(same(expected[key], given[key]) for key in expected)
    return expected == given
