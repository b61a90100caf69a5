"""What was measured on which card, as READMEs and lessons show it: assets/measured/ has a file for each card.

tools/measure.py writes them.
"""
import json
from pathlib import Path

from helpers.machine.profile import ROOT

MEASURED = ROOT / "assets" / "measured"
LANGUAGES = "中文", "English"
NOT_YET = ("还没有测过。在有 NVIDIA 显卡的机器上运行一次 `make measure`，这里就有数字了。",
           "Not measured yet. Run `make measure` once on a machine with an NVIDIA GPU, and figures stand here.")
WITH_RANDOM_WEIGHTS = "{}，权重随机", "{}, random weights"
MISSING = "还没有测过", "not measured yet"
FAILED = "没有测成：{}", "failed: {}"
# What is done, in the order of the table.
STEPS = {
    "training": ("XTuner 训练（QLoRA）", "training with XTuner (QLoRA)"),
    "peft": ("同样的数据，几行 PEFT 循环", "the same rows, a plain PEFT loop"),
    "adapter": ("提取适配器", "extracting the adapter"),
    "merge": ("合并，一个张量一个张量地", "merge, a tensor at a time"),
    "xtuner_merge": ("合并，用 XTuner", "merge, XTuner's"),
    "gguf": ("转成 GGUF", "conversion to GGUF"),
    "llama_cpp": ("量化成 q4_k_m，用 llama.cpp 回答（CPU）", "q4_k_m, asked in llama.cpp (CPU)"),
    "turbomind": ("LMDeploy，TurboMind 引擎", "LMDeploy, TurboMind engine"),
    "turbomind_kv8": ("同上，`--quant-policy 8`", "the same, `--quant-policy 8`"),
    "pytorch": ("LMDeploy，PyTorch 引擎", "LMDeploy, PyTorch engine"),
    "pytorch_kv8": ("同上，`--quant-policy 8`", "the same, `--quant-policy 8`"),
    "awq": ("LMDeploy 量化成 W4A16", "LMDeploy's quantizing to W4A16"),
    "turbomind_w4a16": ("W4A16 在 TurboMind 里", "W4A16 in TurboMind"),
}
# A figure's unit in the files, and how it is told.
FIGURES = {
    "seconds": ("s", "{} 秒", "{} s"),
    "start": ("s", "启动 {} 秒", "starts in {} s"),
    "speed": ("tokens/s", "每秒 {} 词元", "{} tokens/s"),
    "together": ("tokens/s", "8 个人同时问，一共每秒 {} 词元", "8 at a time {} tokens/s"),
    "gpu": ("GB", "显存 {} GB", "GPU {} GB"),
    "tensors": ("GB", "其中张量 {} GB", "of that tensors {} GB"),
    "estimated": ("GB", "第 3 课的估计 {} GB", "lesson 03's estimate {} GB"),
    "limit": ("GB", "要放进 {} GB", "to fit into {} GB"),
    "ram": ("GB", "内存 {} GB", "RAM {} GB"),
}


def markdown(language: str, folder: Path = MEASURED) -> str:
    """A table of all that was measured, a column for each card; a sentence where nothing was."""
    place = LANGUAGES.index(language)
    cards = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    if not cards:
        return NOT_YET[place]
    [model] = {card["model"] for card in cards}
    header = [WITH_RANDOM_WEIGHTS[place].format(model)]
    header += [f"{card['card']}, {card['gigabytes']} GB ({card['date']})" for card in cards]
    rows = [header, ["---"] * len(header)]
    for step, names in STEPS.items():
        rows.append([names[place], *(told(card["figures"].get(step, {}), language) for card in cards)])
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)


def told(figures: dict, language: str) -> str:
    """What is known of a step on a card, in words."""
    place = LANGUAGES.index(language)
    if not figures:
        return MISSING[place]
    if "failed" in figures:
        return FAILED[place].format(figures["failed"])
    words = [FIGURES[name][1 + place].format(f"{figures[name]['value']:,g}") for name in FIGURES if name in figures]
    return ("，", ", ")[place].join(words)
