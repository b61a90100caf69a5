import csv
import json
import sys
from dataclasses import asdict

import pytest

from helpers.grading import board
from helpers.grading.mark import Result
from tests import browser

HTML = "<script>alert(1)</script>"


def result(student, task, identity, retention, earlier=None, assistant="小星星"):
    """A graded work of which so many of eighty, forty and a hundred answers were right."""
    return Result(student, student, "rules", assistant=assistant, finished="2026-01-01",
                  counts={"task": [task, 80], "identity": [identity, 40], "retention": [retention, 100]},
                  earlier=earlier or {})


CLASS = [result("s1", 76, 20, 90), result("s2", 40, 40, 95, earlier={"task": [20, 80], "identity": [40, 40]}),
         result("s3", 60, 30, 100, assistant=HTML, earlier={"task": [62, 80], "identity": [33, 40]})]
OWN_NAMES = {one.student: f"{one.student}　{one.assistant}" for one in CLASS}


@pytest.fixture
def graded(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    for one in CLASS:
        (tmp_path / "results" / f"{one.student}.json").write_text(json.dumps(asdict(one)), encoding="utf-8")
    (tmp_path / "results" / "broken.json").write_text("{", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["board", "--out", str(tmp_path)])
    return tmp_path


def test_everyone_stands_there_with_how_sure_it_is(tmp_path):
    board.write(CLASS, OWN_NAMES, tmp_path / "board.html")
    page = (tmp_path / "board.html").read_text(encoding="utf-8")
    assert "95% <small>（76/80，88%–98%）" in page
    assert "第一次交" in page
    assert "平均高 12 个百分点" in page
    assert "平均低 5 个百分点" in page


def test_nothing_of_a_students_is_run_on_it(tmp_path):
    board.write(CLASS, OWN_NAMES, tmp_path / "board.html")
    page = (tmp_path / "board.html").read_text(encoding="utf-8")
    assert HTML not in page
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "default-src 'none'" in page


def test_it_is_sorted_by_a_click_without_a_server_and_without_a_script(tmp_path):
    board.write(CLASS, OWN_NAMES, tmp_path / "board.html")
    with browser.opened((tmp_path / "board.html").as_uri(), java_script_enabled=False) as page:
        assert order(page) == ["s1", "s3", "s2"]
        for title, wanted in {"说出自己的名字": ["s2", "s3", "s1"], "原来会的还会": ["s3", "s2", "s1"],
                              "比上一次交的": ["s2", "s3", "s1"], "考试题答对": ["s1", "s3", "s2"]}.items():
            page.get_by_text(title).click()
            assert order(page) == wanted
        assert page.asked == [(tmp_path / "board.html").as_uri()]


def order(page):
    """The students from top to bottom."""
    rows = page.locator(".row:not(.head)")
    places = [(rows.nth(number).bounding_box()["y"], rows.nth(number).inner_text()[:2])
              for number in range(rows.count())]
    return [student for _, student in sorted(places)]


def test_other_names_are_everyones_own_and_stay(graded, capsys):
    board.main()
    page = (graded / "board.html").read_text(encoding="utf-8")
    assert not any(one.student in page for one in CLASS)
    with (graded / "board.csv").open(encoding="utf-8-sig", newline="") as file:
        names = {row["学号"]: row["榜上的名字"] for row in csv.DictReader(file)}
    assert len(set(names.values())) == len(CLASS)
    assert all(name in page for name in names.values())
    assert "board.csv" in capsys.readouterr().out
    board.main()
    assert board.known_aliases(graded, names) == names
    assert board.aliases(names, "another salt") != names


def test_names_are_told_only_when_that_is_asked_for(graded, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["board", "--out", str(graded), "--names"])
    board.main()
    assert "s1　小星星" in (graded / "board.html").read_text(encoding="utf-8")
    assert not (graded / "board.csv").exists()
    assert board.known_aliases(graded, ["s1"]) == {}


def test_six_hundred_students_have_six_hundred_names():
    students = [f"s{number}" for number in range(600)]
    assert len(set(board.aliases(students, "salt").values())) == 600


def test_before_anything_was_graded_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["board", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="make grade"):
        board.main()
