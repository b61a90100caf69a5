"""The table of model families: each is known by its folder and trained in the tokens of its own template."""
import json
import shutil
import subprocess
import sys

import pytest
from transformers import AutoTokenizer
from xtuner.dataset.map_fns import template_map_fn as xtuners
from xtuner.utils import PROMPT_TEMPLATE

from helpers.ask import models
from helpers.deploy import lmdeploy, same_tokens
from helpers.machine.commands import CourseError
from helpers.machine.profile import ROOT, TINY_BASE
from helpers.train import families, tokens
from tests import bases

NAMES = {"internlm2": "InternLM2.5、Yi", "yi": "InternLM2.5、Yi", "yi1.5": "Yi-1.5", "qwen2": "Qwen2",
         "qwen2.5": "Qwen2.5", "llama3": "Llama 3", "llama3.1": "Llama 3.1、3.2、3.3", "gemma2": "Gemma 2",
         "glm": "GLM-4", "phi3": "Phi-3"}
TALKS = {
    "with a system prompt": tokens.DIALOGUE,
    "without": tokens.WITHOUT_SYSTEM,
    "one turn": [{"system": "", "input": "1+1=？", "output": "2"}],
    "a system prompt of None": [{"system": None, "input": "{花括号}", "output": "{}"}],
}


@pytest.fixture(scope="module", params=bases.SPEAKERS)
def speaker(request):
    return request.param, bases.tokenizer_of(request.param)


def test_a_family_is_known_by_its_chat_template(speaker):
    name, tokenizer = speaker
    assert families.dialogue(tokenizer.chat_template).name == NAMES.get(name, "Mistral")


@pytest.mark.parametrize("talk", TALKS.values(), ids=TALKS)
def test_a_model_is_trained_in_the_tokens_of_its_own_template(speaker, talk):
    _, tokenizer = speaker
    given = [{part: text for part, text in turn.items() if text} for turn in talk]
    ids, learnt = tokens.encode(talk, *tokens.trained_with(tokenizer))
    own = tokens.written_by_model(given, tokenizer)
    end = max(place for place, is_learnt in enumerate(learnt) if is_learnt)
    assert ids[:end] == own[:end]
    assert own[end:end + 1] in ([], [ids[end]])


def test_an_answer_is_learnt_from_where_the_model_is_asked_for_it_to_a_token_that_stops_it(speaker):
    _, tokenizer = speaker
    ids, learnt = tokens.encode(tokens.WITHOUT_SYSTEM, *tokens.trained_with(tokenizer))
    messages = tokens.to_messages(tokens.WITHOUT_SYSTEM)[:1]
    asked = families.write(tokenizer, messages, add_generation_prompt=True)
    assert ids[:len(asked)] == asked
    assert learnt[:len(asked) + 1] == [False] * len(asked) + [True]
    stops = tokenizer.convert_tokens_to_ids(list(families.dialogue(tokenizer.chat_template).stops))
    last = max(place for place, is_learnt in enumerate(learnt) if is_learnt)
    assert ids[last] in stops


@pytest.mark.parametrize("name", [name for name, template in PROMPT_TEMPLATE.items() if "SYSTEM" in template])
def test_xtuners_own_templates_are_written_as_xtuner_writes_them(name):
    for talk in TALKS.values():
        ours = tokens.template_map_fn({"conversation": talk}, PROMPT_TEMPLATE[name])
        theirs = xtuners({"conversation": [dict(turn) for turn in talk]}, PROMPT_TEMPLATE[name])
        assert [turn.keys() for turn in ours["conversation"]] == [turn.keys() for turn in theirs["conversation"]]
        assert ours == theirs


def test_an_internlm2_keeps_xtuners_own_template():
    assert tokens.right_template(AutoTokenizer.from_pretrained(TINY_BASE)) == families.Template("internlm2_chat")


def test_a_qwen_is_trained_with_its_own_system_prompt_where_there_is_none():
    tokenizer = bases.tokenizer_of("qwen2.5")
    assert tokens.difference(tokens.WITHOUT_SYSTEM, PROMPT_TEMPLATE.qwen_chat, tokenizer)
    ids, _ = tokens.encode(tokens.WITHOUT_SYSTEM, *tokens.trained_with(tokenizer))
    assert "You are Qwen, created by Alibaba Cloud" in tokenizer.decode(ids)


def test_a_llama_is_told_the_same_date_every_day():
    tokenizer = bases.tokenizer_of("llama3.1")
    ids, _ = tokens.encode(tokens.WITHOUT_SYSTEM, *tokens.trained_with(tokenizer))
    assert "Today Date: 26 Jul 2024" in tokenizer.decode(ids)
    assert "Today Date: 26 Jul 2024" in models.prompt(tokenizer, [{"role": "user", "content": "你好"}])


def test_lmdeploy_writes_what_was_trained_but_for_a_space_or_a_line_break(speaker, tmp_path, monkeypatch):
    """A chat template that trims what it is given differs from training where a text begins or ends with spaces."""
    name, tokenizer = speaker
    monkeypatch.setattr(lmdeploy, "LMDEPLOY", tmp_path)
    tokenizer.save_pretrained(tmp_path)
    shutil.copy(TINY_BASE / "config.json", tmp_path)
    report = same_tokens.compare_programs(tmp_path)
    trims = "trim" in tokenizer.chat_template
    wrong = {difference.program for difference in report.differences
             if not (trims and difference.conversation == "空格和换行")}
    other = {"mistral v0.2": "mistral", "mistral v0.3": "mistral", "mistral nemo": "mistral", "glm": "glm4"}.get(name)
    assert wrong == ({f"LMDeploy（{other}）"} if other else set()), report.lines


def test_a_gemma_reads_the_system_prompt_in_the_first_question_in_training_and_when_asked():
    tokenizer = bases.tokenizer_of("gemma2")
    ids, _ = tokens.encode(tokens.DIALOGUE, *tokens.trained_with(tokenizer))
    assert tokenizer.decode(ids).startswith("<bos><start_of_turn>user\n你是助手。\n\n你好<end_of_turn>\n")
    assert tokenizer.decode(ids).count("<bos>") == 1


def test_a_chat_template_that_says_something_else_than_its_marks_promise_is_refused():
    tokenizer = bases.tokenizer_of("llama3")
    tokenizer.chat_template = tokenizer.chat_template.replace("\n\n", "\n")
    with pytest.raises(CourseError, match="像 Llama 3，写出来的词元却和课程知道的都不同。修复：照模型的说明"):
        tokens.right_template(tokenizer)


def test_an_unknown_way_of_talking_is_named_with_all_that_are_known():
    with pytest.raises(CourseError, match="课程只认得 Qwen2.5、.*修复：换一个这些系列的基座"):
        families.dialogue("{% for m in messages %}USER: {{ m.content }}{% endfor %}")


def test_a_base_that_never_learnt_to_talk_is_told_from_one_that_did():
    with pytest.raises(CourseError, match="没有 chat_template.*名字里有 chat、instruct 或 it 的那一个"):
        families.dialogue(None)


def test_an_unknown_architecture_is_named_with_all_that_are_known(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(CourseError, match="模型结构 gpt2 不支持：课程只认得 llama、.*修复"):
        families.architecture(tmp_path)


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_chat_template_is_found_in_a_file_of_its_own_and_in_the_tokenizers(tmp_path, place):
    text = "模板" if place.endswith("jinja") else json.dumps({"chat_template": "模板"})
    (tmp_path / place).write_text(text, encoding="utf-8")
    assert families.chat_template(tmp_path) == "模板"


def test_the_layer_that_leads_back_is_named_in_every_architecture():
    assert {kind: known.down for kind, known in families.ARCHITECTURES.items() if not known.only_planned} == {
        "internlm2": "w2", "chatglm": "dense_4h_to_h",
        **dict.fromkeys(["llama", "qwen2", "mistral", "gemma2", "phi3", "glm"], "down_proj")}


def test_the_command_tells_what_is_known_of_a_folder():
    told = subprocess.run([sys.executable, "-m", "helpers.train.families", TINY_BASE], cwd=ROOT, capture_output=True,
                          text=True, check=True).stdout
    assert "停止词元：<|im_end|>" in told
    assert "GGUF：支持" in told
