"""Courses of the tests' own, so that no test runs a lesson in the workspace of whoever runs the tests."""
import shutil
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from nbval.plugin import IPyNbCell

from helpers.machine import lessons, profile

NOT_OURS = shutil.ignore_patterns(".*", "__pycache__", "workspace")
ONE_MODEL = Path(__file__).with_name("one_model.py")
HOMEWORK_NEEDS = ["01", "02", "03"]


def begin(folder):
    """The course as on the first day: a copy without a workspace, in which no program may hold two models."""
    place = shutil.copytree(profile.ROOT, folder, ignore=NOT_OURS, dirs_exist_ok=True)
    shutil.copy(ONE_MODEL, place / "sitecustomize.py")
    return place


@cache
def walked(config):
    """The course in which one run of pytest does its lessons, one after the other; it is gone when the run ends."""
    folder = tempfile.TemporaryDirectory(prefix="course-", ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    return begin(Path(folder.name))


@contextmanager
def imported_from(place):
    """Kernels and programs started meanwhile import a course's own helpers, and so work in its own workspace."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(place))
        yield


def ready_for_homework(place):
    """Does the lessons that the homework builds on, where they are not done."""
    if not (place / "workspace" / "config" / "assistant.py").exists():
        with imported_from(place):
            for lesson in lessons.core_lessons(HOMEWORK_NEEDS, place / "notebooks"):
                lessons.execute(lesson, place / "executed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    """nbval's kernels start in a course of the tests' own, too."""
    if not isinstance(item, IPyNbCell):
        return (yield)
    place = walked(item.config)
    if "homework" in item.path.parts:
        ready_for_homework(place)
    with imported_from(place), pytest.MonkeyPatch.context() as patch:
        patch.setattr(item.parent, "path", place / item.path.relative_to(profile.ROOT))
        return (yield)
