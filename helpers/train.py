"""Lesson 04: train with the real XTuner, watch it, stop it, and go on from the last whole checkpoint.

python -m helpers.train [CONFIG] [FOLDER]   checks the config, then trains into the folder.
"""
import argparse
import fcntl
import hashlib
import json
import re
import sys
import zipfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from tqdm import tqdm

from helpers import profile
from helpers.check import check
from helpers.convert import replaced
from helpers.process import Failed, explain, shown, xtuner_lines

CONFIG = profile.ROOT / "workspace" / "config" / "assistant.py"
FOLDER = profile.ROOT / "workspace" / "training"
RECORD = "run.json"
# A checkpoint is a pickle, which torch 2.6 reads only when told to; this one was written by this very training.
OWN_CHECKPOINT = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} 步{postfix}"
STEP = re.compile(r"Iter\(train\) \[ *(\d+)/(\d+)\].*eta: (\S+).*loss: ([\d.]+|nan|inf)")
EXCHANGE = re.compile(r"\|>user\n(.*?)<\|im_end\|>\n<\|im_start\|>assistant\n(.*?)(?:<\|im_end\|>)?\n\n", re.DOTALL)
SAVING = re.compile(r"Saving checkpoint at (\d+) iterations")


@dataclass(frozen=True)
class Progress:
    """How far a training is; `saved` tells that a checkpoint was begun at this step."""

    step: int
    steps: int
    loss: float
    eta: str
    saved: bool = False


@dataclass(frozen=True)
class Run:
    """What a training has left in its folder."""

    folder: Path

    def scalars(self, name):
        """A logged figure ("loss", "lr") by step; where a stretch was trained twice, the later one."""
        found = {}
        for path in sorted(self.folder.glob("*/vis_data/scalars.json")):
            for line in path.read_text(encoding="utf-8").splitlines():
                with suppress(json.JSONDecodeError):  # a killed training's last line
                    row = json.loads(line)
                    found[row["step"]] = row[name]
        return dict(sorted(found.items()))

    def answers(self):
        """What the model answered to the evaluation questions at every save: {step: {question: answer}}."""
        found = {}
        for path in sorted(self.folder.glob("*/vis_data/eval_outputs_iter_*.txt")):
            step = int(path.stem.rpartition("_")[2]) + 1  # XTuner counts from 0 here
            found[step] = dict(EXCHANGE.findall(path.read_text(encoding="utf-8")))
        return dict(sorted(found.items()))

    def checkpoints(self):
        """The whole checkpoints by step; one cut short while it was written is not among them."""
        found = {int(path.stem.removeprefix("iter_")): path for path in self.folder.glob("iter_*.pth")}
        return {step: found[step] for step in sorted(found) if is_whole(found[step])}


def is_whole(checkpoint):
    """Whether a checkpoint was written to its end: torch writes a zip, whose table of contents comes last."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError):
        return False


def train(config=CONFIG, folder=FOLDER):
    """Trains, or goes on from the last whole checkpoint, or finds the work done; yields a Progress as it goes.

    To stop listening is to stop the training. An older training of another config or data is renamed, never lost.
    """
    config, folder = Path(config), Path(folder)
    identity = _identity(config)
    with _alone(folder) as lock:
        before = _read_record(folder)
        if folder.exists() and before.get("identity") != identity:
            _set_aside(folder)
            before = {}
        if before.get("finished"):
            return
        _write_record(folder, {"identity": identity, "finished": False})
        yield from _listen(config, folder, lock)
        _write_record(folder, {"identity": identity, "finished": True})


def watch(config=CONFIG, folder=FOLDER):
    """Trains with a progress bar, prints the answers at every save, and gives the Run; a second call goes on."""
    run = Run(Path(folder))
    last = None
    with tqdm(file=sys.stdout, ncols=80, bar_format=BAR, delay=0.1) as bar:
        try:
            for last in train(config, folder):
                bar.total = last.steps
                left = f"　还要 {last.eta}" if last.step < last.steps else ""
                bar.set_postfix_str(f"损失 {last.loss:.3f}{left}", refresh=False)
                bar.update(last.step - bar.n)
                for question, answer in run.answers().get(last.step, {}).items() if last.saved else ():
                    bar.write(f"第 {last.step} 步　{question} → {answer}", file=sys.stdout)
        except KeyboardInterrupt:
            *_, kept = [0, *run.checkpoints()]
            bar.write(f"停下了。再运行一次，就从第 {kept} 步接着训练。", file=sys.stdout)
            raise
    if last is None:
        print(f"{shown(folder)} 已经训练完，没有重复。想重新训练，就先给它改个名。")
    return run


def _listen(config, folder, lock):
    """One process of XTuner, from the newest whole checkpoint if there is one; it keeps the lock while it lives."""
    run = Run(folder)
    whole = run.checkpoints()
    for path in set(folder.glob("iter_*.pth")) - set(whole.values()):
        print(f"{shown(path)} 没有写完，删掉了。")
        path.unlink()
    resume = []
    if whole:
        step, path = whole.popitem()
        print(f"从第 {step} 步接着训练（{shown(path)}）。")
        resume = ["--resume", path]
    last = None
    for line in xtuner_lines("train", config, "--work-dir", folder, *resume, log=folder / "training.log",
                             hold=[lock.fileno()], **OWN_CHECKPOINT):
        if found := STEP.search(line):
            step, steps, eta, loss = found.groups()
            last = Progress(int(step), int(steps), float(loss), eta)
            yield last
        elif last and (found := SAVING.search(line)):
            yield Progress(int(found[1]), last.steps, last.loss, last.eta, saved=True)


@contextmanager
def _alone(folder):
    """Holds the folder for one training at a time; the lock is the operating system's, so no crash leaves it behind."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failed(f"{shown(folder)} 里已经有一个训练在运行，在另一个笔记本或终端里。先等它结束。") from None
        yield lock


def _identity(config):
    """A fingerprint of what a training depends on: the config's text and the training data."""
    if not config.is_file():
        raise Failed(f"找不到配置 {shown(config)}：请先运行第 3 课，或者改正路径。")
    try:
        files = Config.fromfile(config).train_dataloader.dataset.dataset.data_files
    except Exception as error:  # a config is a program: anything can go wrong in it
        raise Failed(f"{shown(config)}：{explain(f'{type(error).__name__}: {error}', 1)}") from error
    digest = hashlib.sha256(config.read_bytes())
    for path in files.values() if isinstance(files, dict) else [files]:
        digest.update(Path(path).read_bytes() if Path(path).is_file() else b"")
    return digest.hexdigest()


def _set_aside(folder):
    number = next(n for n in range(1, 1000) if not folder.with_name(f"{folder.name}.{n}").exists())
    folder.rename(folder.with_name(f"{folder.name}.{number}"))
    print(f"配置或数据和上次不同：上次的训练改名为 {folder.name}.{number}，这次从头开始。")


def _read_record(folder):
    path = folder / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _write_record(folder, record):
    with replaced(folder / RECORD) as file:
        json.dump(record, file)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m helpers.train", description="先检查配置，再训练；中断了就接着训练")
    parser.add_argument("config", nargs="?", default=CONFIG, type=Path, help="XTuner 配置文件")
    parser.add_argument("folder", nargs="?", default=FOLDER, type=Path, help="训练的一切放在这个文件夹里")
    arguments = parser.parse_args()
    report = check(arguments.config)
    if not report.ok:
        sys.exit("\n".join(report.lines))
    try:
        watch(arguments.config, arguments.folder)
    except Failed as error:
        sys.exit(f"[FAIL] {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
