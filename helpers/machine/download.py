"""Get a base model by a platform's own client: how large it is and whether there is room is told before anything comes.

python -m helpers.machine.download [NAME] [--from hf|modelscope|openxlab] [--into FOLDER] [--dry-run]

What was interrupted is taken up where it stopped; the model appears under its name when it is whole. The client runs as
a program of its own: the course's own programs are told to stay away from the network, and so is this process.
"""
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import requests
from huggingface_hub.utils import build_hf_headers

from helpers.machine import commands, files, model_folder, profile
from helpers.machine.commands import CourseError

NOT_NEEDED = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack", "*.onnx")  # the weights again, in other formats
SECONDS_TO_ANSWER = 20
IDENTIFIER = re.compile(r"\w[\w.-]*/\w[\w.-]*")
USUAL = "hf"


@dataclass(frozen=True)
class Base:
    """A base model: what each platform calls it, and how many 16-bit numbers it is."""

    hf: str
    modelscope: str
    openxlab: str | None
    parameters: int


@dataclass(frozen=True)
class Platform:
    """Where models are had: its client's command, and who tells the size of a model's files, by their names."""

    title: str
    endpoint: str
    package: str
    command: tuple[str, ...]
    ask: Callable[[str, str], dict[str, int]] | None = None


def _ask_hf(endpoint, identifier):
    answer = _answer(f"{endpoint}/api/models/{identifier}/revision/main", {"blobs": "true"}, build_hf_headers())
    return {file["rfilename"]: file["size"] for file in answer["siblings"]}


def _ask_modelscope(endpoint, identifier):
    answer = _answer(f"{endpoint}/api/v1/models/{identifier}/repo/files", {"Recursive": "true"},
                     {"User-Agent": "spreadsheet-to-assistant"})
    return {file["Path"]: file["Size"] for file in answer["Data"]["Files"] if file["Type"] != "tree"}


def _answer(url, parameters, headers):
    response = requests.get(url, parameters, headers=headers, timeout=SECONDS_TO_ANSWER)
    response.raise_for_status()
    return response.json()


BASES = {
    "InternLM2.5-7B-chat": Base("internlm/internlm2_5-7b-chat", "Shanghai_AI_Laboratory/internlm2_5-7b-chat",
                                "OpenLMLab/internlm2_5-7b-chat", 7_737_708_544),
    "InternLM2.5-1.8B-chat": Base("internlm/internlm2_5-1_8b-chat", "Shanghai_AI_Laboratory/internlm2_5-1_8b-chat",
                                  "OpenLMLab/internlm2_5-1_8b-chat", 1_889_110_016),
    "Qwen2.5-7B-Instruct": Base("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct", None, 7_615_616_512),
    "Qwen2.5-1.5B-Instruct": Base("Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct", None, 1_543_714_304),
    "Qwen2.5-0.5B-Instruct": Base("Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct", None, 494_032_768),
}
PLATFORMS = {
    "hf": Platform("Hugging Face（镜像）", "https://hf-mirror.com", "huggingface_hub",
                   ("hf", "download", "{id}", "--local-dir", "{folder}", "--exclude", *NOT_NEEDED), _ask_hf),
    "modelscope": Platform("ModelScope", "https://www.modelscope.cn", "modelscope",
                           ("modelscope", "download", "--model", "{id}", "--local_dir", "{folder}",
                            "--exclude", *NOT_NEEDED), _ask_modelscope),
    "openxlab": Platform("OpenXLab", "https://openxlab.org.cn", "openxlab",
                         ("openxlab", "model", "download", "--model-repo", "{id}", "--output", "{folder}")),
}


def download(name: str, platform: str = USUAL, into: Path = profile.DOWNLOADED, dry_run: bool = False) -> Path:
    """The folder of a whole base model, downloaded if it is not there.

    The name is one of BASES or the platform's own, author/model. HF_ENDPOINT says which mirror of Hugging Face.
    """
    identifier, site = _identifier(name, platform), PLATFORMS[platform]
    folder = into.resolve() / identifier.split("/")[1]
    if folder.exists() and not model_folder.problem(folder):
        print(f"[OK]   已经有了，而且完整：{folder}")
        return folder
    partial = folder.with_name(f"{folder.name}.partial")
    command = [word.format(id=identifier, folder=partial) for word in site.command]
    endpoint = _endpoint(platform)
    total, had = _size(name, identifier, site, endpoint), _size_of(partial if partial.exists() else folder)
    _check_disk(folder.parent, total, had, f"{identifier}（{site.title}，{endpoint}）")
    mirror = f"HF_ENDPOINT={endpoint} " if platform == "hf" else ""
    print(f"       {mirror}{shlex.join(command)}", flush=True)
    if dry_run:
        print("       这只是预演，什么也没有下载。")
    if not _program(command[0]):
        raise CourseError(f"这台机器没有 {site.title} 的客户端 {command[0]}，什么也没有下载。{_how_to_install(site)}")
    if dry_run:
        return folder
    busy = f"{folder.name} 正在另一个窗口里下载。修复：等它下完。"
    with files.locked(folder.with_name(f".{folder.name}.lock"), busy) as lock:
        _tidy(folder, partial)
        _run(command, endpoint, lock)
        _take(folder, partial)
    print(f"[OK]   下载完了，而且完整：{folder}\n{_how_to_use(folder)}")
    return folder


def _known(name):
    return next((base for known, base in BASES.items() if known.lower() == name.lower()), None)


def _identifier(name, platform):
    """What the platform calls a model."""
    base = _known(name)
    if base and not getattr(base, platform):
        raise CourseError(f"{PLATFORMS[platform].title} 上没有 {name}。修复：换一个平台，例如 --from {USUAL}。")
    if not base and not IDENTIFIER.fullmatch(name):
        raise CourseError(f"不认识 {name}。修复：写下面的一个，或者写平台上的名字“作者/模型”：{'、'.join(BASES)}。")
    return getattr(base, platform) if base else name


def _endpoint(platform):
    return (platform == "hf" and os.environ.get("HF_ENDPOINT") or PLATFORMS[platform].endpoint).rstrip("/")


def _size(name, identifier, site, endpoint):
    """How many bytes a download will be, as the platform tells; where it tells nothing, as we know."""
    if not site.ask:
        if not _known(name):
            raise CourseError(f"不知道 {name} 有多大，{site.title} 也问不到。修复：换一个平台，例如 --from {USUAL}。")
        return 2 * _known(name).parameters
    other = "、".join(f"--from {key}" for key, value in PLATFORMS.items() if value is not site)
    try:
        sizes = site.ask(endpoint, identifier)
        wanted = {file: size for file, size in sizes.items() if not any(fnmatch(file, way) for way in NOT_NEEDED)}
        total = sum(wanted.values())
    except requests.HTTPError as error:
        code = error.response.status_code
        why = "没有这个模型，或者要先登录才能下载" if code in (401, 403, 404) else f"出了错（{code}）"
        raise CourseError(f"{endpoint} 说 {identifier} {why}。修复：检查名字，或者换一个平台：{other}。") from error
    except requests.ConnectionError as error:
        raise CourseError(f"连不上 {endpoint}。修复：检查网络，或者换一个平台：{other}。") from error
    except (requests.RequestException, LookupError, TypeError) as error:
        raise CourseError(f"{endpoint} 没有说清 {identifier} 有多大。修复：等一会儿再试，或者换一个平台：{other}。"
                          ) from error
    if not any(file.endswith(".safetensors") for file in wanted):
        raise CourseError(f"{identifier} 里没有 .safetensors 的权重，课程不能用。修复：换一个含有它的版本。")
    return total


def _size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _check_disk(place, total, had, what):
    """Says how large the download is; refuses what the disk has no room for."""
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    free, needed = shutil.disk_usage(existing).free, max(total - had, 0)
    if needed > free:
        raise CourseError(f"磁盘不够：{what}还要下载 {needed / 1e9:.2f} GB，{place} 那里只剩 {free / 1e9:.2f} GB，"
                          "什么也没有下载。修复：腾出空间，或者用 --into 换到更大的磁盘上。")
    done = f"，已经下了 {had / 1e9:.2f} GB" if had else ""
    print(f"[OK]   {what}：一共 {total / 1e9:.2f} GB{done}；磁盘还剩 {free / 1e9:.2f} GB", flush=True)


def _search_path():
    """Where clients are: in the course's environment, on the PATH, and where uv puts tools."""
    return os.pathsep.join([profile.environment()["PATH"], str(Path.home() / ".local" / "bin")])


def _program(name):
    return shutil.which(name, path=_search_path())


def _how_to_install(site):
    """A client's own packages could change the course's: it gets an environment of its own."""
    uv = Path(sys.executable).with_name("uv")
    return f"修复：先安装它：{uv} tool install {site.package}，再运行一次同样的命令；或者换一个平台：--from {USUAL}。"


def _how_to_use(folder):
    if folder in profile.PLATFORM_MODELS:
        return "       有 GPU 的机器上，课程会自己找到它。"
    return f"       用它上课：COURSE_BASE_MODEL={shlex.quote(str(folder))} make lab"


def _tidy(folder, partial):
    """What is there of a model is taken up; a damaged file of weights is not, the client would take it for whole."""
    if folder.exists() and partial.exists():
        raise CourseError(f"{folder} 不完整，{partial} 又是一次没下完的下载。修复：删掉其中一个，再运行一次。")
    if folder.exists():
        folder.rename(partial)
    for shard in partial.glob("*.safetensors"):
        if model_folder.damage(shard):
            shard.unlink()


def _run(command, endpoint, lock):
    """Runs the client, which draws its own progress; no second one runs while it lives."""
    variables = {
        "PATH": _search_path(),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",  # Xet's servers have no mirror
        "HF_HUB_ENABLE_HF_TRANSFER": "0",  # takes nothing up where it stopped
    }
    again = "修复：再运行一次同样的命令，会从断的地方接着下。"
    try:
        done = subprocess.run([_program(command[0]), *command[1:]], env=profile.environment() | variables,
                              pass_fds=[lock.fileno()], check=False)
    except KeyboardInterrupt:
        raise CourseError(f"下载停下了，已经下好的都还在。{again}") from None
    if done.returncode:
        raise CourseError(f"{command[0]} 没有下载完（退出码 {done.returncode}），原因在上面。{again}")


def _take(folder, partial):
    """Gives a whole model its name; some clients put it into a folder more."""
    deeper = model_folder.inside(partial) if not (partial / "config.json").exists() else []
    model = deeper[0] if len(deeper) == 1 else partial
    if why := model_folder.problem(model):
        raise CourseError(f"下载结束了，但是还不能用：{why}")
    model.rename(folder)
    shutil.rmtree(partial, ignore_errors=True)


@commands.command
def main(arguments: list[str]) -> None:
    """The command line."""
    parser = commands.parser("下载一个基座模型，断了可以接着下，下完检查是不是完整")
    parser.add_argument("name", nargs="?", help=f"{'、'.join(BASES)}，或者平台上的名字“作者/模型”；不写就列出它们")
    parser.add_argument("--from", dest="platform", choices=PLATFORMS, default=USUAL,
                        help=f"从哪里下载（默认：{USUAL}；镜像可以用环境变量 HF_ENDPOINT 换）")
    parser.add_argument("--into", type=Path, default=profile.DOWNLOADED,
                        help="放到哪个文件夹里（默认：workspace/base）")
    parser.add_argument("--dry-run", action="store_true", help="只说有多大、会运行什么，不下载")
    options = parser.parse_args(arguments)
    if options.name:
        download(options.name, options.platform, options.into, options.dry_run)
    else:
        print("\n".join(f"{name:<22} 约 {2 * base.parameters / 1e9:4.1f} GB" for name, base in BASES.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
