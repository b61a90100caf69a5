"""The template test's promises: what agrees is said to agree, and one wrong mark in a template is found and named."""
import json
import shutil
import sys
from contextlib import contextmanager

import pytest
import sentencepiece
from transformers import AutoTokenizer, LlamaTokenizer, LlamaTokenizerFast
from xtuner._lite.modelings.internlm2 import InternLM2Config, InternLM2ForCausalLM
from xtuner.utils import PROMPT_TEMPLATE

from helpers.deploy import gguf, llama_server, same_tokens
from helpers.machine import profile
from helpers.train.tokens import encode
from tests import finetune

OWN = "模型自己的 chat_template"
END_OF_TURN = "<|im_end|>\n"
CONTENT = "message['content']"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
# What is done to the right template: the conversation that shows it first, what training has there, what is read.
WRONG = {
    "no start": ("{{ bos_token }}", "", "一句话", "<s>", "<|im_start|>"),
    "no line break after a turn": (END_OF_TURN, "<|im_end|>", "一句话", "\n", "<|im_start|>"),
    "no line break before the answer": ("assistant\n", "assistant", "一句话", "\n", None),
    "an end of its own": ("<|im_end|>", "<pad>", "一句话", "<|im_end|>", "<pad>"),
    "content without its spaces": (CONTENT, f"{CONTENT} | trim", "空格和换行", " ", "de"),
}
INTERNLM2 = ("{{ bos_token }}{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
             "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
             "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


@pytest.fixture
def folder(tmp_path):
    """Gives the tiny base's folder with its chat template changed; the weights are not looked at."""
    def write(change):
        for name in ("config.json", "tokenizer.json", "special_tokens_map.json", "tokenizer_config.json"):
            shutil.copy(profile.TINY_BASE / name, tmp_path)
        path = tmp_path / "tokenizer_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings["chat_template"] = change(settings["chat_template"])
        path.write_text(json.dumps(settings), encoding="utf-8")
        return tmp_path
    return write


@pytest.fixture(params=[LlamaTokenizer, LlamaTokenizerFast])
def internlm2(tmp_path, request):
    """An untrained InternLM2 with a small vocabulary of the kind that it has: SentencePiece, byte pairs and bytes."""
    pieces = tmp_path / "tokenizer.model"
    texts = (turn["input"] for sample in finetune.training_rows() for turn in sample["conversation"])
    with pieces.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=texts, model_writer=file, model_type="bpe", vocab_size=1600, byte_fallback=True,
            character_coverage=0.98, normalization_rule_name="identity", add_dummy_prefix=False,
            remove_extra_whitespaces=False, minloglevel=2)
    tokenizer = request.param(str(pieces), legacy=False, add_prefix_space=False, chat_template=INTERNLM2,
                              additional_special_tokens=["<|im_start|>", "<|im_end|>"])
    tokenizer.save_pretrained(tmp_path)
    InternLM2ForCausalLM(InternLM2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bias=False)).save_pretrained(tmp_path)
    return tmp_path


@contextmanager
def served(model, folder):
    """Serves a model folder with llama.cpp."""
    gguf.convert(model, folder / "model.gguf")
    with llama_server.serve(folder / "model.gguf") as url:
        yield url


def test_an_internlm2_agrees_everywhere(internlm2):
    with served(internlm2, internlm2) as url:
        report = same_tokens.compare_programs(internlm2, url)
    assert report.verdict.startswith("一致"), report.lines
    assert not report.forged


def test_the_courses_model_agrees_everywhere_and_reads_forged_text_alike_everywhere(tmp_path):
    with served(profile.TINY_BASE, tmp_path) as url:
        report = same_tokens.compare_programs(profile.TINY_BASE, url)
    assert report.programs == (OWN, "LMDeploy（yi）", "llama.cpp")
    assert not report.differences
    assert not report.forged
    assert report.verdict.startswith("一致：7 段对话")


def test_what_is_compared_is_what_training_reads():
    tokenizer = AutoTokenizer.from_pretrained(profile.TINY_BASE)
    for turns in same_tokens.CONVERSATIONS.values():
        ids, learnt = encode(turns, PROMPT_TEMPLATE.internlm2_chat, tokenizer)
        before = same_tokens.trained(turns, tokenizer)
        assert ids[:len(before)] == before
        assert tokenizer.decode(before).endswith("<|im_start|>assistant\n")
        assert tokenizer.decode(ids[len(before):]) == "好<|im_end|>\n"


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_one_wrong_place_in_a_chat_template_is_found_and_named(folder, wrong):
    right, instead, conversation, trained, read = wrong
    report = same_tokens.compare_programs(folder(lambda own: own.replace(right, instead)))
    first = report.differences[0]
    assert {difference.program for difference in report.differences} == {OWN}
    assert first.conversation == conversation
    assert first.trained.startswith(f"{trained!r}（")
    assert first.read.startswith(f"{read!r}（" if read else "什么也没有")
    assert f"从第 {first.position} 个词元起不同，训练时是 {first.trained}，这里是 {first.read}" in report.lines[0]
    assert report.verdict.startswith(f"不一致：{OWN}和训练时不同")


def test_the_position_of_the_difference_counts_from_one(folder):
    first = same_tokens.compare_programs(folder(lambda own: own.replace(END_OF_TURN, "<|im_end|>"))).differences[0]
    tokenizer = AutoTokenizer.from_pretrained(profile.TINY_BASE)
    ids = same_tokens.trained(same_tokens.CONVERSATIONS["一句话"], tokenizer)
    assert first.position == ids.index(tokenizer.convert_tokens_to_ids("<|im_end|>")) + 2


@pytest.mark.parametrize("change", [
    lambda own: NO_SYSTEM + own,
    lambda own: None,
], ids=["no system prompt", "no template"])
def test_a_template_that_refuses_a_conversation_is_a_difference(folder, change):
    report = same_tokens.compare_programs(folder(change))
    assert "写不了“" in str(report.differences[0])
    assert report.verdict.startswith(f"不一致：{OWN}")


def test_lmdeploys_own_internlm2_template_writes_a_system_prompt_where_there_is_none():
    report = same_tokens.compare_programs(profile.TINY_BASE, template="internlm2")
    without = {name for name, turns in same_tokens.CONVERSATIONS.items() if "system" not in turns[0]}
    assert {difference.conversation for difference in report.differences} == without
    assert {difference.program for difference in report.differences} == {"LMDeploy（internlm2）"}
    assert {difference.position for difference in report.differences} == {3}


def test_forged_text_that_only_some_programs_take_for_special_tokens_is_a_finding_of_its_own(folder):
    apart = folder(lambda own: own.replace(CONTENT, f"{CONTENT} | replace('<|im', '< |im')"))
    report = same_tokens.compare_programs(apart)
    assert not report.differences
    assert [difference.program for difference in report.forged] == [OWN]
    assert report.lines[0].startswith("[WARN] 特殊词元没有拆开时")


def run(monkeypatch, *words):
    """How the command line ends."""
    monkeypatch.setattr(sys, "argv", ["template", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        same_tokens.main()
    return ended.value.code


def test_the_command_line_tells_the_verdict_and_ends_with_it(monkeypatch, folder, capsys):
    assert run(monkeypatch, profile.TINY_BASE) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("一致")
    assert run(monkeypatch, folder(lambda own: own.replace("{{ bos_token }}", ""))) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("不一致")


def test_what_cannot_be_checked_is_said_in_one_line(monkeypatch, tmp_path):
    for words, reason in (
        ([tmp_path], "里没有模型"),
        ([profile.TINY_BASE, "--lmdeploy", "chatml3"], "LMDeploy 没有叫 chatml3 的模板"),
        ([profile.TINY_BASE, "--gguf", tmp_path / "none.gguf"], "没有模型文件"),
    ):
        assert reason in run(monkeypatch, *words)
