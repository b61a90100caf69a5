"""What needs much of the GPU's memory waits for it; nvidia-smi is a program, and here stands another in its place."""
import os
import subprocess
import sys
import threading

import pytest

from helpers.machine import gpu_memory, process, profile
from helpers.machine.commands import CourseError

GB = 10**9
SMI = """#!/bin/sh
case "$*" in
*memory.total*) cat {folder}/free; echo x >> {folder}/asked;;
*) cat {folder}/apps;;
esac
"""


@pytest.fixture
def card(tmp_path, monkeypatch):
    """A card of 24,000 MiB; gives what sets how much of it is free, and to whom the rest belongs."""
    (tmp_path / "nvidia-smi").write_text(SMI.format(folder=tmp_path))
    (tmp_path / "nvidia-smi").chmod(0o755)
    (tmp_path / "apps").touch()
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(gpu_memory, "PATIENCE", 0)

    def hold(free, *apps):
        (tmp_path / "free").write_text(f"{free}, 24000\n")
        (tmp_path / "apps").write_text("".join(f"{pid}, {used}\n" for pid, used in apps))
    hold(24000)
    return hold


@pytest.fixture
def notebook():
    """A process that Jupyter has started for a notebook."""
    started = subprocess.Popen(["sleep", "60"], env=os.environ | {
        "JPY_SESSION_NAME": "/home/me/course/notebooks/04_train_with_qlora.ipynb"})
    yield started.pid
    started.kill()
    started.wait()


def test_what_fits_into_the_free_memory_starts_at_once(card):
    gpu_memory.wait_for(14 * GB)


def test_an_open_notebook_that_holds_the_memory_is_named_with_its_process_and_what_to_do(card, notebook):
    card(8000, (notebook, 14800))
    told = rf"要 14.1 GB，只空着 8.4 GB.*笔记本 04_train_with_qlora.ipynb（进程 {notebook}，15.5 GB）.*修复：.*最后一格"
    with pytest.raises(CourseError, match=told):
        gpu_memory.wait_for(14.1 * GB)


def test_other_programs_are_named_the_largest_first_and_so_is_oneself(card):
    started = subprocess.Popen(["sleep", "60"], env={"PATH": os.defpath})
    card(8000, (started.pid, 3000), (os.getpid(), 12000), (2**22 + 1, 1000))
    with pytest.raises(CourseError, match=r"这个笔记本自己（.*）、sleep（.*）、别人的程序（"):
        gpu_memory.wait_for(14 * GB)
    started.kill()
    started.wait()


def test_a_container_that_sees_no_processes_says_so(card):
    card(8000)
    with pytest.raises(CourseError, match="占着的是看不见的程序"):
        gpu_memory.wait_for(14 * GB)


def test_memory_that_becomes_free_in_a_moment_is_waited_for(card, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_memory, "PATIENCE", 60)
    card(8000)

    def give_back():
        while not (tmp_path / "asked").exists():
            pass
        card(24000)
    threading.Thread(target=give_back).start()
    gpu_memory.wait_for(14 * GB)


def test_a_card_that_is_too_small_is_told_without_waiting(card, monkeypatch):
    monkeypatch.setattr(gpu_memory, "PATIENCE", 10**9)
    with pytest.raises(CourseError, match=r"要 30.0 GB，这块显卡一共只有 25.2 GB"):
        gpu_memory.wait_for(30 * GB)


@pytest.mark.parametrize("answer", ["exit 9", "echo '[N/A], [N/A]'", None])
def test_without_an_answer_of_nvidia_smi_nobody_waits(tmp_path, monkeypatch, answer):
    if answer:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.defpath}")
    gpu_memory.wait_for(10**15)


def test_a_program_that_needs_the_gpu_does_not_start_before_its_memory_is_free(card, tmp_path):
    program = [sys.executable, "-c", f"open({str(tmp_path / 'started')!r}, 'w')"]
    card(100)
    with pytest.raises(CourseError, match="显存不够"):
        list(process.lines(program, log=tmp_path / "log", gpu_bytes=GB))
    assert not (tmp_path / "started").exists()
    list(process.lines(program, log=tmp_path / "log"))
    assert (tmp_path / "started").exists()


def test_this_machine_waits_for_nothing_if_it_has_no_gpu():
    if profile.current().gpu is None:
        gpu_memory.wait_for(0)
