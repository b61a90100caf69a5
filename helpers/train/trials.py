"""Many small trainings: each with its own data and changes of lesson 03's config, a bounded number at once."""
import os
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from helpers.data.split import write_samples
from helpers.machine import profile
from helpers.machine.files import replaced
from helpers.train import config
from helpers.train.runs import CONFIG, Run, train

TRIALS = profile.ROOT / "workspace" / "overfit"


@dataclass(frozen=True)
class Trial:
    """A training by name: what it learns from, and what it changes in the config."""

    name: str
    samples: list[dict] = field(repr=False)
    changes: dict[str, str]


def prepare(trial: Trial, folder: str | Path = TRIALS, *, source: str | Path = CONFIG) -> Path:
    """Writes a trial's data and config into the folder and gives the config's path."""
    data, config_path = Path(folder, f"{trial.name}.jsonl"), Path(folder, f"{trial.name}.py")
    write_samples(trial.samples, data)
    text = profile.made_by("第 3 课", Path(source)).read_text(encoding="utf-8")
    with replaced(config_path) as file:
        file.write(config.edit(text, {"alpaca_en_path": repr(str(data))} | trial.changes))
    return config_path


def train_trials(trials: list[Trial], folder: str | Path = TRIALS, *, source: str | Path = CONFIG,
                 at_once: int | None = None) -> dict[str, Run]:
    """Trains what is not trained yet, each trial in a process of its own, and gives the Run of each by name."""
    at_once = at_once or profile.current().trainings_at_once
    threads = max(1, os.cpu_count() // at_once)  # more threads than cores hinder each other
    configs = {trial.name: prepare(trial, folder, source=source) for trial in trials}
    stop = threading.Event()
    with ThreadPoolExecutor(at_once) as pool:
        work = {pool.submit(_train, path, threads, stop): name for name, path in configs.items()}
        try:
            for number, done in enumerate(as_completed(work), 1):
                print(f"[{number}/{len(work)}] {work[done]}：{done.result()}", flush=True)
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return {name: Run(path.with_suffix("")) for name, path in configs.items()}


def _train(path, threads, stop):
    """Trains a config into the folder of its name, until told to stop; what came of it in words."""
    last = None
    for progress in train(path, path.with_suffix(""), threads):
        last = progress
        if stop.is_set():
            break
    return f"{last.step} 步，损失 {last.loss:.3f}" if last else "已经训练过，没有重复"
