"""Points in nbgrader's gradebook, where an instructor adds those given by hand, and from there in one table."""
import csv
import io
from datetime import datetime

from nbgrader.api import Gradebook, MissingEntry
from nbgrader.preprocessors import SaveCells

from helpers import rerun
from helpers.convert import replaced
from helpers.homework import ASSIGNMENT
from helpers.submission import NOTEBOOKS

DATABASE = "gradebook.db"
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


class Grades:
    """The gradebook in a folder, made for the homework of some rules."""

    def __init__(self, folder, rules):
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

    def close(self):
        """Lets go of the database."""
        self._gradebook.close()

    def record(self, result):
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
            grade.auto_score = result.points.get(f"{cell.notebook}/{cell.grade_id}")
            grade.needs_manual_grade = cell.by_hand and grade.manual_score is None
        submission.timestamp = result.time  # last, and in one commit with the points
        self._gradebook.db.commit()

    def points(self, student):
        """By notebook what a student has of how many points, and how many cells wait for the instructor."""
        submission = self._submission(student)
        return {notebook.name: (notebook.score, notebook.max_score,
                                sum(grade.needs_manual_grade for grade in notebook.grades))
                for notebook in submission.notebooks} if submission else {}

    def by_hand(self, student):
        """What the instructor gave and said: {notebook/cell: (points or None, comment or None)}."""
        submission = self._submission(student)
        if not submission:
            return {}
        comments = {f"{notebook.name}/{comment.name}": comment.comment
                    for notebook in submission.notebooks for comment in notebook.comments}
        given = {f"{cell.notebook}/{cell.grade_id}": grade.manual_score for cell, grade in self._grades(submission)}
        return {name: (given.get(name), comments.get(name)) for name in {*comments, *given}}

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
        known = {(notebook.name, cell.name) for notebook in notebooks for cell in notebook.source_cells}
        points = {(notebook.name, cell.name): cell.max_score for notebook in notebooks for cell in notebook.grade_cells}
    wanted = {(name, rerun.about(cell)["grade_id"]) for name, notebook in rules.course.items()
              for cell in notebook.cells if rerun.about(cell)}
    return known == wanted and points == {(cell.notebook, cell.grade_id): cell.points for cell in rules.cells}


def write_table(path, header, rows):
    """Writes a CSV file that Excel opens as it is and in which nothing is a formula."""
    text = io.StringIO()
    csv.writer(text).writerows([[harmless(value) for value in row] for row in [header, *rows]])
    with replaced(path) as file:
        file.write("\ufeff" + text.getvalue())


def harmless(value):
    """A value that a spreadsheet program shows and does not compute."""
    if isinstance(value, str) and value.lstrip(" ").startswith(FORMULA):
        return "'" + value
    return value


def summary(grades, result):
    """A student's line in the table of all."""
    points = grades.points(result.student)
    each = [points[name][0] if name in points and not result.failure else "" for name in NOTEBOOKS]
    waiting = sum(count for *_, count in points.values())
    total, most = sum(each) if points and not result.failure else "", sum(most for _, most, _ in points.values())
    state = "失败" if result.failure else f"还有 {waiting} 题要人工评分" if waiting else "评完了"
    return [result.student, state, total, most or "", *each, result.failure or "；".join(result.remarks)]


HEADER = ["学号", "状态", "总分", "满分", *NOTEBOOKS, "说明"]
