"""The lessons as students really go through them: left half-way, and then, by nbval, begun again from the top.

nbval's pass is the whole run: it starts with an empty workspace, and compares what every cell prints.
"""
import nbformat
import pytest
from nbclient import NotebookClient

from helpers.machine import lessons
from tests import course

LEAVES_SOMETHING = lessons.core_lessons(["01", "03", "06", "08", "09", "10", "11"])  # in the workspace, half-way


def made(place):
    """When each file of the workspace was last written."""
    return {path: path.stat().st_mtime_ns for path in (place / "workspace").rglob("*") if path.is_file()}


@pytest.mark.skipif("not config.option.nbval", reason="the other half is nbval's: run it with --nbval notebooks")
@pytest.mark.parametrize("lesson", LEAVES_SOMETHING, ids=lambda path: path.stem)
def test_a_lesson_left_half_way_can_be_begun_again(lesson, walked):
    """The kernel is killed in the middle; nbval then goes through the whole lesson with what that has left."""
    before = made(walked)
    notebook = nbformat.read(lesson, as_version=4)
    notebook.cells = notebook.cells[:len(notebook.cells) // 2]
    with course.imported_from(walked):
        NotebookClient(notebook, timeout=None, shutdown_kernel="immediate",
                       resources={"metadata": {"path": walked / "notebooks"}}).execute()
    assert made(walked) != before, "half-way nothing is left, so that nothing is begun again"
