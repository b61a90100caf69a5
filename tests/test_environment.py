import re
import subprocess
import sys

import pytest
import yaml
from packaging.requirements import Requirement

from helpers.machine import environment
from helpers.machine.profile import ROOT


def chosen():
    lines = (ROOT / "requirements.in").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def requirement(line):
    name, _, version = line.split("#")[0].strip().partition("==")
    return name, version


def test_every_version_we_chose_is_the_one_in_the_lock():
    locked = environment.locked()
    for name, version in map(requirement, chosen()):
        assert name in locked
        assert not version or locked[name] == version


def test_every_choice_comes_with_its_reason():
    assert all(line.partition("#")[2].strip() for line in chosen())


def test_conda_installs_the_same_lock_on_the_same_python():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *packages, pip = conda["dependencies"]
    assert "python=3.11" in packages
    assert pip == {"pip": ["-r requirements.lock"]}
    assert conda["name"] in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_what_is_installed_is_the_lock():
    different = [environment.line(*row) for row in environment.versions() if row[1] != row[2]]
    assert different == []


def test_pip_check_reports_exactly_the_overrides_we_chose():
    overrides = (ROOT / "overrides.txt").read_text(encoding="utf-8").splitlines()
    chosen = {line.name: line.specifier for line in map(Requirement, [line for line in overrides if line[:1] != "#"])}
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    complaint = re.compile(r"(\S+) \S+ (?:requires|has requirement) ([\w-]+).*?(?:, but you have \S+ (.+))?\.")
    found = [complaint.fullmatch(line).groups() for line in done.stdout.splitlines()]
    assert sorted(name for _, name, _ in found) == sorted(chosen)
    assert {name for complainer, name, _ in found if complainer == "xtuner"} == {"bitsandbytes"}
    assert all(version in chosen[name] for _, name, version in found if version)


@pytest.mark.parametrize(("found", "verdict", "mend"), [
    ("4.48.0", "[OK]", ""),
    ("4.49.0", "[FAIL]", "pip install --no-deps transformers==4.48.0"),
    (None, "[FAIL]", "pip install --no-deps transformers==4.48.0"),
])
def test_a_package_that_differs_is_named_with_its_mend(found, verdict, mend):
    line = environment.line("transformers", "4.48.0", found)
    assert line.startswith(verdict)
    assert mend in line
