"""Merge a LoRA adapter into its base model: as XTuner does, or a tensor at a time, for a model larger than memory.

python -m helpers.train.merge BASE ADAPTER OUT   writes the very weights that `xtuner convert merge` writes.
"""
import json
import math
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from helpers.machine import commands, profile
from helpers.machine.commands import CourseError
from helpers.machine.files import replaced_folder, sha256
from helpers.machine.model_folder import bytes_of_weights
from helpers.machine.process import run_xtuner, shown
from helpers.train.adapter import SETTINGS, WEIGHTS
from helpers.train.memory import OVERHEAD

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
ORIGIN = "merged_from.json"
DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
# What a model folder needs besides its weights: configs, tokenizer, remote code. Read-me files speak of the base.
COPIED = {".json", ".py", ".model", ".txt", ".jinja", ".tiktoken"}
NOT_PLAIN = ("use_dora", "lora_bias", "fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern",
             "layer_replication")
TIED = ("lm_head", "embed_tokens")
INSTEAD = "修复：改用 xtuner convert merge，它会把整个模型放进内存。"


@dataclass(frozen=True)
class Update:
    """What an adapter adds to a base weight: scale * b @ a.

    `copy` is the adapter's own copy of the base weight, which PEFT keeps for an lm_head and prefers when it merges.
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    copy: torch.Tensor | None

    @property
    def shape(self) -> list[int]:
        """The shape of the base weight that it fits."""
        return [self.b.shape[0], self.a.shape[1]]


def merge_with_xtuner(base: str | Path, adapter: str | Path, out: str | Path) -> None:
    """Makes the folder `out` with XTuner's merge, in float16; one already merged from the same stays as it is."""
    origin = _origin(base, adapter, "float16")
    if _made_from(out, base) == origin:
        return
    machine = profile.current()
    with replaced_folder(out) as folder:
        run_xtuner("merge", base, adapter, folder, "--safe-serialization", "--device", machine.device,
                   log=Path(out).with_name(f"{Path(out).name}.log"),
                   gpu_bytes=bytes_of_weights(base) + OVERHEAD if machine.gpu else 0)
        for code in Path(base).glob("*.py"):  # transformers leaves a model's code behind where it does not ask for it
            shutil.copy(code, folder)
        _write_json(folder / ORIGIN, origin)


def merge(base: str | Path, adapter: str | Path, out: str | Path, dtype: str = "float16", device: str = "cpu") -> None:
    """Makes the folder `out` a tensor at a time, bit for bit as PEFT merges on that device.

    In memory are the adapter and one tensor at a time. float16 as XTuner: a weight's bfloat16 fits into it, and its
    finer steps keep more of what the adapter adds.
    """
    base, adapter = Path(base), Path(adapter)
    origin = _origin(base, adapter, dtype)
    if _made_from(out, base) == origin:
        return
    files, updates = _weight_files(base), _read_adapter(adapter)
    layouts = {file: _layout(base / file) for file in files}
    _check_fit(base, adapter, layouts, updates)
    headers = {file: _header(layout, dtype) for file, layout in layouts.items()}
    total = sum(_size(header) for header in headers.values())
    with replaced_folder(out) as folder:
        free = shutil.disk_usage(folder).free
        if free < total:
            raise CourseError(f"磁盘不够：合并后的模型要 {total / 1e9:.1f} GB，只剩 {free / 1e9:.1f} GB。"
                              "修复：腾出空间再运行。")
        for file, header in headers.items():
            _write_shard(base / file, folder / file, header, updates, dtype, device)
        _copy_the_rest(base, folder, dtype, total)
        _write_json(folder / ORIGIN, origin)


def _origin(base, adapter, dtype):
    """What a merged model is made from."""
    for folder, name in ((base, "config.json"), (adapter, SETTINGS)):
        if not Path(folder, name).is_file():
            raise CourseError(f"{shown(folder)} 里没有 {name}。"
                              "修复：先写基座模型的文件夹，再写第 5 课转换出来的适配器文件夹。")
    if not Path(adapter, WEIGHTS).is_file():
        raise CourseError(f"适配器 {shown(adapter)} 里没有 {WEIGHTS}。修复：第 5 课转换时加上 --safe-serialization。")
    settings = json.loads(Path(adapter, SETTINGS).read_text(encoding="utf-8"))
    return {
        "base": str(Path(base).resolve()),
        "base_files": _sizes_and_times(base),
        "adapter_sha256": sha256(Path(adapter, WEIGHTS)),
        "dtype": dtype,
        "lora": {name: settings.get(name) for name in ("r", "lora_alpha", "use_rslora")},
    }


def _sizes_and_times(base):
    """Size and time of change of all that a merge takes from its base; to read 15 GB of weights would take minutes."""
    files = sorted(path for path in Path(base).iterdir() if path.suffix in COPIED | {".safetensors"})
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}


def _made_from(out, base):
    """The origin of a folder that was merged here, {} for a new one; anything else is not ours to replace."""
    out = Path(out)
    if out.resolve() == Path(base).resolve():
        raise CourseError(f"合并后的模型不能写到基座自己的文件夹 {shown(out)}。修复：换一个文件夹名。")
    with suppress(FileNotFoundError, NotADirectoryError):
        return json.loads((out / ORIGIN).read_text(encoding="utf-8"))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CourseError(f"{shown(out)} 已经存在，而且不是课程合并出来的（没有 {ORIGIN}），不能覆盖。"
                          "修复：换一个文件夹名，或者自己先把它删掉。")
    return {}


def _weight_files(base):
    """The names of the base's safetensors files."""
    files = [SINGLE]
    if (base / INDEX).is_file():
        index = json.loads((base / INDEX).read_text(encoding="utf-8"))
        files = sorted(set(index["weight_map"].values()))
    missing = [file for file in files if not (base / file).is_file()]
    if missing and any(base.glob("*.bin")):
        raise CourseError(f"基座 {shown(base)} 的权重是 .bin 文件，里面是 pickle，打开它就可能运行别人的代码，"
                          "这里不读。修复：下载同一个模型的 safetensors 版本；相信它的来源的话，"
                          "改用 xtuner convert merge。")
    if missing:
        raise CourseError(f"基座 {shown(base)} 里缺少权重文件 {missing[0]}。修复：把模型重新下载完整。")
    return files


def _read_adapter(adapter) -> dict[str, Update]:
    """The update of each base weight that an adapter changes."""
    settings = json.loads((adapter / SETTINGS).read_text(encoding="utf-8"))
    unsupported = _unsupported(settings)
    if unsupported:
        raise CourseError(f"适配器 {shown(adapter)} 用了这里没有的功能：{'、'.join(unsupported)}。{INSTEAD}")
    weights = _opened(load_file, adapter / WEIGHTS)
    for name in weights:
        if not name.endswith((".lora_A.weight", ".lora_B.weight", ".base_layer.weight")):
            raise CourseError(f"适配器 {shown(adapter)} 里有这里不会合并的权重 {name}。{INSTEAD}")
    scale = settings["lora_alpha"] / (math.sqrt(settings["r"]) if settings.get("use_rslora") else settings["r"])
    updates = {}
    for layer in sorted({name.rsplit(".", 2)[0] for name in weights}):
        a, b = weights.get(f"{layer}.lora_A.weight"), weights.get(f"{layer}.lora_B.weight")
        if a is None or b is None:
            raise CourseError(f"适配器 {shown(adapter)} 不完整，{layer} 只有一半。修复：重做第 5 课的转换。")
        name = f"{layer.removeprefix('base_model.model.')}.weight"
        updates[name] = Update(a, b, scale, weights.get(f"{layer}.base_layer.weight"))
    return updates


def _unsupported(settings) -> list[str]:
    """What an adapter's settings ask for beyond plain LoRA."""
    unsupported = [name for name in NOT_PLAIN if settings.get(name)]
    kind, bias, start = settings.get("peft_type"), settings.get("bias", "none"), settings.get("init_lora_weights")
    if kind != "LORA":
        unsupported.append(f"peft_type={kind}")
    if bias != "none":
        unsupported.append(f"bias={bias}")
    if isinstance(start, str) and start != "gaussian":  # these change the base
        unsupported.append(f"init_lora_weights={start}")
    return unsupported


def _layout(path):
    """The type and shape of each tensor in a safetensors file."""
    layout = {}
    with _opened(safe_open, path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 (not a dict)
            tensor = file.get_slice(name)
            layout[name] = tensor.get_dtype(), tensor.get_shape()
    return layout


def _opened(opener: Callable, path: Path, *arguments):
    """Opens a safetensors file, or says that it is broken."""
    try:
        return opener(path, *arguments)
    except SafetensorError as error:
        raise CourseError(f"{shown(path)} 坏了（{error}）。修复：重新下载或者重新转换它。") from error


def _check_fit(base, adapter, layouts, updates):
    """Whether every change of the adapter has its place in the base."""
    tensors = {}
    for layout in layouts.values():
        tensors |= layout
    tied = json.loads((base / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings")
    for name, update in updates.items():
        if tied and name.split(".")[-2] in TIED:
            raise CourseError(f"适配器改了 {name}，可是这个基座的输出层和词嵌入共用一份权重（tie_word_embeddings），"
                              "合并会把两处一起改掉，回答就不对了。修复：训练时从 target_modules 里去掉它。")
        if name not in tensors:
            raise CourseError(f"基座 {shown(base)} 里没有适配器要改的 {name}。"
                              f"修复：用训练时的基座，{shown(adapter / SETTINGS)} 的 base_model_name_or_path 写着它。")
        kind, shape = tensors[name]
        if shape != update.shape:
            raise CourseError(f"{name} 的形状对不上：基座是 {shape}，适配器要 {update.shape}。"
                              f"修复：用训练时的基座，{shown(adapter / SETTINGS)} 的 base_model_name_or_path 写着它。")
        if kind not in DTYPES.values():
            raise CourseError(f"基座的 {name} 是量化过的（{kind}），不能再加上适配器。修复：用没有量化的基座模型。")


def _header(layout, dtype):
    """The header of the safetensors file to write: what lies where."""
    header, start = {}, 0
    for name, (kind, shape) in layout.items():
        kind = DTYPES[dtype] if kind in DTYPES.values() else kind
        size = math.prod(shape) * _bytes_of(kind)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, start + size]}
        start += size
    return header


def _size(header):
    """How many bytes of tensors a header announces."""
    return max(entry["data_offsets"][1] for entry in header.values())


def _bytes_of(kind):
    """The size of one number, which its name tells in bits: F16, BF16, I64, F8_E4M3, but BOOL."""
    bits = "".join(character for character in kind.split("_")[0] if character.isdigit())
    return int(bits or 8) // 8


def _write_shard(source, target, header, updates, dtype, device):
    """Writes one safetensors file; only one tensor at a time is in memory, for each opens the source anew."""
    text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in header:
            with safe_open(source, "pt", device=device) as weights:
                tensor = weights.get_tensor(name)
            if header[name]["dtype"] == DTYPES[dtype]:
                tensor = _merged(name, tensor.to(getattr(torch, dtype)), updates.get(name))
            tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tofile(file)


def _merged(name, weight, update):
    """The base weight plus the scaled product: like PEFT, added up in float32 and rounded once."""
    if update:
        product = update.b.to(weight.device, torch.float32) @ update.a.to(weight.device, torch.float32)
        if update.copy is not None:
            weight = update.copy.to(weight.device, weight.dtype)
        weight = product.mul_(update.scale).add_(weight.float()).to(weight.dtype)
    if not all(bound.isfinite() for bound in weight.aminmax()):
        raise CourseError(f"{name} 里有超出 {weight.dtype} 范围的数。修复：合并时用 dtype=\"bfloat16\"。")
    return weight


def _copy_the_rest(base, out, dtype, total):
    """Config, tokenizer and remote code of the base; the type and the size told as they are now."""
    for path in base.iterdir():
        if path.suffix in COPIED and path.is_file():
            shutil.copyfile(path, out / path.name)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    _write_json(out / "config.json", config | {"torch_dtype": dtype})
    if (out / INDEX).is_file():
        index = json.loads((out / INDEX).read_text(encoding="utf-8"))
        _write_json(out / INDEX, index | {"metadata": {"total_size": total}})


def _write_json(path, content):
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


@commands.command
def main():
    """The command line."""
    parser = commands.parser("一个张量一个张量地合并适配器")
    parser.add_argument("base", help="基座模型的文件夹")
    parser.add_argument("adapter", help="适配器的文件夹")
    parser.add_argument("out", help="合并后的模型写到这个新文件夹")
    arguments = parser.parse_args()
    merge(arguments.base, arguments.adapter, arguments.out)
    print(f"[OK] {arguments.out}")


if __name__ == "__main__":
    main()
