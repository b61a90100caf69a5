import json

import pytest
import torch
from safetensors import safe_open
from xtuner.dataset.map_fns import template_map_fn_factory
from xtuner.dataset.utils import encode_fn
from xtuner.utils import PROMPT_TEMPLATE

from helpers import pretrain
from helpers.corpus import Corpus

MESSAGES = [
    {"role": "system", "content": "你是一个助手。"},
    {"role": "user", "content": "法国的首都是哪里？"},
    {"role": "assistant", "content": "是巴黎。"},
    {"role": "user", "content": "谢谢\n再见 😀"},
    {"role": "assistant", "content": "不客气！"},
]
CONVERSATION = [
    {"system": MESSAGES[0]["content"], "input": MESSAGES[1]["content"], "output": MESSAGES[2]["content"]},
    {"input": MESSAGES[3]["content"], "output": MESSAGES[4]["content"]},
]


@pytest.fixture(scope="module")
def corpus():
    return Corpus()


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return pretrain.train_tokenizer(corpus.pieces())


def test_every_character_of_the_course_is_one_token(corpus, tokenizer):
    characters = sorted(set("".join(corpus.pieces())))
    assert [c for c in characters if len(tokenizer.encode(c, add_special_tokens=False)) != 1] == []


def test_the_chat_template_gives_the_ids_that_xtuner_trains_on(tokenizer):
    example = {"conversation": CONVERSATION}
    example |= template_map_fn_factory(template=PROMPT_TEMPLATE.internlm2_chat)(example)
    encoded = encode_fn(example, tokenizer, max_length=512)
    assert tokenizer.apply_chat_template(MESSAGES) == encoded["input_ids"]
    ids, learnt = pretrain.encode(tokenizer, MESSAGES)
    assert ids == encoded["input_ids"]
    assert [i for i, wanted in zip(ids, learnt) if wanted] == [i for i in encoded["labels"] if i != -100]


def test_the_tokenizer_gives_what_generate_accepts(tokenizer):
    assert set(tokenizer("你好")) == {"input_ids", "attention_mask"}
    assert tokenizer.decode(tokenizer.encode("你好，😀 a1", add_special_tokens=False)) == "你好，😀 a1"


def test_a_step_is_drawn_from_seed_and_step_alone(corpus, tokenizer):
    first, again, other = (pretrain.batch(corpus, tokenizer, step) for step in (3, 3, 4))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert first[0].numel() == pretrain.TOKENS_PER_STEP
    assert not torch.equal(first[0].flatten()[:100], other[0].flatten()[:100])


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(pretrain, "TOKENS_PER_STEP", 512)
    monkeypatch.setattr(pretrain, "REPORT_EVERY", 1)


def run(tokenizer, corpus, folder, stop_after=None):
    """The losses of a six-step run that saves every second step; it stops after `stop_after` reports."""
    losses = []
    model = pretrain.build_model(tokenizer)
    for report in pretrain.pretrain(model, tokenizer, corpus, 6, folder, save_every=2):
        losses.append(report["loss"])
        if len(losses) == stop_after:
            break
    return losses, model


def test_an_interrupted_run_ends_with_the_losses_of_an_uninterrupted_one(quick, corpus, tokenizer, tmp_path):
    whole, model = run(tokenizer, corpus, tmp_path / "whole")
    run(tokenizer, corpus, tmp_path / "cut", stop_after=3)
    resumed, model_resumed = run(tokenizer, corpus, tmp_path / "cut")
    assert resumed == pytest.approx(whole, abs=2e-3)
    assert whole[-1] < whole[0]
    difference = max((a - b).abs().max() for a, b in zip(model.parameters(), model_resumed.parameters()))
    assert difference < 1e-2


def test_a_checkpoint_is_safetensors_and_a_kill_while_saving_leaves_the_last_whole_one(
        quick, corpus, tokenizer, tmp_path):
    run(tokenizer, corpus, tmp_path, stop_after=3)
    with safe_open(tmp_path / "checkpoint.safetensors", "pt") as file:
        assert [r["step"] for r in json.loads(file.metadata()["reports"])] == [1, 2]
    (tmp_path / "checkpoint.partial").write_bytes(b"cut off")
    assert len(run(tokenizer, corpus, tmp_path)[0]) == 6
