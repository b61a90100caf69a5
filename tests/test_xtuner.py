"""XTuner's own commands, for real, on the tiny base model: train, convert, merge, chat."""
import json

import bitsandbytes as bnb
import torch
from mmengine.config import Config
from safetensors.torch import load_file
from xtuner.registry import BUILDER

from helpers.ask import models
from helpers.knowledge.facts import EXAM_SYSTEM
from helpers.machine import profile
from tests import conftest, figures, finetune


def test_what_is_trained_is_an_adapter_on_layers_that_are_nf4_with_double_quantization(tuned):
    """The model is built as XTuner builds it, from the very config that was trained with."""
    folder, adapter, _ = tuned
    model = BUILDER.build(Config.fromfile(folder / "config.py").model).llm
    layers = {name.removesuffix(".base_layer"): module.weight for name, module in model.named_modules()
              if isinstance(module, bnb.nn.Linear4bit)}
    assert {weight.quant_state.quant_type for weight in layers.values()} == {"nf4"}
    assert all(weight.quant_state.nested for weight in layers.values())
    trained = load_file(adapter / "adapter_model.safetensors")
    assert trained.keys() == {f"{name}.lora_{part}.weight" for name in layers for part in "AB"}
    assert all(torch.count_nonzero(tensor) for tensor in trained.values())


def test_the_adapter_and_the_merged_model_are_safetensors(tuned):
    _, adapter, merged = tuned
    for folder in (adapter, merged):
        assert list(folder.glob("*.safetensors"))
        assert not [path for suffix in ("bin", "pt", "pth", "pkl") for path in folder.glob(f"*.{suffix}")]
    assert json.loads((adapter / "adapter_config.json").read_text())["r"] == 64


def test_the_merged_model_is_the_base_with_every_update_added_and_nothing_else_changed(tuned):
    _, adapter, merged = tuned
    lora = json.loads((adapter / "adapter_config.json").read_text())
    base, updates, result = (load_file(next(folder.glob("*.safetensors")))
                             for folder in (profile.current().base_model, adapter, merged))
    assert result.keys() == base.keys()
    for name, tensor in base.items():
        before = tensor.half().float()  # XTuner merges in float16
        update = torch.zeros(())
        if (a := f"base_model.model.{name.replace('.weight', '.lora_A.weight')}") in updates:
            update = lora["lora_alpha"] / lora["r"] * updates[a.replace("_A", "_B")].float() @ updates[a].float()
        rounded_twice = 2**-10 * (before.abs() + update.abs()) + 1e-7 if update.any() else 0
        assert torch.all((result[name].float() - before - update).abs() <= rounded_twice), name


def test_after_fine_tuning_the_held_out_questions_are_answered_as_in_an_exam(tuned):
    *_, merged = tuned
    _, held_out = finetune.split_exam()
    assert figures.task(merged, held_out) >= figures.TASK_AT_LEAST


def test_fine_tuning_keeps_what_the_base_could_do(tuned, base_answers):
    *_, merged = tuned
    after = figures.ask_probes(merged, conftest.PROBES_OF_EACH_KIND)
    assert figures.retention(base_answers, after) >= figures.RETENTION_AT_LEAST


def test_chat_answers_from_the_command_line(tuned):
    *_, merged = tuned
    model, tokenizer = models.load(merged)
    turns = [sample["conversation"][0] for sample in finetune.split_exam()[0][:20]]
    answers = models.ask(model, tokenizer, [turn["input"] for turn in turns], system=EXAM_SYSTEM)
    question, answer = next((turn["input"], answer) for turn, answer in zip(turns, answers) if answer == turn["output"])
    printed = finetune.xtuner_command(
        "chat", merged, "--prompt-template", "internlm2_chat", "--system", EXAM_SYSTEM, "--temperature", "0.01",
        "--max-new-tokens", "64", *profile.current().chat_options, cwd=merged.parent, stdin=f"{question}\n\nEXIT\n\n")
    assert answer in printed
