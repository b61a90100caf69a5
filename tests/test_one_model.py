"""In the courses that the tests walk through, a program that holds two models fails: no lesson ever does."""
import os
import shutil
import subprocess
import sys

import pytest

from helpers.machine import profile
from tests import course

LOAD = "AutoModelForCausalLM.from_pretrained(profile.TINY_BASE)"
BEGINNING = """
from transformers import AutoModelForCausalLM
from helpers.ask import models
from helpers.machine import profile
"""


@pytest.fixture
def run(tmp_path):
    """Runs a program as in a course of the tests' own."""
    shutil.copy(course.ONE_MODEL, tmp_path / "sitecustomize.py")
    environment = profile.environment() | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(profile.ROOT)])}

    def run(program):
        return subprocess.run([sys.executable, "-c", BEGINNING + program], capture_output=True, text=True,
                              env=environment, check=False)
    return run


def test_who_loads_a_model_while_another_lives_fails(run):
    ended = run(f"first = {LOAD}\nsecond = {LOAD}")
    assert ended.returncode == 1
    assert "two models: LlamaForCausalLM is loaded while" in ended.stderr


@pytest.mark.parametrize("program", [
    f"first = {LOAD}\ndel first\nsecond = {LOAD}",
    "first = models.load(profile.TINY_BASE)\nsecond = models.load(profile.TINY_BASE)",
    f"first = models.load(profile.TINY_BASE)\nmodels.release()\nsecond = {LOAD}",
])
def test_who_holds_one_at_a_time_does_not(run, program):
    ended = run(program)
    assert ended.returncode == 0, ended.stderr
