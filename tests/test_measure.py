"""What `make measure` promises, rehearsed with a tiny model: all but the card itself."""
import json
import os
import subprocess
import sys
from collections import namedtuple
from threading import Event

import psutil
import pytest

from helpers.machine import gpu_memory, measured
from helpers.machine.commands import CourseError
from helpers.train import disk
from tools import measure, tell_measured

GPU_ONLY = set(measure.ENGINES)
GB = 10**9


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """A measurement that was interrupted after its first step and begun again: the file then, what was done, the file,
    and where the models lay.
    """
    place, written = tmp_path_factory.mktemp("models") / "tiny", tmp_path_factory.mktemp("measured")
    interrupted = measure.measure(measure.TINY, place, written)
    next(interrupted)
    interrupted.close()
    [file] = written.iterdir()
    then = json.loads(file.read_text(encoding="utf-8"))
    done = dict(measure.measure(measure.TINY, place, written))
    return then, done, json.loads(file.read_text(encoding="utf-8")), place


def test_an_interrupted_measurement_goes_on_where_it_stopped(rehearsal):
    then, done, now, _ = rehearsal
    assert set(then["figures"]) == {"training"}
    assert now["figures"]["training"] == then["figures"]["training"]
    assert set(done) == set(measured.STEPS) - {"training"}


def test_every_step_has_figures_with_their_units_or_says_why_not(rehearsal):
    _, _, now, _ = rehearsal
    assert set(now["figures"]) == set(measured.STEPS)
    failed = {step: figures for step, figures in now["figures"].items() if "failed" in figures}
    if now["driver"] is None:
        assert failed == dict.fromkeys(GPU_ONLY, {"failed": "要 NVIDIA 显卡，这台机器没有"})
    for step in now["figures"].keys() - failed:
        for name, figure in now["figures"][step].items():
            assert figure["value"] > 0
            assert figure["unit"] == measured.FIGURES[name][0]


def test_a_training_is_told_beside_its_estimate_and_the_card_that_it_must_fit(rehearsal):
    training = rehearsal[2]["figures"]["training"]
    assert {"seconds", "speed", "estimated", "limit"} <= set(training)
    assert training["limit"] == {"value": 24, "unit": "GB"}


def test_the_file_says_on_what_and_with_what_was_measured(rehearsal):
    now = rehearsal[2]
    assert now["model"] == "tiny"
    assert now["versions"]["xtuner"] == "0.2.0"
    assert {"card", "gigabytes", "driver", "date", "seed"} <= set(now)


def test_nothing_is_left_of_a_measurement(rehearsal):
    assert not rehearsal[3].exists()
    assert not [child for child in psutil.Process().children(recursive=True) if "tools.measure" in child.cmdline()]


def test_what_a_missing_step_needs_is_done_again_and_nothing_else(tmp_path):
    figures = {step: {} for step in measured.STEPS}
    assert measure._to_do(figures, tmp_path) == []
    figures["xtuner_merge"] = {"failed": "why"}
    assert measure._to_do(figures, tmp_path) == ["training", "adapter", "xtuner_merge"]
    (tmp_path / "adapter").mkdir()
    assert measure._to_do(figures, tmp_path) == ["xtuner_merge"]


def test_figures_of_another_card_or_other_versions_are_not_gone_on_with(tmp_path):
    about = {"card": "A", "versions": {"torch": "2"}}
    file = tmp_path / "a.json"
    file.write_text(json.dumps(about | {"figures": {"peft": {}}}), encoding="utf-8")
    assert measure._figures(file, about) == {"peft": {}}
    assert measure._figures(file, about | {"versions": {"torch": "3"}}) == {}


def test_a_full_disk_is_told_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(measure.shutil, "disk_usage", lambda _: namedtuple("usage", "free")(GB))
    size = measure.SIZES["InternLM2.5-7B"]
    with pytest.raises(CourseError, match=f"磁盘不够：.*{disk.told(size.disk)}，只剩 1.0 GB"):
        measure._prepare(tmp_path, size)
    assert not list(tmp_path.iterdir())


def test_memory_is_that_of_our_programs_beyond_what_was_taken_before(tmp_path, monkeypatch):
    """nvidia-smi is a program, and here stands another in its place: it finds 5000 MiB taken."""
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 19000, 24000\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    looked = Event()
    monkeypatch.setattr(measure, "LOOKS", 0.05)
    used = gpu_memory.used
    monkeypatch.setattr(gpu_memory, "used", lambda: (looked.set(), used())[1])
    with measure._memory_watched(before=1000 * gpu_memory.MIB) as peaks:
        holder = subprocess.Popen([sys.executable, "-c", "held = b'x' * 2**28; print(1, flush=True); input()"],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        holder.stdout.readline()
        for _ in range(2):
            looked.clear()
            looked.wait()
        holder.communicate(b"\n")
    assert 2**28 < peaks["ram"] < 2**30
    assert peaks["gpu"] == 4000 * gpu_memory.MIB


def test_both_readmes_tell_what_was_measured():
    for language, path in tell_measured.READMES.items():
        text = path.read_text(encoding="utf-8")
        assert measured.markdown(language) in text
        assert tell_measured.told(text, language) == text, "python -m tools.tell_measured"


def test_where_nothing_was_measured_that_is_said(tmp_path):
    assert "还没有测过" in measured.markdown("中文", tmp_path)
    assert "Not measured yet" in measured.markdown("English", tmp_path)


def test_the_table_has_a_column_for_each_card_and_a_row_for_each_step(tmp_path):
    about = {"model": "InternLM2.5-7B", "gigabytes": 24, "date": "2026-11-26"}
    speed = {"gpu": {"value": 17.9, "unit": "GB"}, "speed": {"value": 1340.0, "unit": "tokens/s"}}
    (tmp_path / "a.json").write_text(json.dumps(about | {"card": "A", "figures": {
        "training": speed, "pytorch": {"failed": "显存不够：a | b"}}}), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(about | {"card": "B", "figures": {}}), encoding="utf-8")
    header, line, *rows = measured.markdown("中文", tmp_path).splitlines()
    assert header == "| InternLM2.5-7B，权重随机 | A, 24 GB (2026-11-26) | B, 24 GB (2026-11-26) |"
    assert {row.count("|") for row in (line, *rows)} == {4}
    assert len(rows) == len(measured.STEPS)
    assert rows[0].endswith("| 每秒 1,340 词元，显存 17.9 GB | 还没有测过 |")
    assert "没有测成：显存不够" in "".join(rows)
    assert "| 1,340 tokens/s, GPU 17.9 GB | not measured yet |" in measured.markdown("English", tmp_path)
