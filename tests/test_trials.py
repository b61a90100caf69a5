import os
import threading
import time

import pytest

from helpers.data.split import read_samples
from helpers.machine.process import Failed
from helpers.train import trials
from helpers.train.runs import Progress
from helpers.train.trials import Trial
from tests import finetune

SAMPLES = [{"conversation": [{"system": "", "input": "你是谁？", "output": "我是书童。"}]}]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Lesson 03's config."""
    path = tmp_path_factory.mktemp("config") / "assistant.py"
    finetune.write_config(path, "train.jsonl")
    return path


class Counted:
    """Stands in for a training, and counts how many go on at the same time."""

    def __init__(self):
        self.now = self.most = self.stopped = 0
        self.threads = set()
        self.lock = threading.Lock()

    def __call__(self, config, folder, threads):
        with self.lock:
            self.threads.add(threads)
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            for step in range(1, 4):
                time.sleep(0.02)
                yield Progress(step, 3, 1.0, "0:00:00")
                if config.stem == "broken":
                    raise Failed("没有学成")
        except GeneratorExit:
            self.stopped += 1
        finally:
            with self.lock:
                self.now -= 1


def trial(name):
    return Trial(name, SAMPLES, {"lr": "1e-3"})


def test_a_trial_is_lesson_03s_config_with_its_own_data_and_changes(source, tmp_path):
    config = trials.prepare(trial("甲"), tmp_path, source=source)
    text = config.read_text(encoding="utf-8")
    assert read_samples(tmp_path / "甲.jsonl") == SAMPLES
    assert f"alpaca_en_path = {str(tmp_path / '甲.jsonl')!r}\n" in text
    assert "\nlr = 1e-3\n" in text
    changed = set(text.splitlines()) - set(source.read_text(encoding="utf-8").splitlines())
    assert len(changed) == 2


@pytest.mark.parametrize("at_once", [1, 2])
def test_no_more_than_a_bounded_number_train_at_once(at_once, source, tmp_path, monkeypatch):
    counted = Counted()
    monkeypatch.setattr(trials, "train", counted)
    runs = trials.train_trials([trial(name) for name in "甲乙丙丁"], tmp_path, source=source, at_once=at_once)
    assert counted.most == at_once
    assert counted.threads == {max(1, os.cpu_count() // at_once)}
    assert {name: run.folder for name, run in runs.items()} == {name: tmp_path / name for name in "甲乙丙丁"}


def test_a_trial_that_fails_is_told_and_the_others_are_stopped(source, tmp_path, monkeypatch):
    counted = Counted()
    monkeypatch.setattr(trials, "train", counted)
    with pytest.raises(Failed, match="没有学成"):
        trials.train_trials([trial("broken"), *map(trial, "甲乙丙丁")], tmp_path, source=source, at_once=2)
    assert counted.now == 0
    assert counted.stopped


def test_without_lesson_03_it_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="第 3 课"):
        trials.prepare(trial("甲"), tmp_path, source=trials.profile.ROOT / "workspace" / "config" / "no_such.py")
