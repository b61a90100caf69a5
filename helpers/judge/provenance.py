"""What a comparison was made with, so that its figures can be traced: files, config, settings, versions, machine."""
import os
import platform
import re
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from helpers.machine import profile
from helpers.machine.files import sha256

PACKAGES = ("torch", "transformers", "xtuner", "peft", "bitsandbytes")
RECIPE = re.compile(r"^\s*(max_length|batch_size|accumulative_counts|max_epochs|lr|r|lora_alpha|lora_dropout)"
                    r"\s?=\s?([\d.e-]+)", re.M)
TRAINED_ON = re.compile(r"^alpaca_en_path = (['\"])(.+)\1$", re.M)


def provenance(before: str | Path, after: str | Path, exam: str | Path, settings: dict,
               adapter: str | Path | None = None) -> dict:
    """The files by their SHA-256, the training's config and its most telling values, settings, versions, date, machine.

    Unless told, the adapter is the folder `adapter` beside the merged model, where lessons 05 and 06 put them, or
    `after` itself; without one, the training's config and data stay out.
    """
    adapter = Path(adapter or Path(after).parent / "adapter")
    config_file = adapter / "xtuner_config.py"  # what XTuner really trained with
    config = config_file.read_text(encoding="utf-8") if config_file.exists() else ""
    files = {"微调前的模型": before, "微调后的模型": after, "适配器": adapter, "考题": exam}
    if adapter == Path(after):  # the base with its adapter on
        del files["微调后的模型"]
    if trained_on := TRAINED_ON.search(config):
        files["训练数据"] = trained_on[2]
    machine = profile.current()
    return {
        "files": {f"{what} {_shown(path)}": sha256(Path(path)) for what, path in files.items() if Path(path).exists()},
        "config": _shown(config),
        "recipe": dict(RECIPE.findall(config)),
        "settings": settings,
        "versions": {"python": platform.python_version()} | {package: version(package) for package in PACKAGES},
        "date": datetime.now().isoformat(" ", "minutes"),
        "machine": f"{machine.name}：{machine.gpu.name if machine.gpu else f'{os.cpu_count()} 个 CPU 核心'}",
    }


def _shown(text: str | Path) -> str:
    """The text without the folder that the course lies in."""
    return str(text).replace(str(profile.ROOT), "…")
