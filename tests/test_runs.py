"""Lesson 04's promises, through the real XTuner: the truth about the end, and nothing lost by an interruption."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from helpers.machine import process, profile
from helpers.machine.commands import CourseError
from helpers.train import runs
from tests import finetune, forked

SAVE_EVERY = 10
SHORT = {"save_steps": str(SAVE_EVERY), "evaluation_freq": "20", "max_epochs": "1", "max_length": "128",
         "warmup_ratio": "0.1"}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A config that trains in some thirty steps."""
    folder = tmp_path_factory.mktemp("config")
    finetune.write_samples(finetune.training_rows()[:300], folder / "train.jsonl")
    finetune.write_config(folder / "config.py", folder / "train.jsonl", SHORT)
    return folder / "config.py"


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    """The same training without any interruption."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    seen = list(runs.train(config, folder))
    return runs.Run(folder), seen


def trainings_in(folder):
    """The processes that train into a folder."""
    pids = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "xtuner.tools.train" in words and str(folder) in words:
            pids.append(int(entry.parent.name))
    return pids


def wait_until(done, seconds=60):
    deadline = time.time() + seconds
    while not done():
        assert time.time() < deadline
        time.sleep(0.05)


def test_progress_names_every_tenth_step_and_every_save(undisturbed):
    run, seen = undisturbed
    assert [p.step for p in seen if not p.saved] == list(run.scalars("loss"))
    assert [p.step for p in seen if p.saved][:2] == [SAVE_EVERY, 2 * SAVE_EVERY]
    assert len(run.checkpoints()) == 2
    assert all(answer and "<|im" not in answer for answer in run.answers()[2 * SAVE_EVERY].values())


def train_and_kill(config, folder, checkpoint):
    """Trains until a checkpoint begins to appear, and kills the training in that moment."""
    for progress in runs.train(config, folder):
        if progress.saved and folder / f"iter_{progress.step}.pth" == checkpoint:
            while not checkpoint.exists():
                pass
            os.kill(*trainings_in(folder), signal.SIGKILL)


def test_a_training_killed_while_it_saves_goes_on_to_the_same_losses(config, undisturbed, tmp_path):
    folder = tmp_path / "run"
    checkpoint = folder / f"iter_{2 * SAVE_EVERY}.pth"
    with pytest.raises(process.Failed, match="SIGKILL"):
        train_and_kill(config, folder, checkpoint)
    if runs.is_whole(checkpoint):  # the disk was faster than we
        os.truncate(checkpoint, checkpoint.stat().st_size // 2)
    assert list(runs.Run(folder).checkpoints()) == [SAVE_EVERY]
    first, *_ = runs.train(config, folder)
    assert first.step == 2 * SAVE_EVERY
    assert runs.Run(folder).scalars("loss") == undisturbed[0].scalars("loss")
    assert list(runs.Run(folder).checkpoints()) == list(undisturbed[0].checkpoints())


def test_to_stop_listening_ends_the_training_and_loses_no_checkpoint(config, tmp_path):
    folder = tmp_path / "run"
    for progress in runs.train(config, folder):
        if progress.step > SAVE_EVERY:
            assert trainings_in(folder)
            break
    assert not trainings_in(folder)
    assert SAVE_EVERY in runs.Run(folder).checkpoints()


def test_a_killed_kernel_takes_its_training_along(config, tmp_path):
    folder = tmp_path / "run"
    kernel = subprocess.Popen([sys.executable, "-m", "helpers.train.runs", config, folder], env=profile.environment(),
                              stdout=subprocess.DEVNULL)
    wait_until(lambda: trainings_in(folder))
    with pytest.raises(CourseError, match="已经有一个训练在运行"):
        next(runs.train(config, folder))
    kernel.kill()
    wait_until(lambda: not trainings_in(folder))


def test_a_training_without_evaluation_questions_is_watched_to_its_end(tmp_path):
    finetune.write_samples(finetune.training_rows()[:120], tmp_path / "train.jsonl")
    finetune.write_config(tmp_path / "quiet.py", tmp_path / "train.jsonl", SHORT)
    with (tmp_path / "quiet.py").open("a", encoding="utf-8") as config:
        config.write("custom_hooks = []\n")
    run = runs.watch(tmp_path / "quiet.py", tmp_path / "run")
    assert SAVE_EVERY in run.checkpoints()
    assert run.answers() == {}


def test_a_finished_training_is_not_repeated(config, undisturbed, capsys):
    run, _ = undisturbed
    before = (run.folder / "training.log").read_bytes()
    assert runs.watch(config, run.folder).checkpoints() == run.checkpoints()
    assert (run.folder / "training.log").read_bytes() == before
    assert "没有重复" in capsys.readouterr().out


def test_another_config_trains_anew_and_keeps_the_old_training(config, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "iter_10.pth").write_bytes(b"precious")
    for _ in runs.train(config, folder):
        break
    assert (tmp_path / "run.1" / "iter_10.pth").read_bytes() == b"precious"


def test_xtuner_itself_still_hides_its_failures(tmp_path):
    done = subprocess.run(["xtuner", "train", "nothing.py"], env=profile.environment(), cwd=tmp_path,
                          capture_output=True, check=False)
    assert done.returncode == 0, "xtuner tells the truth now: lesson 04 need not say otherwise"


BAD_CONFIGS = {
    "no such data": ({"alpaca_en_path": '"/nowhere/train.jsonl"'}, "找不到数据 /nowhere/train.jsonl"),
    "no such model": ({"pretrained_model_name_or_path": '"/nowhere/model"'}, "模型文件夹不对"),
    "a hub's name": ({"pretrained_model_name_or_path": '"internlm/internlm2_5-7b-chat"'}, "模型文件夹不对"),
    "no such template": ({"prompt_template": "PROMPT_TEMPLATE.internlm9_chat"}, "没有叫 internlm9_chat 的对话模板"),
    "too few steps": ({"warmup_ratio": "0.0001"}, "预热连一步也分不到"),
    "not Python": ({"lr": "oops"}, "配置不是正确的 Python"),
    "out of memory": ({"model.lora.r": "100_000_000"}, "内存或显存不够"),
}


def test_a_training_that_fails_raises_with_the_reason_and_keeps_its_whole_log(config, tmp_path):
    finetune.write_config(tmp_path / "bad.py", config.parent / "none.jsonl", SHORT)
    with pytest.raises(process.Failed, match=rf"找不到数据 .*none\.jsonl.*\n完整的日志：{tmp_path}/log"):
        process.run_xtuner("train", tmp_path / "bad.py", "--work-dir", tmp_path, log=tmp_path / "log")
    assert "Traceback" in (tmp_path / "log").read_text(encoding="utf-8")


def failure(config, folder, *arguments):
    """What a student is told when XTuner fails so."""
    printed, code = forked.run("train", config, "--work-dir", folder, *arguments, log=folder / "log")
    assert code
    return process.explain(printed, code)


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_failure_is_told_in_one_sentence_with_its_mend(name, config, tmp_path):
    changes, told = BAD_CONFIGS[name]
    finetune.write_config(tmp_path / "bad.py", config.parent / "train.jsonl", SHORT | changes)
    sentence = failure(tmp_path / "bad.py", tmp_path)
    assert told in sentence
    assert "修复：" in sentence


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_config_for_another_machine_is_told_in_one_sentence(config, tmp_path):
    source = config.read_text(encoding="utf-8").replace("from helpers.cpu import", "from xtuner.model import")
    (tmp_path / "gpu.py").write_text(source, encoding="utf-8")
    assert "不适合这台机器" in failure(tmp_path / "gpu.py", tmp_path)


@pytest.mark.parametrize("row", ['{"input": "你好", "output": "好"}', '{"conversation": [{"input": "你好"}'])
def test_a_bad_sample_is_told_in_one_sentence(row, tmp_path):
    (tmp_path / "bad.jsonl").write_text(f"{row}\n", encoding="utf-8")
    finetune.write_config(tmp_path / "bad.py", tmp_path / "bad.jsonl", SHORT)
    assert "数据里有坏样本" in failure(tmp_path / "bad.py", tmp_path)


def test_none_in_a_config_is_not_blamed_on_the_data(config, tmp_path):
    source = config.read_text(encoding="utf-8")
    (tmp_path / "none.py").write_text(f"{source}\nlast = (None)[0]\n", encoding="utf-8")
    sentence = failure(tmp_path / "none.py", tmp_path)
    assert "坏样本" not in sentence
    assert "'NoneType' object is not subscriptable" in sentence
    with pytest.raises(process.Failed, match="'NoneType' object is not subscriptable"):
        next(runs.train(tmp_path / "none.py", tmp_path / "run"))


def test_a_full_disk_is_told_in_one_sentence(config, tmp_path):
    (tmp_path / f"iter_{SAVE_EVERY}.pth").symlink_to("/dev/full")
    assert "磁盘满了" in failure(config, tmp_path)


def test_a_checkpoint_that_is_cut_short_is_told_in_one_sentence(config, undisturbed, tmp_path):
    *_, checkpoint = undisturbed[0].checkpoints().values()
    (tmp_path / "cut.pth").write_bytes(checkpoint.read_bytes()[:100_000])
    assert "检查点不完整" in failure(config, tmp_path, "--resume", tmp_path / "cut.pth")


def test_a_config_that_is_not_there_is_told_in_one_sentence(tmp_path):
    assert "找不到配置" in failure(tmp_path / "nothing.py", tmp_path)
    with pytest.raises(process.Failed, match="第 3 课"):
        next(runs.train(tmp_path / "nothing.py", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_gpu_without_memory_is_told_as_such():
    said = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ..."
    assert "显存不够" in process.explain(said, 1)
