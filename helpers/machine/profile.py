"""Where this machine differs from another: the GPU, the base model, the config's edits. Nothing else knows."""
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from helpers.machine import model_folder
from helpers.machine.commands import CourseError

ROOT = Path(__file__).parents[2]
TINY_BASE = ROOT / "assets" / "tiny-base"
DOWNLOADED = ROOT / "workspace" / "base"  # where helpers.machine.download puts models
PLATFORM_MODELS = (
    Path("/root/share/new_models/Shanghai_AI_Laboratory/internlm2_5-7b-chat"),
    Path("/share/new_models/Shanghai_AI_Laboratory/internlm2_5-7b-chat"),
    DOWNLOADED / "internlm2_5-7b-chat",
)
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",  # a mistyped path would wait 80 s for a hub
    "GOMP_SPINCOUNT": "3000",  # idle threads spin a moment: never costs a fifth, ever so long 3-10 times when not alone
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore:The pynvml package is deprecated:FutureWarning",
    "TORCHDYNAMO_DISABLE": "1",  # nothing here is compiled, and importing the compiler takes seconds
}


class ProfileError(CourseError):
    """A profile that cannot work on this machine."""


@dataclass(frozen=True)
class Gpu:
    """The GPU that torch can use."""

    name: str
    gigabytes: float
    driver: str
    bf16: bool


@dataclass(frozen=True)
class Profile:
    """What a lesson needs to know about the machine."""

    name: str
    base_model: Path
    gpu: Gpu | None
    imports: dict[str, str] = field(repr=False)
    config_edits: dict[str, str | None] = field(repr=False)
    recipe: dict[str, str] = field(repr=False)
    laboratory: dict[str, str] = field(repr=False)  # what the recipe changes when a model is to be ruined quickly
    trainings_at_once: int = field(repr=False)
    chat_options: tuple[str, ...] = field(repr=False)
    passages_read: int = field(repr=False)  # how many at once the base model can read an answer from
    own_name: str = field(repr=False)  # what the base model calls itself
    device: str = field(repr=False)
    dtype: str = field(repr=False)
    disk_gb: int = field(repr=False)
    embedding_model: Path | None = None  # a sentence-transformers folder, if one is named


CPU = {
    "imports": {"SupervisedFinetune": "helpers.cpu", "OptimWrapper": "mmengine.optim"},
    "config_edits": {
        "model.use_activation_checkpointing": "False",
        "model.llm.torch_dtype": "torch.bfloat16",
        "model.llm.quantization_config.bnb_4bit_compute_dtype": "torch.bfloat16",
        "optim_wrapper.type": "OptimWrapper",
        "optim_wrapper.loss_scale": None,
        "optim_wrapper.dtype": None,
        "env_cfg.dist_cfg.backend": '"gloo"',
    },
    "recipe": {
        "max_length": "256", "batch_size": "4", "max_epochs": "3", "lr": "4e-4", "model.lora.lora_dropout": "0.0",
    },
    "laboratory": {"lr": "2e-3", "model.lora.r": "16"},
    "trainings_at_once": 2,
    "chat_options": ("--torch-dtype", "fp32"),
    "passages_read": 1,
    "own_name": "教学模型",
    "device": "cpu",
    "dtype": "float32",
    "disk_gb": 1,
}
GPU = {
    "imports": {},
    "config_edits": {},
    "recipe": {"max_length": "512", "batch_size": "4", "max_epochs": "3", "lr": "2e-4"},
    "laboratory": {"lr": "1e-3", "model.lora.r": "16"},
    "trainings_at_once": 1,
    "chat_options": (),
    "passages_read": 3,
    "own_name": "书生",
    "device": "cuda",
    "dtype": "bfloat16",
    "disk_gb": 40,
}
PROFILES = {"cpu": CPU, "gpu": GPU}


def find_gpu() -> Gpu | None:
    """The GPU that torch can use, or None."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return Gpu(properties.name, properties.total_memory / 1e9, _driver_version(), torch.cuda.is_bf16_supported())


def _driver_version() -> str:
    """The NVIDIA driver's version as the kernel module tells it."""
    path = Path("/proc/driver/nvidia/version")
    words = path.read_text().split() if path.exists() else []
    return next((word for word in words if word[0].isdigit() and "." in word), "?")


def current() -> Profile:
    """The profile of this machine; COURSE_PROFILE, COURSE_BASE_MODEL, COURSE_EMBEDDING_MODEL override what is found."""
    gpu = find_gpu()
    name = os.environ.get("COURSE_PROFILE") or ("gpu" if gpu else "cpu")
    if name not in PROFILES:
        raise ProfileError(f"COURSE_PROFILE={name} 不认识。请改成 cpu 或 gpu，或者取消这个变量，让课程自己判断。")
    if name == "gpu" and gpu is None:
        raise ProfileError("COURSE_PROFILE=gpu，但这台机器上 torch 找不到可用的 GPU。"
                           "请用 nvidia-smi 检查显卡和驱动，或者取消 COURSE_PROFILE，改在 CPU 上运行。")
    return Profile(name, _base_model(name), gpu if name == "gpu" else None,
                   embedding_model=_embedding_model(), **PROFILES[name])


def _embedding_model() -> Path | None:
    chosen = os.environ.get("COURSE_EMBEDDING_MODEL")
    return Path(chosen).expanduser().resolve() if chosen else None


def _base_model(profile_name: str) -> Path:
    if chosen := os.environ.get("COURSE_BASE_MODEL"):
        path = Path(chosen).expanduser().resolve()
        if why := model_folder.problem(path):
            raise ProfileError(f"COURSE_BASE_MODEL={chosen} 不能用：{why}")
        return path
    if profile_name == "cpu":
        return TINY_BASE
    faults = {path: model_folder.problem(path) for path in PLATFORM_MODELS if (path / "config.json").is_file()}
    for path, why in faults.items():
        if not why:
            return path
    for why in faults.values():
        raise ProfileError(f"InternLM2.5-7B-chat 不能用：{why}")
    raise ProfileError("没有找到 InternLM2.5-7B-chat，找过：" + "、".join(map(str, PLATFORM_MODELS))
                       + "。请用 make base MODEL=InternLM2.5-7B-chat 下载它，或者把环境变量 COURSE_BASE_MODEL 设成你的"
                       "模型文件夹，或者用 COURSE_PROFILE=cpu 使用小模型。")


def made_by(lesson: str, path: Path) -> Path:
    """The path of something that an earlier lesson makes; if it is not there, the error names the lesson."""
    if not path.exists():
        named = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        raise FileNotFoundError(f"缺少 {named}：请先运行{lesson}。")
    return path


def environment() -> dict[str, str]:
    """The process environment for everything that the course launches."""
    folder_of_python = str(Path(sys.executable).parent)  # xtuner starts `python` by name
    path = os.environ.get("PATH") or os.defpath
    not_proxied = [os.environ.get("no_proxy"), os.environ.get("NO_PROXY"), "127.0.0.1"]  # where our own pages are
    return os.environ | ENVIRONMENT | {
        "no_proxy": ",".join(filter(None, not_proxied)),
        "PATH": os.pathsep.join([folder_of_python, path]),
    }


if __name__ == "__main__":
    # python -m helpers.machine.profile COMMAND ...   runs a command in the course's environment.
    os.execvpe(sys.argv[1], sys.argv[1:], environment())
