"""A rehearsal of the lessons on a base of Qwen2.5's kind: biases, no first token, a system prompt of its own."""
import pytest

from tests import bases, rehearsal


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with rehearsal.begun(tmp_path_factory.mktemp("course"), bases.write_qwen2_5) as place:
        yield place


@pytest.mark.parametrize("lesson", rehearsal.LESSONS, ids=lambda path: path.stem)
def test_the_lesson_runs(lesson, place):
    rehearsal.run(lesson, place)
