"""Lesson 04: train with the real XTuner, watch it, stop it, and go on from the last whole checkpoint.

python -m helpers.train.runs [CONFIG] [FOLDER]   checks the config, then trains into the folder.
"""
import hashlib
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from mmengine.config import Config
from tqdm import tqdm

from helpers.machine import commands, profile
from helpers.machine.files import locked, replaced
from helpers.machine.process import Failed, explain, shown, xtuner_lines
from helpers.train import memory
from helpers.train.check import check_config
from helpers.train.families import DIALOGUES
from helpers.train.tokens import written_out

CONFIG = profile.ROOT / "workspace" / "config" / "assistant.py"
TRAINING = profile.ROOT / "workspace" / "training"
RECORD = "run.json"
# A checkpoint is a pickle, which torch 2.6 reads only when told to; this one was written by this very training.
OWN_CHECKPOINT = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} 步{postfix}"
STEP = re.compile(r"Iter\(train\) \[ *(\d+)/(\d+)\].*eta: (\S+).*loss: ([\d.]+|nan|inf)")
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

    def scalars(self, name: str) -> dict[int, float]:
        """A logged figure ("loss", "lr") by step; where a stretch was trained twice, the later one."""
        figures = {}
        for path in sorted(self.folder.glob("*/vis_data/scalars.json")):
            for line in path.read_text(encoding="utf-8").splitlines():
                with suppress(json.JSONDecodeError):  # a killed training's last line
                    row = json.loads(line)
                    figures[row["step"]] = row[name]
        return dict(sorted(figures.items()))

    def answers(self) -> dict[int, dict[str, str]]:
        """What the model answered to the evaluation questions at every save: {step: {question: answer}}."""
        answers = {}
        for path in sorted(self.folder.glob("*/vis_data/eval_outputs_iter_*.txt")):
            step = int(path.stem.rpartition("_")[2]) + 1  # XTuner counts from 0 here
            answers[step] = _exchanges(path.read_text(encoding="utf-8"))
        return dict(sorted(answers.items()))

    def checkpoints(self) -> dict[int, Path]:
        """The whole checkpoints by step; one cut short while it was written is not among them."""
        whole = {}
        for path in self.folder.glob("iter_*.pth"):
            if is_whole(path):
                whole[int(path.stem.removeprefix("iter_"))] = path
        return dict(sorted(whole.items()))


def _exchanges(text):
    """The questions and answers in a file of the evaluation's, in the first template that has any in it."""
    for known in DIALOGUES:
        stops = "|".join(map(re.escape, known.stops))
        for template in map(written_out, known.xtuner):
            before, after = map(re.escape, template["INSTRUCTION"].split("{input}"))
            if found := re.findall(rf"{before}(.*?){after}(.*?)(?:{stops})*\n\n", text, re.DOTALL):
                return {question: answer.strip() for question, answer in found}
    return {}


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: torch writes a zip, whose table of contents comes last."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError):
        return False


def train(config: str | Path = CONFIG, folder: str | Path = TRAINING, threads: int | None = None) -> Iterator[Progress]:
    """Trains, or goes on from the last whole checkpoint, or finds the work done; yields a Progress as it goes.

    To stop listening is to stop the training. An older training of another config or data is renamed, never lost.
    Without `threads`, torch decides how many a training computes with.
    """
    config, folder = Path(config), Path(folder)
    identity = _identity(config)
    busy = f"{shown(folder)} 里已经有一个训练在运行，在另一个笔记本或终端里。先等它结束。"
    with locked(folder.with_name(f".{folder.name}.lock"), busy) as lock:
        before = _read_record(folder)
        if folder.exists() and before.get("identity") != identity:
            _set_aside(folder)
            before = {}
        if before.get("finished"):
            return
        _write_record(folder, {"identity": identity, "finished": False})
        yield from _listen(config, folder, lock, threads)
        _write_record(folder, {"identity": identity, "finished": True})


def watch(config: str | Path = CONFIG, folder: str | Path = TRAINING) -> Run:
    """Trains with a progress bar, prints the answers at every save, and gives the Run; a second call goes on."""
    run = Run(Path(folder))
    last = None
    with tqdm(file=sys.stdout, ncols=80, bar_format=BAR, delay=0.1) as bar:
        try:
            for last in train(config, folder):
                bar.total = last.steps
                time_left = f"　还要 {last.eta}" if last.step < last.steps else ""
                bar.set_postfix_str(f"损失 {last.loss:.3f}{time_left}", refresh=False)
                bar.update(last.step - bar.n)
                answers = run.answers().get(last.step, {}) if last.saved else {}
                for question, answer in answers.items():
                    bar.write(f"第 {last.step} 步　{question} → {answer}", file=sys.stdout)
        except KeyboardInterrupt:
            kept = max(run.checkpoints(), default=0)
            bar.write(f"停下了。再运行一次，就从第 {kept} 步接着训练。", file=sys.stdout)
            raise
    if last is None:
        print(f"{shown(folder)} 已经训练完，没有重复。想重新训练，就先给它改个名。")
    return run


def _listen(config, folder, lock, threads):
    """One process of XTuner, from the newest whole checkpoint if there is one; it keeps the lock while it lives."""
    run = Run(folder)
    whole = run.checkpoints()
    for path in set(folder.glob("iter_*.pth")) - set(whole.values()):
        print(f"{shown(path)} 没有写完，删掉了。")
        path.unlink()
    resume = []
    if whole:
        step = max(whole)
        print(f"从第 {step} 步接着训练（{shown(whole[step])}）。")
        resume = ["--resume", whole[step]]
    variables = OWN_CHECKPOINT | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    last = None
    for line in xtuner_lines("train", config, "--work-dir", folder, *resume, log=folder / "training.log",
                             hold=[lock.fileno()], gpu_bytes=memory.gpu_bytes(config), **variables):
        if logged := STEP.search(line):
            step, steps, eta, loss = logged.groups()
            last = Progress(int(step), int(steps), float(loss), eta)
            yield last
        elif last and (saving := SAVING.search(line)):
            yield replace(last, step=int(saving[1]), saved=True)


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
        if Path(path).is_file():
            digest.update(Path(path).read_bytes())
    return digest.hexdigest()


def _set_aside(folder):
    """Renames an older training to the first free of training.1, training.2, ..."""
    names = (folder.with_name(f"{folder.name}.{number}") for number in count(1))
    free = next(name for name in names if not name.exists())
    folder.rename(free)
    print(f"配置或数据和上次不同：上次的训练改名为 {free.name}，这次从头开始。")


def _read_record(folder):
    path = folder / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _write_record(folder, record):
    with replaced(folder / RECORD) as file:
        json.dump(record, file)


@commands.command
def main():
    """The command line."""
    parser = commands.parser(__spec__, "先检查配置，再训练；中断了就接着训练")
    parser.add_argument("config", nargs="?", default=CONFIG, type=Path, help="XTuner 配置文件")
    parser.add_argument("folder", nargs="?", default=TRAINING, type=Path, help="训练的一切放在这个文件夹里")
    arguments = parser.parse_args()
    report = check_config(arguments.config)
    if not report.ok:
        sys.exit("\n".join(report.lines))
    try:
        watch(arguments.config, arguments.folder)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
