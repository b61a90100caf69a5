"""XTuner's own commands, for real, on the tiny base model: train, convert, merge, chat."""
import json

import torch
from safetensors import safe_open

from helpers import probe, profile
from helpers.facts import EXAM_SYSTEM
from tests import conftest, figures, finetune


def test_training_is_nf4_with_double_quantization(tuned):
    folder, *_ = tuned
    config = (folder / "config.py").read_text(encoding="utf-8")
    assert "load_in_4bit=True" in config
    assert "bnb_4bit_use_double_quant=True" in config
    assert 'bnb_4bit_quant_type="nf4"' in config


def test_the_adapter_and_the_merged_model_are_safetensors(tuned):
    _, adapter, merged = tuned
    for folder in (adapter, merged):
        assert list(folder.glob("*.safetensors"))
        assert not [path for suffix in ("bin", "pt", "pth", "pkl") for path in folder.glob(f"*.{suffix}")]
    assert json.loads((adapter / "adapter_config.json").read_text())["r"] == 64


def test_the_merged_model_is_base_plus_adapter(tuned):
    _, adapter, merged = tuned
    lora = json.loads((adapter / "adapter_config.json").read_text())
    scale = lora["lora_alpha"] / lora["r"]
    name = "model.layers.0.mlp.up_proj"
    with safe_open(profile.TINY_BASE / "model.safetensors", "pt") as base, \
            safe_open(adapter / "adapter_model.safetensors", "pt") as low_rank, \
            safe_open(next(merged.glob("*.safetensors")), "pt") as result:
        a, b = (low_rank.get_tensor(f"base_model.model.{name}.lora_{part}.weight").float() for part in "AB")
        expected = base.get_tensor(f"{name}.weight").float() + scale * b @ a
        difference = (result.get_tensor(f"{name}.weight").float() - expected).abs().max()
    assert torch.count_nonzero(b) > 0
    assert difference < 0.02 * expected.abs().max()


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
    model, tokenizer = probe.load(merged)
    turns = [sample["conversation"][0] for sample in finetune.split_exam()[0][:20]]
    answers = probe.ask(model, tokenizer, [turn["input"] for turn in turns], system=EXAM_SYSTEM)
    question, answer = next((turn["input"], answer) for turn, answer in zip(turns, answers) if answer == turn["output"])
    printed = finetune.xtuner_command(
        "chat", merged, "--prompt-template", "internlm2_chat", "--system", EXAM_SYSTEM, "--temperature", "0.01",
        "--max-new-tokens", "64", *profile.current().chat_options, cwd=merged.parent, stdin=f"{question}\n\nEXIT\n\n")
    assert answer in printed
