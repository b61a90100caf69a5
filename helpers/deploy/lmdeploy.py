"""LMDeploy's commands: what each is for, what memory it takes, whether this machine can run it."""
import json
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from helpers.data.split import write_samples
from helpers.machine import process, profile
from helpers.machine.commands import CourseError
from helpers.machine.files import replaced
from helpers.machine.process import shown
from helpers.train import families
from helpers.train.memory import GB, OVERHEAD, Shape, cache_bytes, weight_bytes
from helpers.train.tokens import encode, trained_with

LMDEPLOY = profile.ROOT / "workspace" / "lmdeploy"  # where every command runs
API_PORT, PAGE_PORT = 23333, 6006
PATIENCE = 600  # seconds of silence: a 7B from a slow disk takes minutes to load
SAMPLES, LENGTH = 64, 256  # of calibration: conversations at most, tokens of each block that they are joined to
CONTEXT = 2048  # tokens of the conversation that an engine's estimate has room for
NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a packed number AWQ keeps its eight columns
# LMDeploy has no option for calibration data of one's own, but it looks for this hub name in its own folder first.
DATASET = "mit-han-lab/pile-val-backup"


@dataclass(frozen=True)
class Command:
    """One command: what it is for, the device it computes on, the memory of that device that it takes."""

    name: str
    options: tuple
    purpose: str
    device: str
    memory: Callable[[Shape], float]
    ready: str = ""  # what a server prints when it can be asked

    @property
    def words(self) -> list[str]:
        """The command as a list of arguments."""
        return ["lmdeploy", *self.name.split(), *map(str, self.options)]

    def __str__(self) -> str:
        return shlex.join(self.words)

    def obstacle(self, machine: profile.Profile, shape: Shape) -> str:
        """Why this machine cannot run it with a model of that shape; empty if it can."""
        if self.device != machine.device:
            return "要 NVIDIA 显卡，这台机器没有"
        needed = self.memory(shape) / GB
        if machine.gpu and needed > machine.gpu.gigabytes:
            return f"要约 {needed:.1f} GB 显存，{machine.gpu.name} 只有 {machine.gpu.gigabytes:.0f} GB"
        return ""


def commands(model: str | Path, machine: profile.Profile) -> dict[str, Command]:
    """Every LMDeploy command of the course for a model folder, by name."""
    template = ("--chat-template", chat_template(model))
    model = os.path.relpath(model, LMDEPLOY)
    engine = (model, *template, "--cache-max-entry-count", 0.4)  # of what the weights leave free; the default takes 0.8
    local = ("--server-name", "127.0.0.1", "--server-port")
    data = (model, "--calib-dataset", "pileval", "--calib-samples", SAMPLES, "--calib-seqlen", LENGTH)
    here = machine.device
    quantize = (*data, "--device", here)
    every = (
        Command("chat", engine, "在终端里和模型对话", "cuda", engine_memory),
        Command("serve api_server", (*engine, "--model-name", "assistant", *local, API_PORT),
                "开一个和 OpenAI 接口相同的服务", "cuda", engine_memory, "Uvicorn running on"),
        Command("serve gradio", (*engine, *local, PAGE_PORT),
                "开一个聊天网页", "cuda", engine_memory, "Running on local URL"),
        Command("convert", ("internlm2", model, *template, "--dst-path", "turbomind"),
                "把模型转成 TurboMind 的格式。旧教程必须先做这一步，现在装入时自动转，不用做了", "cuda", weight_bytes),
        Command("lite calibrate", (*data, "--work-dir", "calibration"),
                "只校准：让模型读一遍我们的数据，记下每层的输入有多大", "cuda", calibration_memory),
        Command("lite auto_awq", (*quantize, "--work-dir", "awq"),
                "校准，再把权重量化成 4 位（AWQ）", here, calibration_memory),
        Command("lite smooth_quant", (*quantize, "--work-dir", "w8a8"),
                "校准，再把权重和计算都变成 8 位（SmoothQuant）", here, calibration_memory),
    )
    return {command.name: command for command in every}


def chat_template(model: str | Path) -> str:
    """LMDeploy's template for the model in a folder; left to itself it guesses by the folder's name."""
    return named_template(families.dialogue(families.chat_template(model)))


def named_template(known: families.Dialogue) -> str:
    """LMDeploy's template for a family: its name, or that of a file, which is written where every command runs."""
    name, changes = known.lmdeploy.name, known.lmdeploy.changes
    if not changes:
        return name
    with replaced(LMDEPLOY / f"{name}.json") as file:
        json.dump({"model_name": name} | changes, file, indent=1)
    return f"{name}.json"


def run(command: Command, shape: Shape, typed: str = "") -> Iterator[str]:
    """A command's output for a model of that shape, line by line as it comes; raises process.Failed.

    It starts when its memory is free on the GPU, and is given up when it falls silent. Closing it ends the command.
    """
    LMDEPLOY.mkdir(parents=True, exist_ok=True)
    return process.lines(command.words, log=LMDEPLOY / "lmdeploy.log", cwd=LMDEPLOY, typed=typed, patience=PATIENCE,
                         gpu_bytes=command.memory(shape) if command.device == "cuda" else 0, PYTHONUNBUFFERED="1")


@contextmanager
def serve(command: Command, shape: Shape) -> Iterator[str]:
    """Runs a server while the block lasts; gives the line in which it says that it can be asked."""
    with closing(run(command, shape)) as lines:
        yield next(line for line in lines if command.ready in line)


def write_calibration(samples: list[dict], tokenizer: PreTrainedTokenizerBase) -> Path:
    """Writes samples, as they were trained on, where the quantizing commands look for them; gives the file."""
    path = LMDEPLOY / DATASET / "validation.jsonl"
    start = tokenizer.bos_token or ""  # LMDeploy writes it itself
    rows, written_with = [], trained_with(tokenizer)
    for sample in samples:
        ids, _ = encode(sample["conversation"], *written_with)
        rows.append({"text": tokenizer.decode(ids).removeprefix(start)})
    write_samples(rows, path)
    return path


def put_into(model: PreTrainedModel, folder: str | Path) -> None:
    """Puts the weights of a quantized folder into the model that it was made of, as plain numbers, one by one."""
    places = model.state_dict()
    filled = set()
    for name, tensor in _dequantized(folder):
        if name not in places:
            raise CourseError(f"{shown(folder)} 里的 {name} 在模型里没有位置。修复：用量化以前的那个模型。")
        places[name].copy_(tensor)
        filled.add(places[name].data_ptr())
    if left := [name for name, tensor in places.items() if tensor.data_ptr() not in filled]:
        raise CourseError(f"{shown(folder)} 里没有 {left[0]}。修复：重新量化一次。")


def _dequantized(folder) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of a quantized folder as plain numbers, under the names of the model as it was before."""
    with ExitStack() as opened:
        files = [opened.enter_context(safe_open(file, "pt")) for file in Path(folder).glob("*.safetensors")]
        file_of = {name: file for file in files for name in file.keys()}  # noqa: SIM118 (not a dict)

        def read(layer, part):
            return file_of[f"{layer}.{part}"].get_tensor(f"{layer}.{part}")

        for name in file_of:
            layer, _, part = name.rpartition(".")
            if part == "qweight":
                yield f"{layer}.weight", _from_awq(read(layer, part), read(layer, "qzeros"), read(layer, "scales"))
            elif part == "weight" and f"{layer}.scale" in file_of:
                yield name, read(layer, part) * read(layer, "scale")
            elif part not in ("qzeros", "scales", "scale"):
                yield name, read(layer, part)


def _from_awq(weights, zeros, scales):
    """An AWQ layer's weights as plain numbers; every group of rows shares a row of zero points and of scales."""
    rows_per_group = len(weights) // len(scales)
    zeros = _nibbles(zeros).repeat_interleave(rows_per_group, 0)
    scales = scales.repeat_interleave(rows_per_group, 0)
    return ((_nibbles(weights) - zeros) * scales).T


def _nibbles(packed):
    """Eight columns of 4 bits for each of 32."""
    bits = packed[..., None] >> torch.arange(0, 32, 4) & 15
    return bits[..., NIBBLES].flatten(1)


def engine_memory(shape: Shape) -> float:
    """The memory of an engine: the weights, the keys and values of one conversation, the CUDA context."""
    return weight_bytes(shape) + CONTEXT * cache_bytes(shape) + OVERHEAD


def calibration_memory(shape: Shape) -> float:
    """The memory of a calibration: one layer at a time, the embeddings, and what all blocks are between two layers."""
    layer = 2 * shape.linear_weights / shape.num_hidden_layers
    embeddings = 2 * shape.vocab_size * shape.hidden_size
    # The last norm holds them in 16 bits and twice in 32; attention holds one block's scores in 16 and 32.
    between = (2 + 4 + 4) * SAMPLES * LENGTH * shape.hidden_size
    scores = (2 + 4) * shape.num_attention_heads * LENGTH**2
    return layer + embeddings + between + scores + OVERHEAD
