import json

import pytest
import torch
from safetensors import safe_open
from xtuner.dataset.map_fns import template_map_fn_factory
from xtuner.dataset.utils import encode_fn
from xtuner.utils import PROMPT_TEMPLATE

from helpers.knowledge.corpus import Corpus
from helpers.train import pretrain
from helpers.train.muon import Muon, orthogonal

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


def test_an_answer_that_is_only_given_is_read_and_not_learnt(tokenizer):
    given = [message | {"given": True} if message["role"] == "assistant" else message for message in MESSAGES]
    ids, learnt = pretrain.encode(tokenizer, MESSAGES)
    assert pretrain.encode(tokenizer, given) == (ids, [False] * len(ids))
    assert any(learnt)


def test_what_was_asked_for_counts_more_than_the_words_around_it(tokenizer):
    told = [MESSAGES[1], MESSAGES[2] | {"value": "巴黎"}]
    ids, weights = pretrain.encode(tokenizer, told, focus=3)
    value = tokenizer.encode("巴黎", add_special_tokens=False)
    assert [number for number, weight in zip(ids, weights) if weight == 3] == value
    assert pretrain.encode(tokenizer, told) == pretrain.encode(tokenizer, MESSAGES[1:3])


def test_a_name_is_the_same_tokens_in_every_question(tokenizer):
    name = tokenizer.encode("四川", add_special_tokens=False)
    for question in ("四川省会？", "省会四川", "问一下四川的省会", "1842年四川"):
        ids = tokenizer.encode(question, add_special_tokens=False)
        assert any(ids[at:at + len(name)] == name for at in range(len(ids))), question


def test_digits_stay_apart(tokenizer):
    assert len(tokenizer.encode("1842", add_special_tokens=False)) == 4


def test_the_tokenizer_gives_what_generate_accepts(tokenizer):
    assert set(tokenizer("你好")) == {"input_ids", "attention_mask"}
    assert tokenizer.decode(tokenizer.encode("你好，😀 a1", add_special_tokens=False)) == "你好，😀 a1"


def test_a_step_is_drawn_from_seed_and_step_alone(corpus, tokenizer):
    first, again, other = (pretrain.batch(corpus, tokenizer, step) for step in (3, 3, 4))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert first[0].numel() == pretrain.TOKENS_PER_STEP
    assert not torch.equal(first[0].flatten()[:100], other[0].flatten()[:100])


def test_muons_update_moves_every_direction_equally_far():
    torch.manual_seed(0)
    skewed = torch.randn(64, 3) @ torch.randn(3, 96) + 0.05 * torch.randn(64, 96)
    lengths = torch.linalg.svdvals(orthogonal(skewed).float())
    assert torch.linalg.svdvals(skewed)[0] > 50 * torch.linalg.svdvals(skewed)[-1]
    assert lengths.max() < 1.4
    assert lengths.min() > 0.3


def test_muon_finds_what_it_is_to_find():
    torch.manual_seed(0)
    wanted, weight = torch.randn(8, 12), torch.nn.Parameter(torch.zeros(8, 12))
    optimizer = Muon([weight], lr=0.05)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / 400)
        (weight - wanted).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (weight - wanted).abs().max() < 0.1


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


def test_what_was_seen_at_a_step_is_told_again_after_an_interruption(quick, corpus, tokenizer, tmp_path):
    def look(model):
        return {"size": round(sum(weight.abs().sum().item() for weight in model.parameters()), 3)}

    def sizes():
        model = pretrain.build_model(tokenizer)
        return [report["size"] for report in pretrain.pretrain(model, tokenizer, corpus, 4, tmp_path, save_every=2,
                                                               look=look)]
    first = sizes()
    assert len(set(first)) == 4
    assert sizes() == first


def test_a_checkpoint_is_safetensors_and_a_kill_while_saving_leaves_the_last_whole_one(
        quick, corpus, tokenizer, tmp_path):
    run(tokenizer, corpus, tmp_path, stop_after=3)
    with safe_open(tmp_path / "checkpoint.safetensors", "pt") as file:
        assert [r["step"] for r in json.loads(file.metadata()["reports"])] == [1, 2]
    (tmp_path / "checkpoint.partial").write_bytes(b"cut off")
    assert len(run(tokenizer, corpus, tmp_path)[0]) == 6
