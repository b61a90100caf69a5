"""One submission, from the zip to its points: unpacked, run and asked in the sandbox, and decided out here."""
import json
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat

from helpers.grading import adapter_exam, formgrader, rerun, traits
from helpers.grading.kernel_host import MOST_CHARS
from helpers.grading.rules import ADAPTER_NOTEBOOK, Rules
from helpers.homework import package
from helpers.homework.package import DATA, MAX_ZIP, NOTEBOOKS, REPORT, Refused
from helpers.homework.release import ASSIGNMENT
from helpers.judge.shares import Share
from helpers.machine import profile
from helpers.machine.files import replaced, sha256

if TYPE_CHECKING:
    from helpers.grading.examiner import Examiner  # slow to import, and not needed where there is nothing to grade

SCRATCH = "unpacked"
TRY_AGAIN = "请在 JupyterLab 里重启内核，从头运行一遍，改好再交。"


@dataclass
class Result:
    """What became of one submission: points by notebook/cell, or why there are none."""

    student: str
    work: str  # the SHA-256 of the zip
    rules: str
    new_work: bool = True  # not that of the result before
    failure: str | None = None
    points: dict[str, float] = field(default_factory=dict)
    passed: dict[str, list[int]] = field(default_factory=dict)  # checks, and of how many
    assistant: str = ""
    counts: dict[str, list[int]] = field(default_factory=dict)  # of what the adapter was asked: right, of how many
    earlier: dict[str, list[int]] = field(default_factory=dict)  # the same of the work handed in before
    answers: dict[str, list[dict]] = field(default_factory=dict)  # by notebook: the student's cells, what they printed
    remarks: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)  # by programs at their end: for the instructor only
    traits: dict = field(default_factory=dict)  # what resembles other students' work is found by
    in_the_data: list[int] = field(default_factory=list)  # how much of the hidden exam: words, facts, of how many
    seconds: float = 0
    peak: int = 0
    finished: str = ""

    @property
    def time(self) -> datetime:
        """When it was graded."""
        return datetime.fromisoformat(self.finished)

    @property
    def shares(self) -> dict[str, float]:
        """What the adapter can do, by measure."""
        return {measure: Share(*count).value for measure, count in self.counts.items()}

    def sources(self) -> dict[str, str]:
        """What the student wrote, by notebook/cell."""
        return {f"{name}/{answer['grade_id']}": answer["source"]
                for name, answers in self.answers.items() for answer in answers}


def kept_results(out: Path) -> list[Result]:
    """The results that are kept in a folder, as far as they can be read."""
    found = []
    for file in sorted((out / "results").glob("*.json")):
        with suppress(ValueError, TypeError, RecursionError):  # broken, or by another version of the course
            found.append(Result(**json.loads(file.read_text(encoding="utf-8"))))
    return found


def mark(path: Path, rules: Rules, examiner: "Examiner | None", out: Path, protected: bool = True) -> Result:
    """The Result of one zip, its notebooks as they ran put beside the gradebook for the instructor to read."""
    started = time.monotonic()
    known = rerun.printable(path.stem), digest(path), rules.fingerprint
    with tempfile.TemporaryDirectory(dir=out / SCRATCH) as scratch:
        try:
            result = _graded(Result(*known), path, Path(scratch), rules, examiner, out, protected)
        except Refused as error:
            result = Result(*known, failure=rerun.printable(f"没有收下：{error}"))
        except Exception as error:  # one submission must not end the grading of the others
            result = Result(*known, failure=rerun.printable(f"评分没有完成，不是学生的错：{error!r}"))
            result.said = _last_words(getattr(error, "said", ""))
    result.seconds = round(time.monotonic() - started, 1)
    result.finished = datetime.now().isoformat()
    return result


def _graded(result, path, folder, rules, examiner, out, protected):
    manifest = package.unpack(path, folder)
    result.assistant = manifest.assistant
    notebooks = {name: rerun.read(folder / f"{name}.ipynb") for name in NOTEBOOKS}
    settings = adapter_exam.checked_settings(folder, profile.current().base_model)
    _grade_notebooks(result, notebooks, folder, rules, protected)
    if examiner:
        asked = examiner.examine(folder, settings, manifest.assistant)
        result.counts = {measure: list(share) for measure, share in asked.counts.items()}
        result.peak = max(result.peak, asked.peak)
        result.remarks += asked.remarks
        result.in_the_data = list(asked.in_the_data)
        _grade_adapter(result, rules)
    result.traits = traits.traits(folder, manifest, notebooks.values())
    _keep(notebooks, rules.course, folder, out / "autograded" / result.student / ASSIGNMENT)
    return result


def _last_words(said):
    """What a program said at its end, to be shown to the instructor; nothing if it said nothing."""
    return [rerun.printable(said)] if said else []


def digest(path: Path) -> str:
    """The SHA-256 of a zip; of what cannot be one, nothing is read."""
    could_be_one = path.is_file() and not path.is_symlink() and path.stat().st_size <= MAX_ZIP
    return sha256(path) if could_be_one else ""


def _grade_notebooks(result, notebooks, folder, rules, protected):
    points = {cell.name: cell.points for cell in rules.cells}
    checks_of = rules.checks_of(result.student)
    files = {path: folder / path for path in (DATA, "basic.ipynb")}
    for name, notebook in notebooks.items():
        run = rerun.Run()
        if checks := checks_of[name]:
            run = rerun.rerun(notebook, rules.course[name], checks, files, protected)
        result.peak = max(result.peak, run.peak)
        for grade_id, (right, total) in run.passed.items():
            cell = f"{name}/{grade_id}"
            result.passed[cell] = [right, total]
            result.points[cell] = points[cell] * right / total
        if run.ended:
            result.remarks.append(rerun.printable(f"{name}.ipynb 没有运行完：{run.ended}。{TRY_AGAIN}"))
            result.said += _last_words(run.said)
        result.answers[name] = _answers(notebook, run)
        _put_outputs(notebook, run)


def _answers(notebook, run):
    """The student's own cells, and what they printed."""
    answers = []
    for place, cell in enumerate(notebook.cells):
        about = rerun.about(cell)
        if about.get("solution"):
            text, error = run.printed.get(place, ("", None))
            answers.append({"grade_id": about["grade_id"], "source": cell.source[:MOST_CHARS],
                            "text": text, "error": error})
    return answers


def _put_outputs(notebook, run):
    """Replaces whatever outputs the student's file has by the text that came out here."""
    for place, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            text = "\n".join(filter(None, run.printed.get(place, ())))
            cell.outputs = [nbformat.v4.new_output("stream", text=text)] if text else []
            cell.execution_count = None


def _grade_adapter(result, rules):
    points = {cell.name: cell.points for cell in rules.cells}
    for measure, share in rules.earned(result.shares).items():
        cell = f"{ADAPTER_NOTEBOOK}/adapter_{measure}"
        result.points[cell] = points[cell] * share


def _keep(notebooks, course, folder, target):
    """Where nbgrader's formgrader looks for what an instructor grades by hand."""
    for name, notebook in notebooks.items():
        with replaced(target / f"{name}.ipynb") as file:
            file.write(nbformat.writes(formgrader.plain(notebook, course[name])))
    if (folder / REPORT).is_file():
        with replaced(target / REPORT) as file:
            file.write((folder / REPORT).read_text(encoding="utf-8", errors="replace"))
