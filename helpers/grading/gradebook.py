"""Points in nbgrader's gradebook, where an instructor adds those given by hand, and from there in one table."""
import csv
import io
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from nbgrader.api import Gradebook, MissingEntry
from nbgrader.preprocessors import SaveCells

from helpers.grading import rerun
from helpers.grading.mark import Result
from helpers.grading.rules import Rules
from helpers.homework.package import NOTEBOOKS
from helpers.homework.release import ASSIGNMENT
from helpers.machine.files import replaced

DATABASE = "gradebook.db"
HEADER = ["学号", "状态", "总分", "满分", *NOTEBOOKS, "说明"]
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


class ByHand(NamedTuple):
    """What the instructor has given for a cell, and said of it."""

    points: float | None = None
    comment: str | None = None


class Score(NamedTuple):
    """What a student has for a notebook, of how many points, and how many cells wait for the instructor."""

    points: float
    most: float
    waiting: int


class Grades:
    """The gradebook in a folder, made for the homework of some rules."""

    def __init__(self, folder: Path, rules: Rules):
        self._rules = rules
        file = folder / DATABASE
        url = f"sqlite:///{file.resolve()}"
        if file.exists() and not _fits(url, rules):
            file.rename(file.with_name(f"gradebook_until_{datetime.now():%Y%m%d_%H%M%S}.db"))
        for name, notebook in rules.course.items():
            with Gradebook(url) as gradebook:
                gradebook.update_or_create_assignment(ASSIGNMENT)
            SaveCells().preprocess(notebook.copy(), {"nbgrader": {
                "notebook": name, "assignment": ASSIGNMENT, "db_url": url}})
        self._gradebook = Gradebook(url)

    def close(self) -> None:
        """Lets go of the database."""
        self._gradebook.close()

    def record(self, result: Result) -> None:
        """Puts a result's points in, and takes out what it replaces; once done, done again it changes nothing.

        Points given by hand stay as long as the same work is graded again.
        """
        submission = self._submission(result.student)
        if submission and submission.timestamp == result.time:
            return
        if submission and result.new_work:
            self._gradebook.remove_submission(ASSIGNMENT, result.student)
            submission = None
        if not submission:
            if result.failure:
                return
            self._gradebook.update_or_create_student(result.student)
            with self._gradebook.db.no_autoflush:  # else SQLAlchemy warns of what nbgrader does
                submission = self._gradebook.add_submission(ASSIGNMENT, result.student)
        for cell, grade in self._grades(submission):
            grade.auto_score = result.points.get(cell.name)
            grade.needs_manual_grade = cell.by_hand and grade.manual_score is None
        submission.timestamp = result.time  # last, and in one commit with the points
        self._gradebook.db.commit()

    def scores(self, student: str) -> dict[str, Score]:
        """The student's score by notebook; nothing for one who is not in the gradebook."""
        submission = self._submission(student)
        if not submission:
            return {}
        scores = {}
        for notebook in submission.notebooks:
            waiting = sum(grade.needs_manual_grade for grade in notebook.grades)
            scores[notebook.name] = Score(notebook.score, notebook.max_score, waiting)
        return scores

    def by_hand(self, student: str) -> dict[str, ByHand]:
        """What the instructor gave the student and said, by notebook/cell."""
        submission = self._submission(student)
        if not submission:
            return {}
        points = {cell.name: grade.manual_score for cell, grade in self._grades(submission)}
        comments = {}
        for notebook in submission.notebooks:
            for comment in notebook.comments:
                comments[f"{notebook.name}/{comment.name}"] = comment.comment
        return {name: ByHand(points.get(name), comments.get(name)) for name in {*comments, *points}}

    def _submission(self, student):
        try:
            return self._gradebook.find_submission(ASSIGNMENT, student)
        except MissingEntry:
            return None

    def _grades(self, submission):
        """Each cell with points and the submission's grade for it."""
        grades = {(notebook.name, grade.name): grade for notebook in submission.notebooks for grade in notebook.grades}
        return [(cell, grades[cell.notebook, cell.grade_id]) for cell in self._rules.cells]


def _fits(url, rules):
    """Whether the gradebook has the cells of the homework as it is, or still none."""
    with Gradebook(url) as gradebook:
        try:
            notebooks = gradebook.find_assignment(ASSIGNMENT).notebooks
        except MissingEntry:
            return True
        known, points = set(), {}
        for notebook in notebooks:
            known |= {f"{notebook.name}/{cell.name}" for cell in notebook.source_cells}
            points |= {f"{notebook.name}/{cell.name}": cell.max_score for cell in notebook.grade_cells}
    wanted = set()
    for name, notebook in rules.course.items():
        wanted |= {f"{name}/{rerun.about(cell)['grade_id']}" for cell in notebook.cells if rerun.about(cell)}
    return known == wanted and points == {cell.name: cell.points for cell in rules.cells}


def write_table(header: list[str], rows: Iterable[list], path: Path) -> None:
    """Writes a CSV file that Excel opens as it is and in which nothing is a formula."""
    text = io.StringIO()
    table = csv.writer(text)
    for row in [header, *rows]:
        table.writerow([harmless(value) for value in row])
    with replaced(path) as file:
        file.write("\ufeff" + text.getvalue())


def harmless(value: object) -> object:
    """A value that a spreadsheet program shows and does not compute."""
    if isinstance(value, str) and value.lstrip(" ").startswith(FORMULA):
        return "'" + value
    return value


def summary(grades: Grades, result: Result) -> list:
    """A student's line in the table of all, in the order of the HEADER."""
    scores = grades.scores(result.student)
    most = sum(score.most for score in scores.values()) or ""
    if result.failure:
        return [result.student, "失败", "", most, *[""] * len(NOTEBOOKS), result.failure]
    points = [scores[name].points for name in NOTEBOOKS]
    waiting = sum(score.waiting for score in scores.values())
    state = f"还有 {waiting} 题要人工评分" if waiting else "评完了"
    return [result.student, state, sum(points), most, *points, "；".join(result.remarks)]
