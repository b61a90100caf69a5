"""From a checkpoint of XTuner's to a PEFT adapter: looked into without running it, converted by XTuner, compared."""
import ast
import pickle
import re
import shutil
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy
import torch
from mmengine.config import Config
from safetensors import SafetensorError
from safetensors.torch import load_file

from helpers.process import run_xtuner, shown

SETTINGS, WEIGHTS, TRAINED_BY = "adapter_config.json", "adapter_model.safetensors", "xtuner_config.py"


class AdapterError(RuntimeError):
    """A checkpoint that cannot become an adapter: why, and what to do."""


def newest_checkpoint(training):
    """The last checkpoint that XTuner finished in a training folder, wherever that folder lies by now."""
    pointer = Path(training, "last_checkpoint")
    if not pointer.is_file():
        raise AdapterError(f"{shown(training)} 里没有 last_checkpoint，还没有存过检查点。修复：先运行第 4 课。")
    return Path(training, Path(pointer.read_text(encoding="utf-8").strip()).name)


def read_checkpoint(path):
    """What is in a checkpoint, its tensors read from disk only when used; nothing in the file can run code."""
    path = Path(path)
    if path.is_dir():
        raise AdapterError(f"{shown(path)} 是文件夹，要的是里面的 iter_….pth 文件。"
                           "修复：用 newest_checkpoint 找最新的；DeepSpeed 的检查点请直接用 xtuner convert pth_to_hf。")
    if not path.is_file():
        there = "、".join(sorted(found.name for found in path.parent.glob("*.pth"))) or "一个 .pth 也没有"
        raise AdapterError(f"找不到检查点 {shown(path)}，那个文件夹里有：{there}。"
                           "修复：改正文件名，或者先运行第 4 课。")
    if not zipfile.is_zipfile(path):
        raise AdapterError(f"检查点 {shown(path)} 不完整，多半是写到一半被中断了。"
                           "修复：删掉它，再运行第 4 课，会从上一个完整的接着来。")
    try:
        with torch.serialization.safe_globals(_allowed()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        stranger = re.search(r"GLOBAL (\S+)|$", str(error))[1] or error
        raise AdapterError(f"检查点 {shown(path)} 里有训练不会存的东西：{stranger}，没有打开它。"
                           "修复：只用你自己训练出来的检查点；别人的，请他转换成 safetensors。") from error


def convert(config, checkpoint, folder):
    """Makes the PEFT adapter of a checkpoint with XTuner's pth_to_hf; one that already is it stays as it is."""
    config, checkpoint, folder = Path(config), Path(checkpoint), Path(folder)
    if not config.is_file():
        raise AdapterError(f"找不到配置 {shown(config)}。修复：先做第 3 课，或者改正路径。")
    content = read_checkpoint(checkpoint)
    wanted = _lora_weights(content["state_dict"])
    if not wanted:
        raise AdapterError(f"检查点 {shown(checkpoint)} 里没有 LoRA 的权重，它不是 LoRA 训练出来的。"
                           "修复：用第 3 课的配置训练；全量训练的模型请直接用 xtuner convert pth_to_hf。")
    _check_same_lora(config, trained_lora(checkpoint, content))
    broken = [name for name, tensor in wanted.items() if not tensor.isfinite().all()]
    if broken:
        raise AdapterError(f"检查点 {shown(checkpoint)} 里的 {broken[0]} 不是有限的数，训练发散了。"
                           "修复：把配置里的 lr 减小几倍，重新训练。")
    if _holds(folder, wanted, config):
        return
    if folder.exists() and any(folder.iterdir()) and not (folder / SETTINGS).exists():
        raise AdapterError(f"{shown(folder)} 里已经有别的东西，不能覆盖。修复：换一个文件夹名，或者自己先清空它。")
    with made_whole(folder) as beside:
        run_xtuner("pth_to_hf", config, checkpoint, beside, "--safe-serialization",
                   log=folder.with_name(f"{folder.name}.log"))
        if not _holds(beside, wanted, config):
            raise AdapterError(f"XTuner 转换的结果和检查点 {shown(checkpoint)} 不一样。"
                               f"修复：看日志 {shown(folder.with_name(f'{folder.name}.log'))}。")


@contextmanager
def made_whole(folder):
    """An empty folder beside `folder`, which takes its place if all goes well; if not, the former one stays."""
    folder = Path(folder)
    beside, former = (folder.with_name(f"{folder.name}.{state}") for state in ("partial", "former"))
    _clear(folder, beside, former)
    beside.mkdir(parents=True)
    try:
        yield beside
        if folder.exists():
            folder.rename(former)
        beside.rename(folder)
    finally:
        _clear(folder, beside, former)


def _clear(folder, beside, former):
    """Puts the former folder back if none has taken its place; takes away what is left over."""
    if former.exists() and not folder.exists():
        former.rename(folder)
    for left_over in (beside, former):
        shutil.rmtree(left_over, ignore_errors=True)


class LogColumn:
    """A column of the training log as a checkpoint holds it; mmengine's own class would act while it is read."""


def _allowed():
    """All that the pickle in a checkpoint may name; its training log asks for getattr, and gets a harmless one."""
    core = numpy.core.multiarray
    return [numpy.ndarray, numpy.dtype, type(numpy.dtype("float64")), type(numpy.dtype("int64")),
            (LogColumn, "mmengine.logging.history_buffer.HistoryBuffer"), (_only_the_name, "builtins.getattr"),
            (core._reconstruct, "numpy.core.multiarray._reconstruct"), (core.scalar, "numpy.core.multiarray.scalar")]


def _only_the_name(_, name):
    return name


def trained_lora(checkpoint, content):
    """The LoRA settings of a training as the content of its checkpoint tells them: a config's text, never run."""
    try:
        assigned = [line for line in ast.parse(content["meta"]["cfg"]).body if isinstance(line, ast.Assign)]
        [model] = [line.value for line in assigned if ast.unparse(line.targets[0]) == "model"]
        return dict(ast.literal_eval(_DictCalls().visit(model))["lora"])
    except (LookupError, TypeError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise AdapterError(f"检查点 {shown(checkpoint)} 里记着的训练配置读不出 model.lora：只认写明的值，不运行程序。"
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


def _check_same_lora(config, then):
    """The weights alone do not tell lora_alpha: with another one the merged model is another, without any error."""
    now = Config.fromfile(config).model.lora.to_dict()
    changed = [f"{name}：训练时 {then.get(name)}，现在 {now.get(name)}"
               for name in sorted({*now, *then} - {"type"}) if now.get(name) != then.get(name)]
    if changed:
        raise AdapterError(f"训练以后改过配置 {shown(config)} 的 lora（{'；'.join(changed)}）。"
                           "修复：改回训练时的值，或者重新训练。")


def _lora_weights(state_dict):
    """The LoRA weights of a training under PEFT's names, in the float16 that pth_to_hf writes."""
    return {name.removeprefix("llm.").replace(".default.", "."): tensor.half()
            for name, tensor in state_dict.items() if ".lora_" in name}


def _holds(folder, wanted, config):
    """Whether a folder is the whole adapter of these weights and of this config."""
    if not all((folder / name).is_file() for name in (SETTINGS, WEIGHTS, TRAINED_BY)):
        return False
    try:
        found = load_file(folder / WEIGHTS)
    except SafetensorError:
        return False
    same = wanted.keys() <= found.keys() and all(torch.equal(wanted[name], found[name]) for name in wanted)
    return same and (folder / TRAINED_BY).read_bytes() == config.read_bytes()
