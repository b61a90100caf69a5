"""A program that falls silent does not keep a lesson waiting for ever."""
import sys

import pytest

from helpers.machine import process


def program(text, **options):
    return process.lines([sys.executable, "-u", "-c", text], **options)


def test_a_program_that_says_nothing_any_more_is_ended_and_its_log_named(tmp_path):
    silent = program("print('装入', flush=True); import time; time.sleep(600)", log=tmp_path / "log", patience=3)
    assert next(silent) == "装入"
    with pytest.raises(process.Failed, match=r"3 秒里什么也没有说[\s\S]*log"):
        next(silent)
    assert (tmp_path / "log").read_text() == "装入\n"


def test_nobody_is_hurried_who_is_listened_to_slowly(tmp_path):
    """A server's output is not read while it is asked."""
    talking = program("for word in 'ab': print(word)", log=tmp_path / "log", patience=60)
    assert list(talking) == ["a", "b"]
