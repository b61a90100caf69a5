"""A stranger's LoRA: settings made anew from the fields that are understood, weights looked at before they are loaded.

python -m helpers.grading.adapter_exam   in the sandbox, answers questions with it: a line of JSON in, a line out.
"""
import json
import os
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from helpers.grading.sandbox import GB, Limits, Sandbox
from helpers.homework.package import MB, SETTINGS, WEIGHTS, Refused
from helpers.knowledge.corpus import Question
from helpers.machine import profile
from helpers.machine.model_folder import bytes_of_weights
from helpers.train.families import architecture

MAX_RANK = 256
MAX_ALPHA = 4096
MAX_HEADER = 4 * MB
NUMBERS = {"F16", "BF16", "F32"}
# What a field must be if it is there; all others, apart from those that are read, must be empty or false. They could
# name a module to import (megatron_core, auto_mapping), a pattern that never ends, or other layers.
FIXED = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "init_lora_weights": True,
         "megatron_core": "megatron.core"}
WITHOUT_MEANING = {"base_model_name_or_path", "inference_mode", "revision"}
SECONDS = 1800
MEMORY = 8 * GB  # beside the base model's weights, which are there twice while they are loaded; on a GPU they are not


def checked_settings(folder: Path, base: str | Path) -> dict:
    """The settings of the adapter in an unpacked submission, once they and its weights are known to fit the base."""
    layers = linear_layers(base)
    settings = _settings(folder, layers)
    _check_weights(folder, settings, layers)
    return settings


def linear_layers(base: str | Path) -> dict[str, list[int]]:
    """The layers of a model that XTuner adapts, by name, with their shapes; InternLM2's head is one of them."""
    adapted, layers = architecture(base).lora_targets, {}
    for file in sorted(Path(base).glob("*.safetensors")):
        with safe_open(file, "np") as weights:
            for name in weights.keys():  # noqa: SIM118
                layer, _, kind = name.rpartition(".")
                if kind == "weight" and layer.rpartition(".")[2] in adapted:
                    layers[layer] = weights.get_slice(name).get_shape()
    return layers


def _settings(folder, layers):
    try:
        others = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        settings = {name: others.pop(name) for name in ("r", "lora_alpha", "lora_dropout", "target_modules")}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Refused(f"{SETTINGS} 不完整（{error}）：请用第 5 课的转换重做适配器。") from error
    for name, value in others.items():
        if name not in WITHOUT_MEANING and value != FIXED.get(name) and (name in FIXED or value):
            raise Refused(f"{SETTINGS} 的 {name} 不能是 {str(value)[:60]}：请用第 5 课的转换重做适配器。")
    _check_number("r", settings["r"], 1, MAX_RANK, int)
    _check_number("lora_alpha", settings["lora_alpha"], 0, MAX_ALPHA, int | float)
    _check_number("lora_dropout", settings["lora_dropout"], 0, 1, int | float)
    targets = settings["target_modules"]
    known = {name.rpartition(".")[2] for name in layers}
    if not isinstance(targets, list) or not targets or not all(isinstance(t, str) and t in known for t in targets):
        raise Refused(f"{SETTINGS} 的 target_modules 要是列表，只能有 {'、'.join(sorted(known))}：请重做适配器。")
    return settings | {"target_modules": sorted(set(targets))}


def _check_number(name, value, least, most, kind):
    if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most:
        raise Refused(f"{SETTINGS} 的 {name} 要在 {least} 和 {most} 之间，不能是 {str(value)[:60]}：请重做适配器。")


def _check_weights(folder, settings, layers):
    """Refuses weights that are not exactly what the settings and the base model call for."""
    path, r = folder / WEIGHTS, settings["r"]
    wanted = {}
    for name, (rows, columns) in layers.items():
        if name.rpartition(".")[2] in settings["target_modules"]:
            wanted |= {f"base_model.model.{name}.lora_A.weight": [r, columns],
                       f"base_model.model.{name}.lora_B.weight": [rows, r]}
    with path.open("rb") as file:
        start = file.read(8)
    if len(start) < 8 or struct.unpack("<Q", start)[0] > MAX_HEADER:
        raise Refused(f"{WEIGHTS} 不是 safetensors：请用第 5 课的转换重做适配器。")
    try:
        with safe_open(path, "np") as weights:
            slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118
            shapes = {name: part.get_shape() for name, part in slices.items()}
            kinds = {part.get_dtype() for part in slices.values()}
    except SafetensorError as error:
        raise Refused(f"{WEIGHTS} 不完整（{error}）：请用第 5 课的转换重做适配器。") from error
    if shapes != wanted:
        unlike = [name for name in sorted({*shapes, *wanted}) if shapes.get(name) != wanted.get(name)]
        raise Refused(f"{WEIGHTS} 和设置或基座对不上（例如 {unlike[0][:120]}）：请用作业指定的基座训练。")
    if not kinds <= NUMBERS:
        raise Refused(f"{WEIGHTS} 里的数是 {'、'.join(sorted(kinds))}：只收 {'、'.join(sorted(NUMBERS))}。")


def ask(questions: Sequence[Question], weights: Path | None = None, settings: dict | None = None,
        protected: bool = True) -> tuple[list[str], int]:
    """The answers of the base model, or of it with an adapter of checked settings, given in the sandbox; its memory."""
    machine = profile.current()
    request = {"weights": weights and str(weights), "settings": settings,
               "questions": [[question.kind, question.question, question.system] for question in questions]}
    variables = {"COURSE_PROFILE": machine.name, "COURSE_BASE_MODEL": str(machine.base_model)}
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        variables["CUDA_VISIBLE_DEVICES"] = os.environ["CUDA_VISIBLE_DEVICES"]
    in_memory = 0 if machine.gpu else 2 * bytes_of_weights(machine.base_model)
    with Sandbox([sys.executable, "-m", "helpers.grading.adapter_exam"], protected=protected,
                 readable=[machine.base_model, *([weights] if weights else [])],
                 devices=sorted(Path("/dev").glob("nvidia*")), variables=variables,
                 limits=Limits(seconds=SECONDS, memory=MEMORY + in_memory, address_space=None)) as sandbox:
        answers = sandbox.ask(request)
        return answers, sandbox.peak


def main() -> None:
    """In the sandbox: the answers to one request."""
    # Slow to import, and needed in here only: out there only settings and shapes are looked at.
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    from helpers.ask import models
    from helpers.judge import compare

    request = json.loads(sys.stdin.readline())
    model, tokenizer = models.load(profile.current().base_model)
    if request["weights"]:
        model = get_peft_model(model, LoraConfig(**request["settings"], bias="none", task_type="CAUSAL_LM")).eval()
        set_peft_model_state_dict(model, load_file(request["weights"]))
    questions = [Question(kind, question, [], system=system) for kind, question, system in request["questions"]]
    print(json.dumps(compare.answers(model, tokenizer, questions)))


if __name__ == "__main__":
    main()
