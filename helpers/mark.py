"""One submission, from the zip to its points: unpacked, run and asked in the sandbox, and decided out here."""
import tempfile
import time
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import nbformat

from helpers import lora, profile, readable, rerun, similar, submission
from helpers.convert import replaced
from helpers.homework import ASSIGNMENT
from helpers.rules import ADAPTER_NOTEBOOK
from helpers.sandbox import Ended
from helpers.submission import DATA, NOTEBOOKS, REPORT, Refused

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
    points: dict = field(default_factory=dict)
    passed: dict = field(default_factory=dict)
    shares: dict = field(default_factory=dict)
    answers: dict = field(default_factory=dict)
    remarks: list = field(default_factory=list)
    said: list = field(default_factory=list)  # by programs at their end: for the instructor only
    traits: dict = field(default_factory=dict)
    seconds: float = 0
    peak: int = 0
    finished: str = ""

    @property
    def time(self):
        """When it was graded."""
        return datetime.fromisoformat(self.finished)


class Examiner:
    """Asks adapters the hidden questions; the base model's own answers are asked for once."""

    def __init__(self, rules, protected):
        from helpers import compare, overfit  # slow to import, and not needed where there is nothing to grade
        from helpers.split import read_samples

        self._compare, self._look, self._protected = compare, overfit.Look, protected
        self._questions = compare.questions(read_samples(rules.exam) if rules.exam else [], rules.count, "", rules.seed)
        self._before = self._answers_of_the_base()

    def _answers_of_the_base(self):
        try:
            answers, _ = lora.ask(self._questions, protected=self._protected)
            return answers
        except Ended as error:
            why = rerun.printable((error.said or str(error)).splitlines()[-1])
            raise Ended(f"还没有开始评分：基座模型 {profile.current().base_model} 在沙箱里没有答出题来（{why}）。"
                        "请先用第 0 课看它能不能回答：模型不完整就重新下载，内存或显存不够就关掉别的程序。") from error

    def shares(self, folder, checked, name):
        """What the adapter in an unpacked submission can do, by measure, and the memory that it took to find out."""
        after, peak = lora.ask(self._questions, folder / submission.WEIGHTS, checked, self._protected)
        asked = [replace(question, expect=[name]) if question.kind == self._compare.IDENTITY else question
                 for question in self._questions]
        rows = self._compare.compare(lambda _: self._before, lambda _: after, asked)
        shares = self._look(0, rows, 0.0, name).shares
        if self._compare.identity(rows).before.right:  # a word that everybody says is no name
            shares["identity"] = 0.0
        return shares, peak


def mark(path, rules, examiner, out, protected=True):
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
            result.said = _last_words(error)
    result.seconds = round(time.monotonic() - started, 1)
    result.finished = datetime.now().isoformat()
    return result


def _graded(result, path, folder, rules, examiner, out, protected):
    manifest = submission.unpack(path, folder)
    notebooks = {name: rerun.read(folder / f"{name}.ipynb") for name in NOTEBOOKS}
    checked = lora.checked_settings(folder, profile.current().base_model)
    _grade_notebooks(result, notebooks, folder, rules, protected)
    if examiner:
        _grade_adapter(result, manifest, folder, checked, rules, examiner)
    result.traits = similar.traits(folder, manifest, notebooks.values())
    _keep(notebooks, rules.course, folder, out / "autograded" / result.student / ASSIGNMENT)
    return result


def _last_words(ended):
    """What a program that ended, if that is what ended, said then."""
    return [rerun.printable(said)] if (said := getattr(ended, "said", "")) else []


def digest(path):
    """The SHA-256 of a zip; of what cannot be one, nothing is read."""
    fits = path.is_file() and not path.is_symlink() and path.stat().st_size <= submission.MAX_ZIP
    return submission.sha256(path) if fits else ""


def _grade_notebooks(result, notebooks, folder, rules, protected):
    points = {(cell.notebook, cell.grade_id): cell.points for cell in rules.cells}
    for name, notebook in notebooks.items():
        run = rerun.Run()
        if checks := rules.checks_of[name]:
            run = rerun.rerun(notebook, rules.course[name], checks, {DATA: folder / DATA}, protected)
        result.peak = max(result.peak, run.peak)
        for grade_id, (right, total) in run.passed.items():
            result.passed[f"{name}/{grade_id}"] = [right, total]
            result.points[f"{name}/{grade_id}"] = points[name, grade_id] * right / total
        if run.ended:
            result.remarks.append(rerun.printable(f"{name}.ipynb 没有运行完：{run.ended}。{TRY_AGAIN}"))
            result.said += _last_words(run)
        result.answers[name] = _answers(notebook, run)
        _put_outputs(notebook, run)


def _answers(notebook, run):
    """The student's own cells, and what they printed."""
    nothing = "", None
    return [{"grade_id": rerun.about(cell)["grade_id"], "source": cell.source[:rerun.MOST_CHARS],
             "text": run.printed.get(place, nothing)[0], "error": run.printed.get(place, nothing)[1]}
            for place, cell in enumerate(notebook.cells) if rerun.about(cell).get("solution")]


def _put_outputs(notebook, run):
    """Replaces whatever outputs the student's file has by the text that came out here."""
    for place, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            text = "\n".join(filter(None, run.printed.get(place, ())))
            cell.outputs = [nbformat.v4.new_output("stream", text=text)] if text else []
            cell.execution_count = None


def _grade_adapter(result, manifest, folder, checked, rules, examiner):
    result.shares, peak = examiner.shares(folder, checked, manifest.assistant)
    result.peak = max(result.peak, peak)
    points = {cell.grade_id: cell.points for cell in rules.cells if cell.notebook == ADAPTER_NOTEBOOK}
    for measure, share in rules.earned(result.shares).items():
        grade_id = f"adapter_{measure}"
        result.points[f"{ADAPTER_NOTEBOOK}/{grade_id}"] = points[grade_id] * share


def _keep(notebooks, course, folder, target):
    """Where nbgrader's formgrader looks for what an instructor grades by hand."""
    for name, notebook in notebooks.items():
        with replaced(target / f"{name}.ipynb") as file:
            file.write(nbformat.writes(readable.plain(notebook, course[name])))
    if (folder / REPORT).is_file():
        with replaced(target / REPORT) as file:
            file.write((folder / REPORT).read_text(encoding="utf-8", errors="replace"))
