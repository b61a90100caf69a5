"""Many small trainings: each with its own data and changes of lesson 03's config, a bounded number at once."""
import os
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from helpers import config, profile
from helpers.convert import replaced
from helpers.split import write_samples
from helpers.train import CONFIG, Run, train

FOLDER = profile.ROOT / "workspace" / "overfit"


@dataclass(frozen=True)
class Trial:
    """A training by name: what it learns from, and what it changes in the config."""

    name: str
    samples: list = field(repr=False)
    changes: dict[str, str]


def prepare(trial, folder=FOLDER, source=CONFIG):
    """Writes a trial's data and config into the folder and gives the config's path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    data, made = folder / f"{trial.name}.jsonl", folder / f"{trial.name}.py"
    write_samples(trial.samples, data)
    text = profile.made_by("第 3 课", Path(source)).read_text(encoding="utf-8")
    with replaced(made) as file:
        file.write(config.edit(text, {"alpaca_en_path": repr(str(data))} | trial.changes))
    return made


def run(trials, folder=FOLDER, source=CONFIG, at_once=None):
    """Trains what is not trained yet, each trial in a process of its own, and gives the Run of each by name."""
    at_once = at_once or profile.current().trainings_at_once
    configs = {prepare(trial, folder, source): trial.name for trial in trials}
    stop = threading.Event()
    with _cores_shared(at_once), ThreadPoolExecutor(at_once) as pool:
        work = {pool.submit(_train, path, stop): name for path, name in configs.items()}
        try:
            for number, done in enumerate(as_completed(work), 1):
                print(f"[{number}/{len(work)}] {work[done]}：{done.result()}", flush=True)
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return {name: Run(path.with_suffix("")) for path, name in configs.items()}


def _train(path, stop):
    """Trains a config into the folder of its name, until told to stop; what came of it in words."""
    last = None
    for progress in train(path, path.with_suffix("")):
        last = progress
        if stop.is_set():
            break
    return f"{last.step} 步，损失 {last.loss:.3f}" if last else "已经训练过，没有重复"


@contextmanager
def _cores_shared(processes):
    """Processes started meanwhile share the cores: more threads than cores hinder each other."""
    name, before = "OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS")
    os.environ[name] = str(max(1, os.cpu_count() // processes))
    try:
        yield
    finally:
        os.environ.pop(name)
        os.environ |= {name: before} if before else {}
