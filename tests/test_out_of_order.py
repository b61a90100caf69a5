"""Who opens a lesson before the one that it builds on is told which."""
import shutil

import pytest

from helpers.machine import lessons
from tests import course

NEEDS_ANOTHER = [path for path in lessons.core_lessons([]) if path.name > "02"]


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """A course that nobody has begun."""
    return course.begin(tmp_path_factory.mktemp("course"))


@pytest.fixture
def first_day(untouched):
    """The course as on the first day: without a workspace."""
    shutil.rmtree(untouched / "workspace", ignore_errors=True)
    with course.imported_from(untouched):
        yield untouched


@pytest.mark.parametrize("lesson", NEEDS_ANOTHER, ids=lambda path: path.stem)
def test_a_lesson_out_of_order_says_which_lesson_comes_first(lesson, first_day):
    with pytest.raises(SystemExit, match=r"缺少 workspace/\S+：请先运行第 \d+ 课"):
        lessons.main([lesson.name], first_day / "notebooks", first_day / "executed")
