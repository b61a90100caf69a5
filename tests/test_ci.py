"""What machines do with the course, and what they say when a package is missing."""
import json
import os
import shlex
import subprocess
import sys

import pytest
import yaml

from helpers.machine.profile import ROOT
from tests import conftest

PACKAGES = ["bubblewrap", "chromium", "fonts-wqy-microhei"]


def script(folder, user, apt_get):
    """What tools/test_packages.sh prints where nothing is installed, to this user, with this apt-get."""
    for name, body in {"id": f"echo {user}", "apt-get": apt_get}.items():
        if body:
            (folder / name).write_text(f"#!/bin/sh\n{body}\n")
            (folder / name).chmod(0o755)
    return subprocess.run(["/bin/bash", ROOT / "tools" / "test_packages.sh"], env={"PATH": str(folder)},
                          capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize(("user", "apt_get", "outcome"), [
    (0, "exit 0", "installed"),
    (0, "echo Reading; echo 'E: Unable to locate it'; exit 100", "not installed, apt-get says: E: Unable to locate it"),
    (0, None, "not installed, this system has no apt-get"),
    (1000, "exit 0", f"not installed, only root may do that: sudo {ROOT / 'tools' / 'test_packages.sh'}"),
])
def test_a_line_for_each_package_says_what_became_of_it_and_none_is_a_failure(tmp_path, user, apt_get, outcome):
    assert script(tmp_path, user, apt_get) == [f"{package}: {outcome}" for package in PACKAGES]


def test_where_a_package_is_missing_its_tests_are_skipped_and_the_summary_counts_them():
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_sandbox.py",
                           "-k", "disk or memory_is"], cwd=ROOT, env=os.environ | {"PATH": "/nowhere"},
                          capture_output=True, text=True, check=True)
    assert "NOT TESTED" in done.stdout
    assert "2 SKIPPED, needs the Debian package bubblewrap (tools/test_packages.sh installs it)" in done.stdout


def test_every_machine_calls_the_readmes_commands():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "course.yml").read_text(encoding="utf-8"))
    test, run = ([shlex.split(step["run"], comments=True) for step in workflow["jobs"][name]["steps"] if "run" in step]
                 for name in ("test", "run"))
    assert test[-2:] == [["sudo", "tools/test_packages.sh"], ["make", "test"]]
    assert run == [["make", "run"]]
    for job in workflow["jobs"].values():
        [version] = [step["with"]["python-version"] for step in job["steps"] if "with" in step]
        assert version == "3.11"
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert container["postCreateCommand"] == "sudo tools/test_packages.sh && make setup"
    assert ":3.11-" in container["image"]
    ours = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert ours[-2:] == ["tools/test_packages.sh", "make test"]


def test_whoever_needs_the_fine_tune_shares_its_worker(request):
    users = {item.path for item in request.session.items
             if {"tuned", "base_answers"} & {*getattr(item, "fixturenames", ())}}
    assert {conftest.group(path) for path in users} <= {conftest.TUNED}
