"""Publish an adapter: a folder with a model card, what is still wrong with it, and the commands that upload it.

Nothing here uploads. python -m helpers.homework.publish FOLDER REPO   checks the folder, then prints the commands.
"""
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import yaml
from huggingface_hub import ModelCard
from safetensors import SafetensorError, safe_open

from helpers.machine import commands
from helpers.machine.commands import CourseError
from helpers.machine.files import replaced_folder
from helpers.machine.process import shown
from helpers.train.adapter import SETTINGS, WEIGHTS

CARD, METAFILE = "README.md", "metafile.yml"
FILES = {CARD, METAFILE, SETTINGS, WEIGHTS}
SECTIONS = ("这是什么", "怎样使用", "训练数据", "效果", "局限")
FIELDS = {"license": "许可证，例如 apache-2.0", "language": "语言，例如 zh", "base_model": "基座在模型站上的名字",
          "library_name": "peft"}
SHORTEST_SECTION = 10
REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
LOCAL_PATH = re.compile(r"(?<![\w/:.])/(?:home|root|mnt|work|Users)/\S*|[A-Za-z]:\\\S+")
TOKEN = re.compile(r"\bhf_\w{20,}|\bms-[0-9a-f-]{30,}")
PLACEHOLDER = "在这里写"


def prepare(adapter: str | Path, card: str, repo: str, folder: str | Path) -> None:
    """Makes the folder to publish: the adapter, its base named as on a hub, the card, and OpenXLab's own list."""
    _check_name(repo)
    _check_ours(Path(folder))
    with replaced_folder(folder) as beside:
        (beside / CARD).write_text(card, encoding="utf-8")
        data = _read(beside / CARD)[0]
        settings = json.loads(Path(adapter, SETTINGS).read_text(encoding="utf-8"))
        settings["base_model_name_or_path"] = data.get("base_model")  # not the path on this machine
        (beside / SETTINGS).write_text(json.dumps(settings, indent=2), encoding="utf-8")
        shutil.copyfile(Path(adapter, WEIGHTS), beside / WEIGHTS)
        (beside / METAFILE).write_text(_metafile(repo, data.get("license")), encoding="utf-8")


def _check_ours(folder):
    """Only a folder that prepare made, or an empty one, may be replaced: the list for OpenXLab is in no other."""
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    foreign = names - FILES
    if names and (METAFILE not in names or foreign):
        raise CourseError(f"{shown(folder)} 里有不是 prepare 写的东西（{'、'.join(sorted(foreign or names))}），"
                          "不能覆盖。修复：换一个文件夹名，或者自己先把它移走。")


def _metafile(repo, license_name):
    """What OpenXLab wants to be told; it uploads the files that are listed here as weights."""
    results = [{"Task": "Text Generation", "Dataset": "own"}]
    return yaml.safe_dump({
        "Collections": [{"Name": repo.split("/")[1], "License": license_name,
                         "Code": {"URL": f"https://openxlab.org.cn/models/detail/{repo}"}}],
        "Models": [{"Name": name, "Results": results, "Weights": name} for name in (WEIGHTS, SETTINGS)],
    }, sort_keys=False, allow_unicode=True)


def problems(folder: str | Path) -> list[str]:
    """What keeps a folder from being published, in plain words; an empty list if nothing does."""
    folder = Path(folder)
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    faults = [f"缺少 {name}。" for name in sorted(FILES - names)]
    faults += [f"多了 {name}：发布的文件夹里只放要发布的，删掉它。" for name in sorted(names - FILES)]
    if CARD in names:
        faults += _card_faults(folder / CARD)
    if SETTINGS in names:
        base = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["base_model_name_or_path"]
        if not REPO.fullmatch(str(base)):
            faults.append(f"{SETTINGS} 里的基座是 {base}，别人的机器上没有："
                          "先改好说明里的 base_model，再运行 prepare。")
    if WEIGHTS in names:
        faults += _weight_faults(folder / WEIGHTS)
    return faults


def _weight_faults(path):
    """What keeps a file from being the weights of a LoRA."""
    try:
        with safe_open(path, "pt") as weights:
            others = [name for name in weights.keys() if ".lora_" not in name]  # noqa: SIM118
    except SafetensorError:
        return [f"{WEIGHTS} 不完整：从第 5 课的适配器重新复制。"]
    if others:
        return [f"{WEIGHTS} 里有 {others[0]}，它不是 LoRA 的权重：从第 5 课的适配器重新复制。"]
    return []


def _card_faults(path):
    """What a model card lacks, and what must not stand in it."""
    data, text = _read(path)
    faults = [f"说明的开头缺 {name}（{meaning}）。" for name, meaning in FIELDS.items() if not data.get(name)]
    base = data.get("base_model")
    if base and not REPO.fullmatch(str(base)):
        faults.append(f"base_model 写的是 {base}：要写成“作者/模型”，例如 internlm/internlm2_5-7b-chat。")
    if data.get("library_name", "peft") != "peft":
        faults.append("library_name 要写 peft：别人才知道这是适配器，不是整个模型。")
    sections = dict(re.findall(r"^## +(.+?) *\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    for title in SECTIONS:
        written = sections.get(title, "").strip()
        if len(written) < SHORTEST_SECTION or PLACEHOLDER in written:
            faults.append(f"“## {title}”一节还没有写。")
    faults += [f"说明里有只在你机器上的路径 {local}：删掉。" for local in LOCAL_PATH.findall(text)]
    if TOKEN.search(path.read_text(encoding="utf-8")):
        faults.append("说明里有访问令牌！删掉，再到网站上把这个令牌作废。")
    return faults


def _read(path):
    """A card's front matter and its text."""
    try:
        card = ModelCard.load(path)
    except (ValueError, yaml.YAMLError):  # no front matter, or one that is no YAML
        return {}, path.read_text(encoding="utf-8")
    return card.data.to_dict(), card.text


def upload_commands(repo: str) -> dict[str, list[str]]:
    """The command for each hub, to be run in the folder to publish: {hub: words}."""
    _check_name(repo)
    return {
        "ModelScope": ["modelscope", "upload", repo, "."],
        "Hugging Face": ["huggingface-cli", "upload", repo, ".", "."],
        "OpenXLab": ["openxlab", "model", "create", "--model-repo", repo, "--source", METAFILE],
    }


def _check_name(repo):
    if not REPO.fullmatch(repo):
        raise CourseError(f"模型站不认识“{repo}”这样的名字：要写成“用户名/模型名”，只用字母、数字、点、横线和下划线。")


@commands.command
def main() -> None:
    """The command line."""
    parser = commands.parser(__spec__, "检查要发布的文件夹，列出上传的命令")
    parser.add_argument("folder", type=Path, help="要发布的文件夹")
    parser.add_argument("repo", help="用户名/模型名")
    options = parser.parse_args()
    if faults := problems(options.folder):
        sys.exit("\n".join(f"[FAIL] {fault}" for fault in faults))
    uploads = upload_commands(options.repo)
    print(f"可以发布。\n\ncd {shlex.quote(str(options.folder))}")
    for hub, words in uploads.items():
        print(f"{shlex.join(words)}  # {hub}")


if __name__ == "__main__":
    main()
