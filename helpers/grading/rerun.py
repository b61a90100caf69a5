"""A student's notebook run anew in the sandbox, and its functions called from outside on inputs that they do not know.

Only what comes out is looked at, and it is compared out here: whatever the notebook does to Python, to its own tests or
to what it prints, it gets points only for right values.
"""
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from helpers.grading import kernel_host
from helpers.grading.kernel_host import MOST_CHARS
from helpers.grading.rules import Check
from helpers.grading.sandbox import Ended, Sandbox
from helpers.homework.package import MOST_CELLS, Refused

CELL_SECONDS, CHECK_SECONDS = 60, 10
MOST_ROWS = 20_000  # of training data


@dataclass
class Run:
    """What the cells came to: per cell's place (what it printed, its error); per grade cell [checks passed, checks].

    If it ended early: why, and what it said then, which is for the instructor only.
    """

    printed: dict[int, tuple[str, str | None]] = field(default_factory=dict)
    passed: dict[str, list[int]] = field(default_factory=dict)
    ended: str | None = None
    said: str = ""
    peak: int = 0


def rerun(notebook: NotebookNode, course: NotebookNode, checks: Sequence[Check], files: dict[str, Path],
          protected: bool = True) -> Run:
    """Runs a student's notebook, given the course's, with these files in its home; Ended if not even Python starts."""
    run = Run(passed={check.grade_id: [0, 0] for check in checks})
    for check in checks:
        run.passed[check.grade_id][1] += 1
    with Sandbox([sys.executable, "-m", kernel_host.__name__], files=files, protected=protected) as sandbox:
        _ask(sandbox, "", CELL_SECONDS)
        try:
            for place, code in _to_run(notebook, course):
                text, error, _ = _ask(sandbox, code, CELL_SECONDS)
                run.printed[place] = text, error
            for check in checks:
                *_, value = _ask(sandbox, "", CHECK_SECONDS, check.expression)
                run.passed[check.grade_id][0] += check.passes(value)
        except Ended as error:
            run.ended, run.said = str(error), error.said
        run.peak = sandbox.peak
    return run


def about(cell: NotebookNode) -> dict:
    """What nbgrader knows of a cell, as far as a student's notebook can be believed."""
    known = cell.metadata.get("nbgrader")
    return known if isinstance(known, dict) and isinstance(known.get("grade_id"), str) else {}


def _to_run(notebook, course):
    """The places and sources of the cells that functions are made in: the course's as it made them, no tests.

    What the course only shows is left out, as long as the student has not changed it: it may train for minutes.
    """
    own_sources, tests, only_shown = {}, set(), set()
    for cell in course.cells:
        known = about(cell)
        if not known:
            only_shown.add(cell.source)
        elif not known.get("solution"):
            own_sources[known["grade_id"]] = cell.source
            if known.get("grade"):
                tests.add(known["grade_id"])
    for place, cell in enumerate(notebook.cells):
        name = about(cell).get("grade_id")
        if cell.cell_type == "code" and name not in tests and cell.source not in only_shown:
            yield place, own_sources.get(name, cell.source)


def _ask(sandbox, code, seconds, expression=""):
    answer = sandbox.ask({"code": code, "seconds": seconds, "expression": expression})
    try:
        text, error, value = (answer[key] for key in ("text", "error", "value"))
    except (KeyError, TypeError) as mistake:
        raise Ended("沙箱里的回答不像样，多半是笔记本做了手脚") from mistake
    return printable(text), error and printable(error), value


def printable(text: object) -> str:
    """Whatever it is, as text that can be written and shown, and moves no cursor."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in str(text)[:MOST_CHARS])


def samples(path: Path) -> list[dict]:
    """The conversations in a student's training data, as many as are looked at; lines that are none are left out."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return [sample for line in islice(file, MOST_ROWS) if (sample := _conversation(line))]


def _conversation(line):
    try:
        turns = json.loads(line)["conversation"]
        if turns and all(isinstance(turn["input"], str) and isinstance(turn["output"], str) for turn in turns):
            return {"conversation": turns}
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return None


def read(path: Path) -> NotebookNode:
    """A student's notebook; Refused if it is none, or one of more cells than the memory may hold."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        count = len(content["cells"])
        if count > MOST_CELLS:  # before they become a notebook, which takes much more memory
            raise Refused(f"{path.name} 有 {count:,} 格，最多 {MOST_CELLS} 格：请删掉多余的，重新运行 make submit。")
        if content["nbformat"] != 4:
            raise ValueError("not a notebook of version 4")
        notebook = nbformat.v4.to_notebook(content)
        nbformat.validate(notebook)
        nbformat.writes(notebook).encode()  # not so if there are halves of characters in it
        return notebook
    except (nbformat.ValidationError, ValueError, RecursionError, AttributeError, KeyError, TypeError,
            AssertionError) as error:
        raise Refused(f"{path.name} 不是完整的笔记本：请在 JupyterLab 里打开，重新保存。") from error
