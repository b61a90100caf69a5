"""Measures the course on this machine's card, with random weights in InternLM2.5-7B's shape.

python -m tools.measure [--folder PLACE]   writes assets/measured/CARD.json, a step at a time; begun again, it goes on.
python -m tools.measure --shape tiny       rehearses it with a tiny model, without a GPU too, into workspace/measured/.
"""
import argparse
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from threading import Event, Thread

import psutil
import torch

from helpers.machine import commands, environment, gpu_memory, measured, process, profile
from helpers.machine.commands import CourseError
from helpers.machine.files import locked, replaced, replaced_folder
from helpers.train import disk
from helpers.train.memory import GB, Shape, awq_bytes, weight_bytes
from helpers.train.shapes import SHAPES
from tests import finetune
from tools import tell_measured

LIMIT = 24  # GB that a training has to fit into
AT_ONCE = 8  # people that ask an engine
PATIENCE = 3600  # seconds for a step
LOOKS = 0.2  # seconds between two looks at the memory
VERSIONS = ("torch", "transformers", "xtuner", "bitsandbytes", "peft", "lmdeploy", "cyllama", "xllamacpp")
REHEARSED = profile.ROOT / "workspace" / "measured"
# Options of `lmdeploy serve api_server`.
ENGINES = {
    "turbomind": ("--backend", "turbomind"),
    "turbomind_kv8": ("--backend", "turbomind", "--quant-policy", 8),
    "turbomind_w4a16": ("--backend", "turbomind", "--model-format", "awq"),
    "pytorch": ("--backend", "pytorch"),
    "pytorch_kv8": ("--backend", "pytorch", "--quant-policy", 8),
}
# The step, or rather the folder of its name, without which another cannot be done.
NEEDS = {"adapter": "training", "merge": "adapter", "xtuner_merge": "adapter", "llama_cpp": "gguf",
         "turbomind_w4a16": "awq"}


@dataclass(frozen=True)
class Size:
    """What is measured: a model's shape, a training of so many steps, answers of so many tokens."""

    name: str
    shape: Shape
    steps: int
    tokens: int

    @property
    def disk(self) -> float:
        """The most bytes that lie on the disk: base, checkpoint, adapter, and then a merged model or the others."""
        whole, adapter = weight_bytes(self.shape), self.shape.adapter_weights(disk.RANK)
        others = whole * (disk.GGUF_BITS["f16"] + disk.GGUF_BITS["q4_k_m"]) / 16 + awq_bytes(self.shape)
        return whole + (12 + 4) * adapter + max(whole, others)


TINY = Size("tiny", Shape("internlm2", 256, 768, 8, 4, 2, vocab_size=6144, head_dim=64), 6, 32)
SIZES = {size.name: size for size in (Size("InternLM2.5-7B", SHAPES["InternLM2.5-7B"], 60, 256), TINY)}


# The steps, each in a process of its own, where COURSE_BASE_MODEL is the base in the folder.

def training(folder, size):
    """The course's recipe through XTuner."""
    from helpers.train import memory
    from helpers.train.runs import Run
    from tests import bench_train

    work = _empty(folder / "training")
    config = _config(folder, size)
    seconds, _, speed = bench_train.run(bench_train.ours, config)
    figures = {"seconds": seconds, "speed": speed, "limit": LIMIT * GB,
               "estimated": memory.estimate(memory.read_settings(config)).total}
    if profile.current().gpu:
        figures["tensors"] = max(Run(work).scalars("memory").values()) * gpu_memory.MIB
    return figures


def peft(folder, size):
    """The same without XTuner."""
    from tests import bench_train

    speed = bench_train.plain_peft(_config(folder, size))
    return {"speed": speed} | ({"tensors": torch.cuda.max_memory_allocated()} if torch.cuda.is_available() else {})


def _config(folder, size):
    from tests import bench_train

    finetune.write_samples(finetune.training_rows(), folder / "train.jsonl")
    return bench_train.write_config(folder, "training", size.steps, {})


def adapter(folder, size):
    """XTuner's checkpoint as a PEFT adapter."""
    from helpers.train.adapter import extract, newest_checkpoint

    checkpoint = newest_checkpoint(folder / "training")
    return _timed(extract, folder / "training.py", checkpoint, _empty(folder / "adapter"))


def merge(folder, size):
    """The course's own merge."""
    from helpers.train.merge import merge

    with _thrown_away(folder / "merged") as out:
        return _timed(merge, folder / "base", folder / "adapter", out)


def xtuner_merge(folder, size):
    """XTuner's."""
    from helpers.train.merge import merge_with_xtuner

    with _thrown_away(folder / "merged") as out:
        return _timed(merge_with_xtuner, folder / "base", folder / "adapter", out)


def gguf(folder, size):
    """The base in float16 for llama.cpp."""
    from helpers.deploy import gguf

    return _timed(gguf.convert, folder / "base", _empty(folder / "gguf") / "f16.gguf")


def llama_cpp(folder, size):
    """What a machine without a GPU does with it."""
    from helpers.deploy import gguf, llama_server

    with _thrown_away(folder / "gguf"):
        file = folder / "gguf" / "q4_k_m.gguf"
        figures = _timed(gguf.quantize, folder / "gguf" / "f16.gguf", file, "q4_k_m")
        started = time.perf_counter()
        with llama_server.serve(file, parallel=AT_ONCE) as url:
            return figures | {"start": time.perf_counter() - started} | _asked(url, size)


def awq(folder, size):
    """LMDeploy's calibration and quantizing to 4 bits."""
    from helpers.ask.models import load_tokenizer

    lmdeploy, every = _lmdeploy(folder, folder / "base")
    lmdeploy.write_calibration(finetune.training_rows(), load_tokenizer(folder / "base"))
    _empty(folder / "awq")
    return _timed(list, lmdeploy.run(every["lite auto_awq"], size.shape))


def engine(folder, size, name):
    """One of LMDeploy's engines."""
    from helpers.machine.ports import find_port

    lmdeploy, every = _lmdeploy(folder, folder / ("awq" if name == "turbomind_w4a16" else "base"))
    command, port = every["serve api_server"], find_port("127.0.0.1", 0)
    if why := command.obstacle(profile.current(), size.shape):
        raise CourseError(why)
    command = replace(command, options=(*command.options, *ENGINES[name], "--server-port", port))
    started = time.perf_counter()
    with lmdeploy.serve(command, size.shape):
        return {"start": time.perf_counter() - started} | _asked(f"http://127.0.0.1:{port}/v1", size)


def _lmdeploy(folder, model):
    """LMDeploy at work in this folder, and its commands for a model."""
    from helpers.deploy import lmdeploy

    lmdeploy.LMDEPLOY = folder  # instead of the student's
    return lmdeploy, lmdeploy.commands(model, profile.current())


def _asked(url, size):
    """How fast a server answers one, and several at the same time."""
    import openai

    from tests.bench_server import timed

    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    model = client.models.list().data[0].id

    def tokens(question):
        done = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": question}], max_tokens=size.tokens, temperature=0,
            extra_body={"ignore_eos": True})
        return done.usage.completion_tokens

    tokens("你好")  # the first is slow everywhere
    figures = {}
    for name, people in {"speed": 1, "together": AT_ONCE}.items():
        written, _, seconds = timed(tokens, ["法国的首都是哪里？"] * people, people)
        figures[name] = sum(written) / seconds
    return figures


def _timed(work, *arguments):
    started = time.perf_counter()
    work(*arguments)
    return {"seconds": time.perf_counter() - started}


def _empty(folder):
    shutil.rmtree(folder, ignore_errors=True)
    return folder


@contextmanager
def _thrown_away(folder):
    """A folder that is gone after the block."""
    try:
        yield folder
    finally:
        _empty(folder)


def base(folder, size):
    """What is measured with."""
    from tests import bases

    with replaced_folder(folder / "base") as whole:
        bases.write_untrained(whole, size.shape)
    return {}


def card(folder, size):
    """What is measured on."""
    gpu = profile.current().gpu
    if gpu is None:
        memory = psutil.virtual_memory().total / GB
        return {"card": f"{os.cpu_count()} CPU", "gigabytes": round(memory), "driver": None}
    return {"card": gpu.name, "gigabytes": round(gpu.gigabytes), "driver": gpu.driver}


EVERY = (card, base, training, peft, adapter, merge, xtuner_merge, gguf, llama_cpp, awq)
STEPS = {step.__name__: step for step in EVERY} | {name: partial(engine, name=name) for name in ENGINES}


# The measuring: all that follows runs in the process that was called.

def measure(size: Size, folder: Path, written: Path) -> Iterator[tuple[str, dict]]:
    """Does the steps that are not done yet and yields each with its figures, when these stand in the card's file.

    The folder, where the models lie, goes when all steps were tried; what was interrupted goes on with it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock", f"{process.shown(folder)} 里已经有一次测量在运行。先等它结束。"):
        about = do("card", folder, size) | {"model": size.name, "seed": finetune.SEED, "versions": _versions()}
        if size is not TINY and about["driver"] is None:
            raise CourseError("要 NVIDIA 显卡，这台机器没有。修复：换一台机器，或者加上 --shape tiny 演练一遍。")
        name = re.sub(r"[^a-z0-9]+", "-", f"{about['card']} {about['gigabytes']} GB".lower())
        file = written / f"{name}.json"
        figures = _figures(file, about)
        if steps := _to_do(figures, folder):
            _prepare(folder, size)
        before = gpu_memory.used()
        for step in steps:
            with _memory_watched(before) as peaks:
                outcome = do(step, folder, size)
            figures[step] = outcome if "failed" in outcome else _with_units(outcome | peaks)
            with replaced(file) as content:
                record = about | {"date": str(date.today()), "figures": figures}
                json.dump(record, content, ensure_ascii=False, indent=1)
            yield step, figures[step]
    _empty(folder)


def do(step: str, folder: Path, size: Size) -> dict:
    """What a step gives in a process of its own, or {"failed": why}; all that it began has ended by then."""
    command = [sys.executable, "-m", __spec__.name, "--step", step, "--place", folder, "--shape", size.name]
    base = folder / "base"
    model = base if base.is_dir() else profile.TINY_BASE
    try:
        said = list(process.lines(command, log=folder / "log", cwd=profile.ROOT, patience=PATIENCE,
                                  COURSE_BASE_MODEL=str(model)))
    except process.Failed as error:
        return _failed(error)
    return json.loads([line for line in said if line.startswith("{")][-1])


def _failed(error):
    """Why in one sentence: the first line of the error."""
    return {"failed": str(error).splitlines()[0]}


def _versions():
    return {name: version for name, version in environment.locked().items() if name in VERSIONS}


def _figures(file, about):
    """The figures that stand in a file, if they are of the same card, model and versions."""
    record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return record["figures"] if record.items() >= about.items() else {}


def _to_do(figures, folder):
    """The steps without figures, and those whose work another of them needs and does not find."""
    steps = {step for step in measured.STEPS if "failed" in figures.get(step, {"failed": ""})}
    for step in reversed(measured.STEPS):
        needed = NEEDS.get(step)
        if step in steps and needed and not (folder / needed).is_dir():
            steps.add(needed)
    return [step for step in measured.STEPS if step in steps]


def _prepare(folder, size):
    """Makes the base, if the disk has room for all that is to come."""
    if (folder / "base").is_dir():
        return
    free = shutil.disk_usage(folder).free
    if free < size.disk:
        raise CourseError(f"磁盘不够：{process.shown(folder)} 里最多的时候要放 {disk.told(size.disk)}，"
                          f"只剩 {disk.told(free)}。修复：腾出空间，或者用 make measure PLACE=更大的磁盘 换一个地方。")
    if why := do("base", folder, size).get("failed"):
        raise CourseError(f"基座没有做成：{why}")


@contextmanager
def _memory_watched(before):
    """Gives what the programs that we start take at most until the block ends: of the machine's memory, and of the
    GPU's, beyond what was taken there before.
    """
    peaks, ended = {"ram": 0}, Event()

    def look():
        while not ended.wait(LOOKS):
            peaks["ram"] = max(peaks["ram"], sum(map(_resident, psutil.Process().children(recursive=True))))
            if used := gpu_memory.used():
                peaks["gpu"] = max(peaks.get("gpu", 0), used - before)

    watcher = Thread(target=look)
    watcher.start()
    try:
        yield peaks
    finally:
        ended.set()
        watcher.join()


def _resident(program):
    with suppress(psutil.NoSuchProcess):
        return program.memory_info().rss
    return 0


def _with_units(figures):
    """Figures as the file has them: three digits, and the unit."""
    told = {}
    for name, value in figures.items():
        unit = measured.FIGURES[name][0]
        told[name] = {"value": float(f"{value / (GB if unit == 'GB' else 1):.3g}"), "unit": unit}
    return told


@commands.command
def main() -> None:
    """The command line."""
    parser = commands.parser(__spec__, "量一量这块显卡上训练、合并、转换和部署要多久、要多少显存")
    parser.add_argument("--shape", choices=SIZES, help="默认：有显卡是 7B 的形状，没有就用很小的模型演练一遍")
    parser.add_argument("--place", type=Path, default=profile.ROOT / "workspace", help="哪里放得下几十 GB 的模型")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(_done(options.step, options.place, SIZES[options.shape])))
        return
    size = SIZES[options.shape or ("InternLM2.5-7B" if torch.cuda.is_available() else "tiny")]
    written = REHEARSED if size is TINY else measured.MEASURED
    for step, figures in measure(size, (options.place / "measure" / size.name).resolve(), written):
        print(f"{measured.STEPS[step][0]}：{measured.told(figures, '中文')}", flush=True)
    if size is not TINY:
        tell_measured.write()
    print(f"[OK] {process.shown(written)}")


def _done(step, folder, size):
    """What a step gives, in the process that was started for it."""
    try:
        return STEPS[step](folder, size)
    except (CourseError, OSError) as error:
        return _failed(error)


if __name__ == "__main__":
    main()
