"""What is told of the disk is what the lessons write, for any base; nothing is deleted that a lesson still needs."""
import os
import shutil

import pytest

from helpers.deploy import gguf
from helpers.machine import profile
from helpers.machine.commands import CourseError
from helpers.train import disk, memory

GB = 10**9
TINY = memory.read_shape(profile.TINY_BASE)
INTERNLM2_5_7B = memory.Shape("internlm2", 4096, 14336, 32, 32, 8, vocab_size=92544, head_dim=128)


def sizes(shape):
    return {(item.lesson, item.what): item.size for item in disk.written(shape, laboratory_rank=16)}


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A workspace of the test's own."""
    monkeypatch.setattr(disk, "WORKSPACE", tmp_path / "workspace")
    monkeypatch.setattr(profile, "ROOT", tmp_path)
    return tmp_path / "workspace"


def put(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.truncate(path, size)


def test_a_training_writes_what_was_told_and_so_do_conversion_and_merge(tuned):
    folder, adapter, merged = tuned
    told = sizes(TINY)
    checkpoints = sum(file.stat().st_size for file in (folder / "work").glob("iter_*.pth"))
    assert checkpoints == pytest.approx(told["04", "最近的两个检查点"], rel=0.05)
    assert (adapter / "adapter_model.safetensors").stat().st_size == pytest.approx(told["05", "适配器"], rel=0.05)
    assert (merged / "model.safetensors").stat().st_size == pytest.approx(told["06", "合并后的模型"], rel=0.01)


def test_gguf_files_are_as_large_as_told(tmp_path):
    made = sum(file.stat().st_size for file in gguf.make(profile.TINY_BASE, tmp_path).values())
    assert made == pytest.approx(sizes(TINY)["10", "四种 GGUF"], rel=0.1)


def test_a_7b_needs_what_its_shape_says():
    told = sizes(INTERNLM2_5_7B)
    assert told["06", "合并后的模型"] == pytest.approx(15.48 * GB, rel=0.01)
    assert told["04", "最近的两个检查点"] == pytest.approx(2 * 1.89 * GB, rel=0.01)
    items = disk.written(INTERNLM2_5_7B, 16)
    most = disk.needed(items)
    assert max(item.size for item in items) < most < sum(item.size for item in items)


def test_the_most_that_lies_there_counts_what_is_still_needed_and_nothing_else():
    items = [disk.Written("04", "a", 1, "09", ""), disk.Written("06", "b", 10, "06", ""),
             disk.Written("10", "c", 5, "11", ""), disk.Written("作业", "d", 2, "作业", "")]
    assert disk.needed(items) == 11


def test_a_disk_without_room_stops_a_lesson_before_it_writes(workspace, monkeypatch, capsys):
    usage = shutil.disk_usage(workspace.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**6))
    with pytest.raises(CourseError, match="磁盘不够：还要写 .* MB，只剩 1 MB。修复：.*helpers.train.disk"):
        disk.check("06")
    assert "这一课要写" in capsys.readouterr().out
    put(workspace / "merged" / "model.safetensors", 40 * 10**6)  # what lies there already is not written again
    put(workspace / "tmp0" / "model.safetensors", 40 * 10**6)
    disk.check("06")


def test_only_what_no_later_lesson_needs_is_offered_and_deleted(workspace, capsys):
    for path in ("training/iter_1.pth", "overfit/a/iter_1.pth", "merged/model.safetensors", "adapter/a.safetensors"):
        put(workspace / path, 10**6)
    disk.offer("09")
    offered = capsys.readouterr().out
    assert "workspace/training" in offered
    assert "workspace/overfit" in offered
    assert "merged" not in offered
    assert (workspace / "training").exists()
    disk.delete("09")
    assert sorted(path.name for path in workspace.iterdir()) == ["adapter", "merged"]
    disk.delete("11")
    assert [path.name for path in workspace.iterdir()] == ["adapter"]


def test_nothing_of_the_homework_is_deleted_before_it_is_done(workspace):
    put(workspace / "homework" / "s1" / "training" / "iter_1.pth", 10)
    disk.delete("11")
    assert (workspace / "homework" / "s1" / "training").exists()


@pytest.mark.parametrize(("size", "words"), [(15.48e9, "15.5 GB"), (31.6e6, "32 MB"), (0, "0 MB")])
def test_a_size_is_told_so_that_it_can_be_read(size, words):
    assert disk.told(size) == words
