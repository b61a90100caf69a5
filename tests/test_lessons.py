import nbformat
import pytest

from helpers.machine import lessons


@pytest.fixture
def notebooks(tmp_path):
    sources = {"00_first": "print('一')", "01_second": "raise ValueError('数据不在这里')", "02_third": "1"}
    for name, source in sources.items():
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    (tmp_path / "appendix_a.ipynb").write_text("not a core lesson")
    return tmp_path


def test_lessons_run_in_order_with_a_line_each_and_say_where_the_results_are(notebooks, tmp_path, capsys):
    lessons.main(["00", "02"], notebooks, tmp_path / "executed")
    printed = capsys.readouterr().out
    assert printed.index("[1/2] 00_first … [OK]") < printed.index("[2/2] 02_third … [OK]")
    assert str(tmp_path / "executed") in printed
    [cell] = nbformat.read(tmp_path / "executed" / "00_first.ipynb", as_version=4).cells
    assert cell.outputs[0].text == "一\n"


def test_a_lesson_that_fails_stops_the_run_and_names_the_reason(notebooks, tmp_path, capsys):
    with pytest.raises(SystemExit, match="ValueError: 数据不在这里"):
        lessons.main([], notebooks, tmp_path / "executed")
    assert "[2/3] 01_second … [FAIL]" in capsys.readouterr().out
    assert (tmp_path / "executed" / "01_second.ipynb").exists()
    assert not (tmp_path / "executed" / "02_third.ipynb").exists()


def test_a_lesson_that_does_not_exist_is_named(notebooks, tmp_path):
    with pytest.raises(SystemExit, match="没有这样开头的课：42"):
        lessons.main(["42"], notebooks, tmp_path / "executed")


def test_every_lesson_tells_how_long_it_takes():
    times = lessons.times()
    assert len(times) == len(lessons.core_lessons([]))
    assert all("分钟" in time for time in times.values())
