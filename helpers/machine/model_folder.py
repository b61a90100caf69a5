"""Whether a model folder is whole. The usual accidents of getting a model are recognised; nothing in it is ever run.

python -m helpers.machine.model_folder FOLDER   says in a line what is wrong and exits 1, or that nothing is.
"""
import json
import re
import sys
from pathlib import Path

from helpers.machine import commands
from helpers.machine.commands import CourseError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
LFS_POINTER_AT_MOST = 1024  # bytes
LONGEST_HEADER = 100_000_000  # bytes; safetensors reads no longer one
LEFT_OVER = ("*.incomplete", "*.part", "*.aria2", "*.crdownload",  # of hf, wget and others, aria2, a browser
             ".cache/huggingface/download/**/*.incomplete", "._____temp/**/*")  # of hf, of ModelScope
VOCABULARIES = ({"tokenizer.json"}, {"tokenizer.model"}, {"vocab.json", "merges.txt"}, {"qwen.tiktoken"})
DEEPEST = 3  # Hugging Face's cache has its models at models--author--name/snapshots/hash
DAMAGED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
DOWNLOAD = "make base MODEL=名字"
ORIGINAL = "修复：下载它的原始模型，也就是含有 .safetensors 的那个仓库。"


def problem(folder: str | Path) -> str | None:
    """What is wrong with a model folder first of all: what, where, what to do, in a sentence; None if it is whole."""
    looks = (_no_model, _pointers, _left_over, _unreadable, _missing_weights, _damaged_weights, _no_tokenizer, _no_code)
    return next(filter(None, (look(Path(folder)) for look in looks)), None)


def damage(shard: Path) -> str | None:
    """What is wrong with a file of weights: its own header says how long it has to be."""
    mend = "修复：删掉它，再下载一次，别的文件不会重下。"
    try:
        demanded = _demanded_size(shard)
    except DAMAGED:
        return f"{shard} 从开头就读不懂，可能没有下载完，也可能不是 safetensors 文件。{mend}"
    size = shard.stat().st_size
    if size < demanded:
        return f"{shard} 没有下载完：应该有 {demanded:,} 字节，只有 {size:,} 字节。{mend}"
    if size > demanded:
        return f"{shard} 坏了：应该有 {demanded:,} 字节，却有 {size:,} 字节。{mend}"
    return None


def bytes_of_weights(folder: str | Path) -> int:
    """How many bytes of weights a model folder holds."""
    return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))


def inside(folder: Path) -> list[Path]:
    """The models that lie deeper in a folder: in a cache of Hugging Face, or in a folder of the same name."""
    for depth in range(1, DEEPEST + 1):
        configs = sorted(folder.glob("*/" * depth + "config.json"))
        if models := [config.parent for config in configs if any(config.parent.glob("*.safetensors"))]:
            return models
    return []


def _no_model(folder):
    if folder.suffix == ".gguf" and folder.is_file():
        return f"{folder} 是 GGUF 文件：llama.cpp 能用它回答，但是不能拿来微调。{ORIGINAL}"
    if not folder.is_dir():
        return f"{folder} 不存在，或者不是文件夹。修复：改正路径；还没有模型就先下载：{DOWNLOAD}。"
    if (folder / "config.json").is_file():
        return None
    if not any(folder.iterdir()):
        return f"{folder} 是空的，里面没有模型。修复：先下载：{DOWNLOAD}。"
    if (folder / "adapter_config.json").is_file():
        return f"{folder} 里是适配器，不是模型。修复：改成训练这个适配器时用的基座模型的文件夹。"
    if any(folder.glob("*.gguf")):
        return f"{folder} 里是 GGUF 文件：llama.cpp 能用它回答，但是不能拿来微调。{ORIGINAL}"
    if models := inside(folder):
        which = "把路径改成它" if len(models) == 1 else f"里面有 {len(models)} 个模型，选一个，把路径改成它的"
        return f"模型不在 {folder}，而在更里面的 {models[0]}。修复：{which}。"
    return f"{folder} 里没有模型（找不到 config.json）。修复：改成含有 config.json 的文件夹，或者先下载：{DOWNLOAD}。"


def _pointers(folder):
    small = [path for path in sorted(folder.iterdir()) if path.is_file() and path.stat().st_size <= LFS_POINTER_AT_MOST]
    if pointers := [path.name for path in small if path.read_bytes().startswith(LFS_POINTER)]:
        return (f"{folder} 里有 {len(pointers)} 个文件只是 Git LFS 的指针（例如 {pointers[0]}），内容没有下载下来。"
                f"修复：在这个文件夹里运行 git lfs pull，或者重新下载：{DOWNLOAD}。")
    return None


def _left_over(folder):
    files = [path for pattern in LEFT_OVER for path in sorted(folder.glob(pattern)) if path.is_file()]
    if files:
        return (f"{folder} 没有下载完，里面还留着 {files[0].relative_to(folder)}。"
                "修复：再运行一次下载的命令，会接着下；确定已经下完的话，删掉这个文件。")
    return None


def _unreadable(folder):
    for name in ("config.json", "tokenizer_config.json", INDEX):
        path = folder / name
        try:
            if path.is_file() and not isinstance(_json(path), dict):
                raise ValueError
            if path.is_file() and name == INDEX:
                _shards(folder)
        except DAMAGED:
            return f"{path} 读不懂，可能没有下载完，也可能存成了网页。修复：删掉它，再下载一次。"
    return None


def _missing_weights(folder):
    if shards := _shards(folder):
        if missing := sorted(shard.name for shard in shards if not shard.is_file()):
            return (f"{folder} 里的权重有 {len(shards)} 个文件，还缺 {len(missing)} 个，例如 {missing[0]}。"
                    "修复：再下载一次，已经有的不会重下。")
        return None
    if any(folder.glob("*.safetensors")):
        return f"{folder} 缺 {INDEX}，不知道权重分在哪几个文件里。修复：把这个文件也下载下来。"
    if any(folder.glob("*.bin")):
        return (f"{folder} 里的权重只有 .bin。这是 pickle 格式，读它就等于运行别人的程序，课程不用。"
                "修复：下载含有 .safetensors 的版本。")
    return f"{folder} 里没有权重（找不到 {WEIGHTS}）。修复：再下载一次，已经有的不会重下。"


def _damaged_weights(folder):
    return next(filter(None, map(damage, sorted(_shards(folder)))), None)


def _no_tokenizer(folder):
    here = {path.name for path in folder.iterdir()}
    if "tokenizer_config.json" not in here:
        missing = "tokenizer_config.json"
    elif not any(names <= here for names in VOCABULARIES):
        missing = "tokenizer.json 或者 tokenizer.model"
    else:
        return None
    return f"{folder} 缺分词器的文件（找不到 {missing}）。修复：再下载一次，已经有的不会重下。"


def _no_code(folder):
    """A model's own program is named in auto_map, and its files name each other."""
    classes = [name for file in ("config.json", "tokenizer_config.json") for name in _auto_map(folder / file)]
    if elsewhere := [name for name in classes if "--" in name]:
        return (f"{folder} 自己的程序不在里面，而在 {elsewhere[0].partition('--')[0]} 那个仓库，课程不会联网去取。"
                "修复：重新下载原始的模型，所有 .py 文件也要。")
    wanted, seen = {name.partition(".")[0] for name in classes}, set()
    while wanted - seen:
        module = min(wanted - seen)
        path = folder / f"{module}.py"
        if not path.is_file():
            return f"{folder} 缺模型自己的程序 {path.name}。修复：再下载一次，所有 .py 文件都要。"
        seen.add(module)
        wanted |= set(re.findall(r"^\s*from \.(\w+) import", path.read_text(encoding="utf-8", errors="replace"), re.M))
    return None


def _auto_map(path):
    """The classes of the model's own program, such as modeling_internlm2.InternLM2ForCausalLM."""
    if not path.is_file():
        return []
    named = _json(path).get("auto_map") or {}
    groups = named.values() if isinstance(named, dict) else [named]  # an old tokenizer has a mere list
    return [name for group in groups for name in (group if isinstance(group, list) else [group])
            if isinstance(name, str)]


def _shards(folder):
    """The files of weights that the folder must have, as transformers looks for them; none if it cannot be known."""
    if (folder / WEIGHTS).is_file():
        return {folder / WEIGHTS}
    if (folder / INDEX).is_file():
        return {folder / name for name in _json(folder / INDEX)["weight_map"].values()}
    return set()


def _demanded_size(shard):
    """The length of a safetensors file: eight bytes that tell the header's length, the header, the numbers."""
    with shard.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LONGEST_HEADER:
            raise ValueError(length)
        header = json.loads(file.read(length))
    return 8 + length + max(int(tensor["data_offsets"][1]) for name, tensor in header.items() if name != "__metadata__")


def _json(path):
    return json.loads(path.read_text(encoding="utf-8"))


@commands.command
def main(arguments: list[str]) -> None:
    """The command line."""
    parser = commands.parser(__spec__, "检查一个模型文件夹是不是完整")
    parser.add_argument("folder", type=Path, help="模型文件夹")
    folder = parser.parse_args(arguments).folder
    if why := problem(folder):
        raise CourseError(why)
    print(f"[OK]   {folder} 是完整的：配置、权重、分词器都在")


if __name__ == "__main__":
    main(sys.argv[1:])
