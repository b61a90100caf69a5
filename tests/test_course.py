"""The lessons as students really go through them: out of order, left half-way, and, by nbval afterwards, once more."""
import nbformat
import pytest
from nbclient import NotebookClient

from helpers import lessons, profile

LESSONS = lessons.core_lessons([])
NEEDS_ANOTHER = [path for path in LESSONS if path.name > "02"]


@pytest.fixture
def empty_course(tmp_path, monkeypatch):
    """The course as on the first day: without a workspace."""
    for name in ("helpers", "notebooks", "assets", "data"):
        (tmp_path / name).symlink_to(profile.ROOT / name)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("lesson", NEEDS_ANOTHER, ids=lambda path: path.stem)
def test_a_lesson_out_of_order_says_which_lesson_comes_first(lesson, empty_course):
    with pytest.raises(SystemExit, match=r"缺少 workspace/\S+：请先运行第 \d+ 课"):
        lessons.main([lesson.name], empty_course / "notebooks", empty_course / "executed")


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_left_half_way_can_be_begun_again(lesson, tmp_path):
    notebook = nbformat.read(lesson, as_version=4)
    notebook.cells = notebook.cells[:len(notebook.cells) // 2]
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": lesson.parent}}).execute()
    lessons.execute(lesson, tmp_path)
