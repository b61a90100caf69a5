import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import tracemalloc
from functools import cache
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell, new_notebook
from nbgrader.api import Gradebook
from nbgrader.apps.api import NbGraderAPI
from nbgrader.coursedir import CourseDirectory
from safetensors.numpy import save_file
from traitlets.config import Config

from helpers.grading import grade, gradebook, mark, rules, secret, similar, traits
from helpers.grading.rules import DEFAULT, Check, Criterion, Rules, same
from helpers.homework.package import NOTEBOOKS
from helpers.homework.release import ASSIGNMENT, SOURCE
from helpers.machine import profile
from helpers.machine.commands import CourseError
from tests import bench_grade, classmates, handed_in

pytestmark = pytest.mark.usefixtures("sandboxed")

HALF = "def mean(values):\n    return 2\n"
ASKED = """
[adapter]
questions = "questions.jsonl"
"""
ADAPTER = ASKED + """
[adapter.identity]
none = 0
full = 0.9
[adapter.retention]
none = 0
full = 0.8
[adapter.memorised]
none = 0.5
full = 0
"""
TASK = """
[adapter.task]
none = 0
full = 0.6
"""


@cache
def empty_gradebook():
    """A gradebook without any assignment, which takes nbgrader seconds to make."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, gradebook.DATABASE)
        Gradebook(f"sqlite:///{path}").close()
        return path.read_bytes()


class Place:
    """A homework, and what is handed in."""

    def __init__(self, folder, **options):
        self.folder, self.out = folder / "in", folder / "out"
        self.source, self.rules = handed_in.course(folder, **options)
        self.folder.mkdir()
        self.out.mkdir()
        (self.out / gradebook.DATABASE).write_bytes(empty_gradebook())

    def grade(self):
        """The results by student."""
        with self.session() as session:
            return {result.student: result for result in session.run()}

    def session(self, **options):
        return grade.Session(self.folder, self.out, Rules(self.rules, self.source), **options)

    def hand_in(self, student, *arguments, **options):
        return handed_in.hand_in(self.folder, student, *arguments, **options)

    def table(self):
        with (self.out / "grades.csv").open(encoding="utf-8-sig", newline="") as file:
            return {row["学号"]: row for row in csv.DictReader(file)}

    def gradebook(self):
        return Gradebook(f"sqlite:///{self.out / gradebook.DATABASE}")


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_points_are_the_share_of_hidden_checks_that_pass(place):
    place.hand_in("li", handed_in.RIGHT)
    place.hand_in("wang", HALF, start=50)
    results = place.grade()
    assert results["li"].points == {"data/mean": 6}
    assert results["wang"].points == {"data/mean": 3}
    assert results["wang"].passed == {"data/mean": [1, 2]}
    assert place.table()["wang"] | {"说明": ""} == {
        "学号": "wang", "状态": "还有 3 题要人工评分", "总分": "3.0", "满分": "18.0", "basic": "0.0", "data": "3.0",
        "understanding": "0.0", "advanced": "0.0", "说明": ""}


def test_nbgraders_gradebook_has_the_points_and_waits_for_the_instructors(place):
    place.hand_in("li")
    place.grade()
    with place.gradebook() as book:
        grades = {found.name: found for notebook in book.find_submission(ASSIGNMENT, "li").notebooks
                  for found in notebook.grades}
        assert (grades["mean"].auto_score, grades["mean"].needs_manual_grade) == (6, False)
        assert (grades["understanding_why"].auto_score, grades["understanding_why"].needs_manual_grade) == (None, True)


def test_the_formgrader_finds_the_notebooks_as_they_ran(place):
    place.hand_in("li", "print('hello')\n" + handed_in.RIGHT)
    place.grade()
    folder = place.out / "autograded" / "li" / ASSIGNMENT
    assert {path.stem for path in folder.glob("*.ipynb")} == set(NOTEBOOKS)
    cells = nbformat.read(folder / "data.ipynb", as_version=4).cells
    assert cells[1].outputs[0].text == "hello\n"
    config = Config({"CourseDirectory": {"root": str(place.out)}})
    course = NbGraderAPI(coursedir=CourseDirectory(config=config), config=config)
    [assignment] = course.get_assignments()
    assert assignment["name"] == ASSIGNMENT
    [found] = course.get_notebook_submissions(ASSIGNMENT, "understanding")
    assert (found["student"], found["needs_manual_grade"]) == ("li", True)


def test_what_was_graded_is_not_graded_again(place):
    place.hand_in("li")
    first = place.grade()["li"]
    place.hand_in("wang", start=50)
    second = place.grade()
    assert second["li"] == first
    assert second["wang"].points == {"data/mean": 6}


def test_new_work_replaces_the_old_and_what_was_given_by_hand_for_it(place):
    place.hand_in("li")
    place.grade()
    give_by_hand(place, "li", 4)
    assert place.table()["li"]["总分"] == "6.0"
    place.grade()
    assert place.table()["li"]["总分"] == "10.0"
    place.hand_in("li", HALF)
    assert place.grade()["li"].points == {"data/mean": 3}
    assert (place.table()["li"]["总分"], place.table()["li"]["状态"]) == ("3.0", "还有 3 题要人工评分")


def test_new_rules_grade_again_and_leave_what_was_given_by_hand(place):
    place.hand_in("li", HALF)
    place.grade()
    give_by_hand(place, "li", 4)
    place.rules.write_text(handed_in.RULES.replace("expected = 25777.5", "expected = 2"), encoding="utf-8")
    assert place.grade()["li"].points == {"data/mean": 6}
    assert place.table()["li"]["总分"] == "10.0"


def give_by_hand(place, student, points):
    with place.gradebook() as book:
        given = book.find_grade("understanding_why", "understanding", ASSIGNMENT, student)
        given.manual_score, given.needs_manual_grade = points, False
        book.find_comment("understanding_why", "understanding", ASSIGNMENT, student).manual_comment = "想得好 <b>"
        book.db.commit()


def test_the_instructors_points_and_words_come_back_to_the_student(place):
    place.hand_in("li")
    place.grade()
    give_by_hand(place, "li", 4)
    place.grade()
    page = (place.out / "feedback" / "li.html").read_text(encoding="utf-8")
    assert "4 / 4" in page
    assert "到现在 10 分" in page
    assert "想得好 &lt;b&gt;" in page
    assert "2 组里对了 2 组" in page


def test_a_failure_is_a_failure_and_no_old_score(place):
    place.hand_in("li")
    place.grade()
    (place.folder / "li.zip").write_bytes(b"broken")
    assert "没有收下" in place.grade()["li"].failure
    row = place.table()["li"]
    assert (row["状态"], row["总分"], row["data"]) == ("失败", "", "")
    with place.gradebook() as book:
        assert book.assignment_submissions(ASSIGNMENT) == []
    assert "没有评分" in (place.out / "feedback" / "li.html").read_text(encoding="utf-8")
    place.hand_in("li")
    assert place.grade()["li"].points == {"data/mean": 6}


def test_when_the_grader_itself_fails_the_others_go_on_and_it_is_tried_again(place, monkeypatch):
    place.hand_in("li")
    place.hand_in("wang", start=50)
    with monkeypatch.context() as broken:
        broken.setattr(mark.traits, "traits", lambda _, manifest, __: {}[manifest.student])
        results = place.grade()
    assert all("评分没有完成，不是学生的错" in result.failure for result in results.values())
    assert not any(result.points for result in results.values())
    assert all(result.points == {"data/mean": 6} for result in place.grade().values())


def test_a_changed_homework_starts_a_new_gradebook_and_keeps_the_old_one(place):
    place.hand_in("li")
    place.grade()
    notebook = handed_in.notebook("data")
    notebook.cells[2].metadata.nbgrader.points = 12
    nbformat.write(notebook, place.source / "data.ipynb")
    assert place.grade()["li"].points == {"data/mean": 12}
    assert len(list(place.out.glob("gradebook_until_*.db"))) == 1


def test_a_student_without_answers_gets_no_points_and_a_reason(place):
    place.hand_in("li", "raise NotImplementedError('这一格还没有写')")
    assert place.grade()["li"].points == {"data/mean": 0}
    assert "这一格还没有写" in (place.out / "feedback" / "li.html").read_text(encoding="utf-8")


def test_the_courses_own_cells_are_run_as_the_course_made_them(place):
    path = place.hand_in("li", "def mean(values):\n    return math.fsum(values) / len(values)\n")

    def spoil(content):
        content["data.ipynb"] = content["data.ipynb"].replace(b"import math", b"math = None")

    handed_in.rewritten(path, place.folder / "wang.zip", spoil)
    assert place.grade()["wang"].points == {"data/mean": 6}


def test_a_run_that_was_killed_goes_on_where_it_was(place):
    for number in range(10):
        place.hand_in(f"student{number}", start=50 * number)
    command = [sys.executable, "-c", bench_grade.RUN, place.folder, place.out, place.rules, place.source]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("[  3/10]"):
                break
        os.kill(process.pid, signal.SIGKILL)
    graded = {path: path.read_bytes() for path in (place.out / "results").glob("*.json")}
    assert 3 <= len(graded) < 10
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"10 份作业，其中 {10 - len(graded)} 份要评" in done.stdout
    assert all(path.read_bytes() == before for path, before in graded.items())
    assert [row["总分"] for row in place.table().values()] == ["6.0"] * 10


@pytest.mark.parametrize("left", [b"", b'{"student": "li", ', b"\xff", b"[" * 100_000])
def test_a_broken_result_is_set_aside_and_graded_anew(place, capsys, left):
    place.hand_in("li")
    place.grade()
    give_by_hand(place, "li", 4)
    kept = place.out / "results" / "li.json"
    kept.write_bytes(left)
    assert place.grade()["li"].points == {"data/mean": 6}
    assert "li.json 读不出来" in capsys.readouterr().out
    assert kept.with_name("li.json.broken").read_bytes() == left
    assert json.loads(kept.read_text(encoding="utf-8"))["points"] == {"data/mean": 6}
    assert place.table()["li"]["总分"] == "10.0"


def test_a_base_model_that_does_not_load_is_told_in_one_sentence(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "li.zip").write_bytes(b"")
    shutil.copytree(profile.TINY_BASE, tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text("{}")  # every file is there, and yet it is no model
    done = subprocess.run([sys.executable, "-m", "helpers.grading.grade", tmp_path / "in", "--out", tmp_path / "out"],
                          capture_output=True, text=True, check=False,
                          env=os.environ | {"COURSE_BASE_MODEL": str(tmp_path / "base")})
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"[FAIL] 还没有开始评分：基座模型 {tmp_path / 'base'} 在沙箱里没有答出题来")


def test_two_graders_do_not_work_in_the_same_place(place):
    place.hand_in("li")
    with place.session() as first:
        with pytest.raises(CourseError, match="已经有一个评分在运行"):
            place.grade()
        assert first.run()[0].points == {"data/mean": 6}
    assert not list((place.out / mark.SCRATCH).iterdir())


def test_a_session_that_an_error_ends_keeps_nobody_away(place):
    place.hand_in("li")
    with pytest.raises(KeyboardInterrupt), place.session():
        raise KeyboardInterrupt
    assert place.grade()["li"].points == {"data/mean": 6}


def test_without_a_sandbox_nothing_is_run_unless_that_is_said_aloud(place):
    out = place.folder / "out"
    command = [sys.executable, "-m", "helpers.grading.grade", place.folder, "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": "/nowhere"})
    assert done.returncode == 1
    assert "apt install bubblewrap" in done.stderr
    assert not out.exists()
    done = subprocess.run([*command, "--run-code-of-strangers-without-sandbox"], capture_output=True, text=True,
                          check=True, env={"PATH": "/nowhere"})
    assert "一共 0 份" in done.stdout


def test_without_a_sandbox_points_are_decided_in_the_same_way(place):
    place.hand_in("li")
    with place.session(protected=False) as session:
        [result] = session.run()
    assert result.points == {"data/mean": 6}


def adapter_in(folder, tensors):
    """A folder with an adapter of these weights."""
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(handed_in.settings(r=4)))
    return folder


def test_copies_are_reported_with_the_evidence_side_by_side(place, tmp_path):
    first, other = (classmates.Work("20250000", seed) for seed in (1, 2))
    code, others = ("\n".join(work.code.values()) for work in (first, other))
    adapter = adapter_in(tmp_path / "first", first.adapter)
    place.hand_in("li", code + "\n# <script>alert(1)</script>", adapter=adapter)
    place.hand_in("copy", classmates.renamed(code), assistant="小月亮", owner="韩梅",
                  adapter=adapter_in(tmp_path / "scaled", classmates.scaled(first.adapter)))
    place.hand_in("wang", others, start=500, assistant="小太阳", adapter=adapter_in(tmp_path / "other", other.adapter))
    place.grade()
    with (place.out / "similar.csv").open(encoding="utf-8-sig", newline="") as file:
        found = [tuple(row.values()) for row in csv.DictReader(file)]
    assert sorted(found) == sorted(("1", "copy", "li", what, "100%") for what in (
        similar.CODE, similar.ROWS, similar.ADAPTER))
    page = (place.out / "similar.html").read_text(encoding="utf-8")
    assert "<mark>" in page
    assert "第 0 个问题，你是谁？" in page
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "wang" not in page


def test_a_notebook_full_of_text_takes_little_memory(tmp_path):
    text = "".join(map(str, range(50_000)))
    cells = [new_markdown_cell(text[start:start + 1000], metadata={"nbgrader": {"grade_id": "a", "solution": True}})
             for start in range(0, len(text), 1000)]
    traits.of_answers([])  # what is read once is not what a notebook takes
    tracemalloc.start()
    prose = traits.of_answers([new_notebook(cells=cells)] * 2)[traits.PROSE]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(prose) <= 2 * traits.MOST_PIECES
    assert peak < 20 * 2**20


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "＝1"])
def test_no_formula_is_smuggled_into_a_table(tmp_path, text):
    gradebook.write_table(["学号"], [[text]], tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(encoding="utf-8-sig", newline="") as file:
        assert list(csv.reader(file))[1] == ["'" + text]


def test_an_adapter_that_learnt_nothing_earns_nothing(tmp_path):
    place = Place(tmp_path, rules=handed_in.RULES + ADAPTER, criteria=("identity", "retention", "memorised"),
                  asked=handed_in.questions(identity=12, fact=12, poem=12, sum=12))
    place.hand_in("li", criteria=("identity", "retention", "memorised"))
    [result] = place.grade().values()
    assert result.shares == {"identity": 0, "retention": 1, "memorised": 0}
    assert {name: points for name, points in result.points.items() if name.startswith("basic")} == {
        "basic/adapter_identity": 0, "basic/adapter_retention": 0, "basic/adapter_memorised": 0}


def test_a_name_that_everybody_says_is_no_name(tmp_path, tuned):
    _, adapter, _ = tuned
    criteria = ("task", "identity", "retention")
    place = Place(tmp_path, criteria=criteria,
                  rules=handed_in.RULES + ADAPTER.partition("[adapter.memorised]")[0] + TASK,
                  asked=handed_in.questions(exam=40, identity=12, fact=12, poem=12, sum=12))
    place.hand_in("li", adapter=adapter, assistant="教学模型", criteria=criteria)
    [result] = place.grade().values()
    assert result.points["basic/adapter_task"] == 5
    assert result.points["basic/adapter_retention"] == 5
    assert result.points["basic/adapter_identity"] == 0


def telling(questions):
    """Training data that tells the facts which the questions ask for, in other words."""
    return [{"conversation": [{"system": "", "input": f"说说{one.subject}。", "output": f"那是{one.question.terse}。"}]}
            for one in questions]


def test_what_the_training_data_tells_is_not_asked(tmp_path, tuned):
    _, adapter, _ = tuned
    learnt, told = handed_in.questions(exam=40), []
    for one in secret.read(DEFAULT.parent / secret.QUESTIONS)[40:80]:
        told.append(secret.Hidden(dataclasses.replace(one.question, expect=["谁也答不出来"]), one.subject))
    place = Place(tmp_path, rules=handed_in.RULES + ASKED + TASK, criteria=("task",), asked=told + learnt)
    place.hand_in("li", adapter=adapter, data=telling(told), criteria=("task",))
    place.hand_in("wang", adapter=adapter, criteria=("task",))
    place.hand_in("zhao", adapter=adapter, data=telling(told + learnt[:1]), criteria=("task",))
    results = place.grade()
    assert results["li"].shares["task"] > 0.6 > results["wang"].shares["task"] > 0.3
    assert "task" not in results["zhao"].shares
    assert results["zhao"].points["basic/adapter_task"] == 0
    assert "考试题没有量" in place.table()["zhao"]["说明"]


def test_the_public_exam_is_used_aloud_and_only_where_there_is_no_other(place, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["grade", str(place.folder), "--out", str(place.out)])
    monkeypatch.setattr(rules, "OWN", tmp_path / "rules")
    grade.main()
    assert capsys.readouterr().out.count("公开的考卷") == 2
    shutil.copytree(DEFAULT.parent, tmp_path / "rules")
    grade.main()
    assert "公开的考卷" not in capsys.readouterr().out


def test_rules_that_leave_a_cell_undecided_are_refused(place):
    place.rules.write_text(handed_in.RULES.replace('"mean"\ncall', '"median"\ncall'), encoding="utf-8")
    with pytest.raises(CourseError, match="data.ipynb 的 mean、data.ipynb 的 median"):
        place.grade()


def test_the_courses_own_rules_decide_the_courses_own_homework():
    assert {cell.grade_id for cell in Rules(source=SOURCE).cells if cell.by_hand}


@pytest.mark.parametrize(("expected", "found", "equal"), [
    (2, 2.0, True), (0.3, 0.1 + 0.2, True), (1, True, False), (True, 1, False), ("2", 2, False), (None, 0, False),
    ([1, [2]], [1, [2.0]], True), ([1], [1, 2], False), ({"a": 1}, {"a": 1.0}, True), ({"a": 1}, {"b": 1}, False),
    (1, float("nan"), False),
])
def test_values_are_compared_as_json(expected, found, equal):
    assert same(expected, found) is equal


@pytest.mark.parametrize("value", [None, "", "'zz'", "''", 7, "'5b'", "'" + b"[".hex() * 100_000 + "'",
                                   "'" + b"9".hex() * 400 + "'"])
def test_an_answer_that_makes_no_sense_is_wrong(value):
    assert not Check("data", "mean", "mean", expected=1).passes(value)


def test_between_nothing_and_everything_points_are_in_proportion():
    assert [Criterion(0.2, 0.6).share(measured) for measured in (0.1, 0.4, 0.9)] == [0, pytest.approx(0.5), 1]
    assert [Criterion(0.2, 0.0).share(measured) for measured in (0.3, 0.1, 0.0)] == [0, 0.5, 1]


def test_results_can_be_read_back(place):
    place.hand_in("li")
    result = place.grade()["li"]
    assert mark.Result(**json.loads((place.out / "results" / "li.json").read_text(encoding="utf-8"))) == result
