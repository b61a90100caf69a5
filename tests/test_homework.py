import ast
import copy
import re
import shutil

import nbformat
import pytest

from helpers.grading import inputs, secret
from helpers.grading.rules import DEFAULT, Check, Rules
from helpers.homework import own, release
from helpers.homework.package import NOTEBOOKS, REPORT
from helpers.homework.submit import Homework
from helpers.machine import lessons, profile
from helpers.machine.commands import CourseError
from tests import course
from tools.make_homework_exam import main

RULES = Rules()
AUTHOR = release.author(release.SOURCE / "basic.ipynb").student
CELLS = {name: release.cells(release.SOURCE / f"{name}.ipynb") for name in NOTEBOOKS}
TRIFLE = 8  # a line so short is a heading or a mark, not a solution
GIVEN, BEGIN, END = "imports", "### BEGIN SOLUTION", "### END SOLUTION"


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    return release.generate(tmp_path_factory.mktemp("released"))


def graded(name):
    """The cells of a notebook that earn points."""
    return {grade_id: cell for grade_id, cell in CELLS[name].items() if cell.metadata.nbgrader.grade}


def solution(cell):
    """What stands between the marks."""
    return cell.source.partition(BEGIN)[2].partition(END)[0]


@pytest.fixture
def answers(tmp_path, monkeypatch):
    """For a notebook's name the names that its graded answers define, computed where they harm nobody's work."""
    monkeypatch.setattr(own, "HOMEWORK", tmp_path)
    monkeypatch.chdir(release.SOURCE)

    def of(name):
        known, wanted = {}, {GIVEN} | {f"{grade_id}_answer" for grade_id in graded(name)}
        for grade_id in filter(wanted.__contains__, CELLS[name]):
            exec(CELLS[name][grade_id].source, known)
        return known
    return of


def earned(known, student):
    """The points that some answers bring a student, by grade cell."""
    points = {}
    for name in NOTEBOOKS:
        for check in RULES.checks_of(student)[name]:
            worth = graded(name)[check.grade_id].metadata.nbgrader.points
            of_all = sum(other.grade_id == check.grade_id for other in RULES.checks)
            points[check.grade_id] = points.get(check.grade_id, 0) + worth / of_all * is_right(known, check)
    return points


def is_right(known, check):
    found = known[check.call]
    try:
        return (found(*copy.deepcopy(check.args)) if check.args is not None else found) == check.expected
    except (StopIteration, ValueError):
        return False


def test_the_released_notebooks_hold_no_solution_and_no_output(released):
    for name in NOTEBOOKS:
        text = (released / f"{name}.ipynb").read_text(encoding="utf-8")
        content = nbformat.reads(text, as_version=4)
        assert not any(cell.get("outputs") for cell in content.cells)
        for cell in CELLS[name].values():
            lines = [line.strip() for line in solution(cell).splitlines() if len(line.strip()) > TRIFLE]
            assert bool(lines) == cell.metadata.nbgrader.solution
            assert not [line for line in lines if line in text.replace('\\"', '"')]


def test_every_answer_of_the_released_notebooks_says_that_it_is_empty(released):
    for name in NOTEBOOKS:
        for cell in release.cells(released / f"{name}.ipynb").values():
            if cell.metadata.nbgrader.solution:
                stub = release.CODE_STUB.splitlines()[-1] if cell.cell_type == "code" else release.TEXT_STUB
                assert stub in cell.source


def test_what_a_student_has_is_never_overwritten(tmp_path):
    assert release.release(tmp_path) == sorted([f"{name}.ipynb" for name in NOTEBOOKS] + [REPORT])
    (tmp_path / "data.ipynb").write_text("my work", encoding="utf-8")
    (tmp_path / REPORT).unlink()
    assert release.release(tmp_path) == [REPORT]
    assert (tmp_path / "data.ipynb").read_text(encoding="utf-8") == "my work"
    assert release.release(tmp_path) == []


def test_a_notebook_tells_the_points_that_its_cells_add_up_to():
    for name in NOTEBOOKS:
        opening = nbformat.read(release.SOURCE / f"{name}.ipynb", as_version=4).cells[0].source
        total = sum(cell.metadata.nbgrader.points for cell in graded(name).values())
        assert f"**满分** {total} 分" in opening
    assert sum(cell.metadata.nbgrader.points for name in NOTEBOOKS for cell in graded(name).values()) == 120


def test_every_point_is_decided_by_a_check_by_the_adapter_or_by_a_person():
    automatic = {(name, grade_id) for name in NOTEBOOKS for grade_id, cell in graded(name).items()
                 if not cell.metadata.nbgrader.solution}
    checked = {(check.notebook, check.grade_id) for check in RULES.checks}
    asked = {("basic", f"adapter_{measure}") for measure in Rules().criteria}
    assert checked | asked == automatic


def test_the_lines_that_a_student_sees_are_those_that_earn_full_points():
    seen = {measure: float(re.search(r"[<>]= ([\d.]+)", CELLS["basic"][f"adapter_{measure}"].source)[1])
            for measure in Rules().criteria}
    assert seen == {measure: criterion.full for measure, criterion in Rules().criteria.items()}


@pytest.mark.parametrize("name", ["basic", "data", "understanding"])
def test_the_solutions_pass_every_check(name, answers):
    known = answers(name)
    assert [check for check in RULES.checks_of(AUTHOR)[name] if not is_right(known, check)] == []


def test_the_published_solution_solves_nobody_elses_task(answers):
    known = {key: value for name in ("basic", "data", "understanding") for key, value in answers(name).items()}
    points = {}
    for number in range(60):
        for grade_id, worth in earned(known, f"2024{number:04}").items():
            points[grade_id] = points.get(grade_id, 0) + worth / 60
    of_questions = sum(worth for grade_id, worth in points.items() if grade_id.startswith("answer"))
    assert of_questions < 16 / 4
    assert points["counts"] + points["split"] + points["read_pairs"] < (3 + 6 + 6) / 3
    assert sum(earned(known, AUTHOR).values()) == pytest.approx(5 + 30 + 16)


def test_no_check_asks_what_the_student_can_see():
    for name in NOTEBOOKS:
        seen = [ast.unparse(call) for cell in graded(name).values() if cell.cell_type == "code"
                for call in ast.walk(ast.parse(cell.source)) if isinstance(call, ast.Call)]
        for check in RULES.checks_of(AUTHOR)[name]:
            if check.args is not None:
                assert f"{check.call}({', '.join(map(repr, check.args))})" not in seen


def test_the_public_inputs_are_those_of_the_public_seed(tmp_path):
    main(tmp_path)
    for name in (secret.QUESTIONS, secret.CHECKS):
        assert (tmp_path / name).read_bytes() == (DEFAULT.parent / name).read_bytes()


@pytest.mark.parametrize("seed", ["one", "another"])
def test_the_solutions_pass_the_inputs_of_every_class(seed, answers):
    known = {key: value for name in ("basic", "data") for key, value in answers(name).items()}
    checks = [Check(**check).of(own.values(AUTHOR)) for check in inputs.draw(seed)]
    assert [check for check in checks if not is_right(known, check)] == []
    assert inputs.draw(seed) != inputs.draw("a third")


def test_who_did_it_is_read_without_running_anything(tmp_path):
    content = nbformat.read(release.SOURCE / "basic.ipynb", as_version=4)
    [cell] = [cell for cell in content.cells if cell.metadata.get("nbgrader", {}).get("grade_id") == "author"]
    cell.source = 'STUDENT = "s1"\nNAME = "阿福"\nOWNER = "小红"\nopen("ran", "w")\nraise SystemExit'
    nbformat.write(content, tmp_path / "basic.ipynb")
    assert release.author(tmp_path / "basic.ipynb") == release.Author("s1", "阿福", "小红")
    with pytest.raises(CourseError, match="make homework"):
        release.author(tmp_path / "none.ipynb")


@pytest.fixture(scope="module")
def solved(walked, tmp_path_factory):
    """The homework as one who makes no mistake hands it in, its adapter trained by the notebook itself."""
    work = Homework(shutil.copytree(release.SOURCE, tmp_path_factory.mktemp("solved") / "homework"))
    made = walked / "workspace" / "homework" / work.author.student
    if not (made / "figures.json").exists():  # nbval has not been there before
        course.ready_for_homework(walked)
        with course.imported_from(walked):
            lessons.execute(walked / release.SOURCE.relative_to(profile.ROOT) / "basic.ipynb", walked / "executed")
    shutil.copytree(made, work.folder / work.author.student)
    return work


@pytest.mark.usefixtures("sandboxed")
def test_a_solved_homework_gets_full_points_from_the_real_grader(solved, tmp_path):
    from helpers.grading.grade import Session

    (tmp_path / "submissions").mkdir()
    shutil.copy(solved.pack(), tmp_path / "submissions")
    rules = Rules()
    with Session(tmp_path / "submissions", tmp_path / "grading", rules) as session:
        [result] = session.run()
    assert result.failure is None
    assert result.remarks == []
    assert result.points == {f"{cell.notebook}/{cell.grade_id}": cell.points
                             for cell in rules.cells if not cell.by_hand}
