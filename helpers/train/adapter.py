"""From a checkpoint of XTuner's to a PEFT adapter: looked into without running it, converted by XTuner, compared."""
import ast
import pickle
import re
import zipfile
from pathlib import Path

import numpy
import torch
from mmengine.config import Config
from safetensors import SafetensorError
from safetensors.torch import load_file

from helpers.machine.commands import CourseError
from helpers.machine.files import replaced_folder
from helpers.machine.process import run_xtuner, shown
from helpers.train import memory

SETTINGS, WEIGHTS, TRAINED_BY = "adapter_config.json", "adapter_model.safetensors", "xtuner_config.py"


def newest_checkpoint(training: str | Path) -> Path:
    """The last checkpoint that XTuner finished in a training folder, wherever that folder lies by now."""
    pointer = Path(training, "last_checkpoint")
    if not pointer.is_file():
        raise CourseError(f"{shown(training)} 里没有 last_checkpoint，还没有存过检查点。修复：先运行第 4 课。")
    return Path(training, Path(pointer.read_text(encoding="utf-8").strip()).name)


def read_checkpoint(path: str | Path) -> dict:
    """What is in a checkpoint, its tensors read from disk only when used; nothing in the file can run code."""
    path = Path(path)
    if path.is_dir():
        raise CourseError(f"{shown(path)} 是文件夹，要的是里面的 iter_….pth 文件。"
                          "修复：用 newest_checkpoint 找最新的；DeepSpeed 的检查点请直接用 xtuner convert pth_to_hf。")
    if not path.is_file():
        others = "、".join(sorted(other.name for other in path.parent.glob("*.pth"))) or "一个 .pth 也没有"
        raise CourseError(f"找不到检查点 {shown(path)}，那个文件夹里有：{others}。"
                          "修复：改正文件名，或者先运行第 4 课。")
    if not zipfile.is_zipfile(path):
        raise CourseError(f"检查点 {shown(path)} 不完整，多半是写到一半被中断了。"
                          "修复：删掉它，再运行第 4 课，会从上一个完整的接着来。")
    try:
        with torch.serialization.safe_globals(_allowed_names()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        raise CourseError(f"检查点 {shown(path)} 里有训练不会存的东西：{refused[1] if refused else error}，"
                          "没有打开它。修复：只用你自己训练出来的检查点；别人的，请他转换成 safetensors。") from error


class LogColumn:
    """A column of the training log as a checkpoint holds it; mmengine's own class would act while it is read."""


def _allowed_names():
    """All that the pickle in a checkpoint may name; its training log asks for getattr, and gets a harmless one."""
    core = numpy.core.multiarray
    return [
        numpy.ndarray,
        numpy.dtype,
        type(numpy.dtype("float64")),
        type(numpy.dtype("int64")),
        (core._reconstruct, "numpy.core.multiarray._reconstruct"),
        (core.scalar, "numpy.core.multiarray.scalar"),
        (LogColumn, "mmengine.logging.history_buffer.HistoryBuffer"),
        (_only_the_name, "builtins.getattr"),
    ]


def _only_the_name(_, name):
    return name


def extract(config: str | Path, checkpoint: str | Path, folder: str | Path) -> None:
    """Makes the PEFT adapter of a checkpoint with XTuner's pth_to_hf; one that already is it stays as it is."""
    config, checkpoint, folder = Path(config), Path(checkpoint), Path(folder)
    if not config.is_file():
        raise CourseError(f"找不到配置 {shown(config)}。修复：先做第 3 课，或者改正路径。")
    content = read_checkpoint(checkpoint)
    weights = _lora_weights(content["state_dict"])
    if not weights:
        raise CourseError(f"检查点 {shown(checkpoint)} 里没有 LoRA 的权重，它不是 LoRA 训练出来的。"
                          "修复：用第 3 课的配置训练；全量训练的模型请直接用 xtuner convert pth_to_hf。")
    _check_same_lora(config, trained_lora(checkpoint, content))
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise CourseError(f"检查点 {shown(checkpoint)} 里的 {name} 不是有限的数，训练发散了。"
                              "修复：把配置里的 lr 减小几倍，重新训练。")
    if _is_adapter_of(folder, weights, config):
        return
    if folder.exists() and any(folder.iterdir()) and not (folder / SETTINGS).exists():
        raise CourseError(f"{shown(folder)} 里已经有别的东西，不能覆盖。修复：换一个文件夹名，或者自己先清空它。")
    log = folder.with_name(f"{folder.name}.log")
    with replaced_folder(folder) as new_folder:
        run_xtuner("pth_to_hf", config, checkpoint, new_folder, "--safe-serialization", log=log,
                   gpu_bytes=memory.gpu_bytes(config))  # it builds the model as for a training
        if not _is_adapter_of(new_folder, weights, config):
            raise CourseError(f"XTuner 转换的结果和检查点 {shown(checkpoint)} 不一样。修复：看日志 {shown(log)}。")


def _lora_weights(state_dict):
    """The LoRA weights of a training under PEFT's names, in the float16 that pth_to_hf writes."""
    weights = {}
    for name, tensor in state_dict.items():
        if ".lora_" in name:
            weights[name.removeprefix("llm.").replace(".default.", ".")] = tensor.half()
    return weights


def _check_same_lora(config, trained):
    """The weights alone do not tell lora_alpha: with another one the merged model is another, without any error."""
    current = Config.fromfile(config).model.lora.to_dict()
    changed = []
    for name in sorted({*current, *trained} - {"type"}):
        if current.get(name) != trained.get(name):
            changed.append(f"{name}：训练时 {trained.get(name)}，现在 {current.get(name)}")
    if changed:
        raise CourseError(f"训练以后改过配置 {shown(config)} 的 lora（{'；'.join(changed)}）。"
                          "修复：改回训练时的值，或者重新训练。")


def _is_adapter_of(folder, weights, config):
    """Whether a folder is the whole adapter of these weights and of this config."""
    if not all((folder / name).is_file() for name in (SETTINGS, WEIGHTS, TRAINED_BY)):
        return False
    if (folder / TRAINED_BY).read_bytes() != config.read_bytes():
        return False
    try:
        present = load_file(folder / WEIGHTS)
    except SafetensorError:
        return False
    return weights.keys() <= present.keys() and all(torch.equal(weights[name], present[name]) for name in weights)


def trained_lora(checkpoint: str | Path, content: dict) -> dict:
    """The LoRA settings of a training as the content of its checkpoint tells them: a config's text, never run."""
    try:
        assignments = [line for line in ast.parse(content["meta"]["cfg"]).body if isinstance(line, ast.Assign)]
        [model] = [line.value for line in assignments if ast.unparse(line.targets[0]) == "model"]
        return dict(ast.literal_eval(_DictCalls().visit(model))["lora"])
    except (LookupError, TypeError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise CourseError(f"检查点 {shown(checkpoint)} 里记着的训练配置读不出 model.lora：只认写明的值，不运行程序。"
                          "修复：只用第 4 课训练出来的检查点。") from error


class _DictCalls(ast.NodeTransformer):
    """Writes dict(r=64), as configs have it, as {"r": 64}, which literal_eval reads."""

    def visit_Call(self, call):
        """dict() of names, or of one dictionary; any other call stays, and literal_eval refuses it."""
        self.generic_visit(call)
        if ast.unparse(call.func) != "dict":
            return call
        if call.args:
            return call.args[0]
        return ast.Dict([ast.Constant(named.arg) for named in call.keywords], [named.value for named in call.keywords])
