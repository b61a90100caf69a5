"""The lessons on a base of one's own, in a course of the tests' own, with little to learn and few questions to ask."""
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.data.split import write_samples
from helpers.machine import lessons
from helpers.machine.files import replaced
from tests import course, finetune

LESSONS = lessons.core_lessons(["00", "03", "04", "05", "06", "07", "08", "10"])
THIRD = 3  # of the samples to train on: still enough for two checkpoints
HELD_OUT = 60
FEWER = {"helpers/judge/compare.py": ("PROBES_OF_EACH_KIND = 120", "PROBES_OF_EACH_KIND = 20")}


@contextmanager
def begun(place, write_base):
    """A course in which lessons 01 and 02 are done, with a base that is written there."""
    course.begin(place)
    for file, (usual, fewer) in FEWER.items():
        _replace(place / file, usual, fewer)
    train, test = finetune.split_exam()
    write_samples(train + test, place / "workspace" / "exam.jsonl")
    write_samples(finetune.training_rows()[::THIRD], place / "workspace" / "train.jsonl")
    write_samples(test[:HELD_OUT], place / "workspace" / "test.jsonl")
    base = write_base(place / "workspace" / "base" / write_base.__name__.removeprefix("write_"))
    with course.imported_from(place), pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_BASE_MODEL", str(base))
        yield place


def _replace(path, old, new):
    source = path.read_text(encoding="utf-8")
    assert old in source
    with replaced(path) as file:
        file.write(source.replace(old, new))


def run(lesson: Path, place: Path) -> None:
    """Runs a lesson in that course; raises where a cell does."""
    lessons.execute(place / "notebooks" / lesson.name, place / "executed")
