"""tools/setup.sh, run for real in a small copy of the project whose lock holds one small package."""
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from helpers.machine.profile import ROOT


@pytest.fixture
def project(tmp_path):
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "setup.sh", tmp_path / "tools")
    (tmp_path / "requirements.lock").write_text("toolz==1.0.0\n")
    return tmp_path


def setup(project, **environment):
    return subprocess.run(["tools/setup.sh", ".venv"], cwd=project, capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHON": sys.executable, **environment})


def installed(project):
    return (project / ".venv" / "lib" / "python3.11" / "site-packages" / "toolz" / "__init__.py").exists()


def test_the_second_call_does_nothing(project):
    assert setup(project).returncode == 0
    assert installed(project)
    made = (project / ".venv" / "pyvenv.cfg").stat().st_mtime_ns
    again = setup(project, PYTHON="/nowhere")
    assert (again.returncode, again.stderr) == (0, "")
    assert (project / ".venv" / "pyvenv.cfg").stat().st_mtime_ns == made


def test_a_killed_set_up_is_repaired_by_the_next_call(project):
    process = subprocess.Popen(["tools/setup.sh", ".venv"], cwd=project, start_new_session=True,
                               stderr=subprocess.DEVNULL, env={**os.environ, "PYTHON": sys.executable})
    while not (project / ".venv").exists():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not installed(project)
    assert setup(project).returncode == 0
    assert installed(project)


def test_a_changed_lock_is_installed(project):
    assert setup(project).returncode == 0
    (project / "requirements.lock").write_text("toolz==0.12.1\n")
    assert setup(project).returncode == 0
    assert (project / ".venv/lib/python3.11/site-packages/toolz-0.12.1.dist-info").exists()


def failure(done, words):
    assert done.returncode == 1
    verdict, mend = done.stderr.splitlines()[-2:]
    assert verdict.startswith("[FAIL]")
    assert words in verdict
    assert "怎么办：" in mend


@pytest.mark.parametrize("python", ["/nowhere/python3.11", "/bin/false"])
def test_a_wrong_python_is_one_sentence(project, python):
    failure(setup(project, PYTHON=python), "需要 Python 3.11")


def test_a_full_disk_is_told_before_anything_starts(project, tmp_path_factory):
    tools = tmp_path_factory.mktemp("bin")
    (tools / "df").write_text("#!/bin/sh\necho header\necho fs 100 99 1048576 99% /\n")
    (tools / "df").chmod(0o755)
    failure(setup(project, PATH=f"{tools}:{os.environ['PATH']}"), "只有 1 GB")
    assert not (project / ".venv").exists()


def test_no_network_is_one_sentence_and_leaves_nothing_half_made(project):
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1",
               "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": ""}
    failure(setup(project, **nowhere), "下载不到 toolz==1.0.0")
    assert not (project / ".venv").exists()
