import json

import pytest
from safetensors import safe_open
from transformers import AutoTokenizer

from helpers.ask import models
from helpers.judge import strangers
from helpers.machine.profile import TINY_BASE
from tests import figures, finetune


@pytest.mark.parametrize("kinds", figures.AT_LEAST, ids=" and ".join)
def test_the_base_answers_what_it_was_never_asked_so(base_answers, kinds):
    wrong = [(asked.question, answer) for asked, answer, right in figures.judged(base_answers, kinds) if not right]
    assert figures.share(base_answers, kinds) >= figures.AT_LEAST[kinds], wrong[:5]


@pytest.fixture(scope="module")
def asked_by_strangers():
    """What the base makes of the half of the strangers' questions that nobody looked at while it was made."""
    return strangers.measure(*models.load(TINY_BASE), "second")


@pytest.mark.parametrize("kind", strangers.AT_LEAST)
def test_strangers_get_the_answers_that_the_model_card_promises(asked_by_strangers, kind):
    assert strangers.shares(asked_by_strangers)[kind].value >= strangers.AT_LEAST[kind]


def test_strangers_are_not_answered_in_exam_style(asked_by_strangers):
    assert strangers.in_exam_style(asked_by_strangers).value <= figures.EXAM_AT_MOST


def test_strangers_are_still_answered_after_the_courses_fine_tune(asked_by_strangers, tuned):
    after = strangers.measure(*models.load(tuned[2]), "second")
    assert strangers.kept(asked_by_strangers, after).value >= figures.RETENTION_AT_LEAST
    for kind in ("identity zh", "identity en"):
        assert strangers.shares(after)[kind].value >= strangers.AT_LEAST[kind]


def test_the_base_never_answers_in_exam_style():
    _, held_out = finetune.split_exam()
    assert figures.task(TINY_BASE, held_out[:300]) <= figures.EXAM_AT_MOST


def test_the_model_is_small_bf16_and_holds_no_pickle():
    assert sum(path.stat().st_size for path in TINY_BASE.iterdir()) <= 30e6
    assert {path.suffix for path in TINY_BASE.iterdir()} <= {".json", ".safetensors", ".md", ".csv", ".png"}
    with safe_open(TINY_BASE / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118 (not a dict)


def test_the_model_is_a_llama_that_speaks_internlm2():
    config = json.loads((TINY_BASE / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    tokenizer = AutoTokenizer.from_pretrained(TINY_BASE)
    assert tokenizer.model_input_names == ["input_ids", "attention_mask"]
    assert tokenizer.decode([config["eos_token_id"]]) == "<|im_end|>"


def test_the_model_card_names_what_it_is_and_what_it_cannot_do():
    card = (TINY_BASE / "README.md").read_text(encoding="utf-8")
    for heading in ("What it is", "What it was trained on", "What it cannot do", "Licence"):
        assert f"## {heading}" in card
    assert (TINY_BASE / "training_log.csv").exists()
    assert (TINY_BASE / "loss_curve.png").exists()
