"""A base of one's own: other families than the tiny base's go the course's whole way, from the check to a chat."""
import re
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from xtuner.model.utils import find_all_linear_names

from helpers.ask import models
from helpers.data.split import write_samples
from helpers.deploy import gguf
from helpers.grading import adapter_exam
from helpers.knowledge.corpus import Question
from helpers.machine import profile
from helpers.machine.commands import CourseError
from helpers.train import adapter, families, memory, merge, runs
from helpers.train.check import check_config
from helpers.train.config import edit, for_model
from tests import bases, finetune, forked

SAME = {"internlm2": bases.write_internlm2, "qwen2": bases.write_qwen2}
QUESTIONS = ["法国的首都是哪里？", "你是谁？", "3加4等于几？", "水的化学式是什么？"]
STEPS = {"max_epochs": "1", "batch_size": "1", "pack_to_max_length": "False", "warmup_ratio": "0.67",
         "save_steps": "3", "model.lora.r": "4", "default_hooks.logger.interval": "1",
         "custom_hooks.1.max_new_tokens": "4"}
TALK = [{"conversation": [{"system": "你是助手。", "input": "你好", "output": "你好！"}]},
        {"conversation": [{"input": "1+1=？", "output": "2"}, {"input": "2+2=？", "output": "4"}]},
        {"conversation": [{"input": "谢谢", "output": "不客气。"}]}]


@pytest.fixture(scope="module", params=[*SAME, *bases.LAYOUTS])
def base(request, tmp_path_factory):
    """A small base of each family."""
    folder = tmp_path_factory.mktemp(request.param) / "base"
    return SAME[request.param](folder) if request.param in SAME else bases.write_random(folder, request.param)


@pytest.fixture(scope="module")
def config(base):
    """The course's config for it, with three steps to train."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_PROFILE", "cpu")
        write_samples(TALK, base.parent / "train.jsonl")
        path = base.parent / "config.py"
        finetune.write_config(path, base.parent / "train.jsonl", STEPS)
        path.write_text(for_model(path.read_text(encoding="utf-8"), base), encoding="utf-8")
        return path


@pytest.fixture(scope="module")
def trained(config):
    """The folder where XTuner has trained it, and the adapter that it makes of the last checkpoint."""
    folder = config.parent
    (folder / "training").mkdir()
    forked.run_xtuner("train", config, "--work-dir", folder / "training", log=folder / "training" / "training.log")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter, "run_xtuner", forked.run_xtuner)
        adapter.extract(config, adapter.newest_checkpoint(folder / "training"), folder / "adapter")
    return folder


@pytest.fixture(scope="module", params=[*SAME, "qwen2, untied"])
def twin(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("twin")
    return bases.write_qwen2(folder, tied=False) if "untied" in request.param else SAME[request.param](folder)


def test_the_tiny_bases_own_weights_answer_alike_in_other_layouts(twin):
    answers = [models.ask(*models.load(folder), QUESTIONS, max_new_tokens=24) for folder in (profile.TINY_BASE, twin)]
    assert answers[0] == answers[1]
    assert all(answers[0])


def test_the_layouts_are_other_ones(twin):
    names = {name for file in twin.glob("*.safetensors") for name in load_file(file)}
    if "internlm2" in families.architecture(twin).model_class.lower():
        assert {"model.layers.0.attention.wqkv.weight", "output.weight", "model.tok_embeddings.weight"} <= names
        assert len(list(twin.glob("*.safetensors"))) == 2
    else:
        assert "model.layers.0.self_attn.q_proj.bias" in names


def test_every_parameter_is_counted_and_every_layer_named_that_xtuner_adapts(base):
    model = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=True)
    shape = memory.read_shape(base)
    assert shape.linear_weights + shape.other_weights == sum(weight.numel() for weight in model.parameters())
    assert set(find_all_linear_names(model)) == set(families.architecture(base).lora_targets)
    assert any(name.endswith(f".{families.architecture(base).down}") for name, _ in model.named_modules())


def test_the_config_for_a_model_passes_the_check_without_a_warning(config):
    report = check_config(config)
    assert report.ok, report.lines
    assert not [line for line in report.lines if "WARN" in line]
    assert report.steps == 3


def test_xtuner_trains_three_steps_and_asks_its_questions(trained):
    run = runs.Run(trained / "training")
    assert list(run.checkpoints()) == [3]
    assert len(run.answers()[3]) == 2
    assert all(torch.isfinite(torch.tensor(list(run.scalars("loss").values()))))


def test_a_merged_model_says_what_base_and_adapter_say(trained, base):
    weights = load_file(trained / "adapter" / adapter.WEIGHTS)
    assert all(weight.any() for weight in weights.values())
    merge.merge(base, trained / "adapter", trained / "merged", "bfloat16")
    messages = [{"role": "system", "content": "你是助手。"}, {"role": "user", "content": "你好"}]
    logits = []
    for folders in ((base, trained / "adapter"), (trained / "merged",)):
        model, tokenizer = models.load(*folders)
        inputs = tokenizer(models.prompt(tokenizer, messages), add_special_tokens=False, return_tensors="pt")
        with torch.inference_mode():
            logits.append(model(**inputs).logits)
    apart, together = logits
    assert torch.allclose(together, apart, atol=0.05 * apart.std().item())


def test_a_chat_turn_is_answered_and_stops(trained, base):
    model, tokenizer = models.load(base, trained / "adapter")
    known = families.dialogue(tokenizer.chat_template)
    stops = {tokenizer.convert_tokens_to_ids(stop) for stop in known.stops} & set(tokenizer.get_vocab().values())
    assert stops <= set(model.generation_config.eos_token_id)
    [answer] = models.ask(model, tokenizer, ["你好"], system="你是助手。", max_new_tokens=8)
    assert isinstance(answer, str)


def test_the_adapter_that_xtuner_makes_of_it_is_accepted_as_homework(trained, base):
    settings = adapter_exam.checked_settings(trained, base)
    assert settings["target_modules"] == sorted(families.architecture(base).lora_targets)


@pytest.mark.parametrize("base", ["internlm2"], indirect=True)
@pytest.mark.usefixtures("sandboxed")
def test_an_adapter_that_changes_the_head_too_is_asked_in_the_sandbox_like_any_other(trained, base, monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "cpu")
    monkeypatch.setenv("COURSE_BASE_MODEL", str(base))
    settings = adapter_exam.checked_settings(trained, base)
    assert "output" in settings["target_modules"]
    asked = [Question("identity", "你是谁？", [])]
    answers, peak = adapter_exam.ask(asked, trained / "adapter" / adapter.WEIGHTS, settings)
    assert answers == models.ask(*models.load(base, trained / "adapter"), ["你是谁？"])
    assert peak < adapter_exam.MEMORY


def test_xtuner_itself_merges_it_bit_for_bit_as_the_course_does(trained, base, monkeypatch):
    monkeypatch.setattr(merge, "run_xtuner", forked.run_xtuner)
    merge.merge_with_xtuner(base, trained / "adapter", trained / "by_xtuner")
    merge.merge(base, trained / "adapter", trained / "by_course")
    theirs, ours = ({name: tensor for file in (trained / folder).glob("*.safetensors")
                     for name, tensor in load_file(file).items()} for folder in ("by_xtuner", "by_course"))
    assert theirs.keys() == ours.keys()
    code = {path.name for path in base.glob("*.py")}
    assert code <= {path.name for path in (trained / "by_xtuner").iterdir()}
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_gguf_is_made_of_those_layouts_that_the_table_names(base, tmp_path):
    known = families.architecture(base).gguf and not families.dialogue(families.chat_template(base)).not_gguf
    refusal = nullcontext() if known else pytest.raises(CourseError, match="不支持(结构|切词方式)")
    with refusal:
        gguf.convert(base, tmp_path / "base.gguf")


def test_a_config_that_still_has_another_models_template_is_sent_to_for_model(config, base):
    template = "PROMPT_TEMPLATE.internlm_chat"
    wrong = config.with_name("wrong.py")
    wrong.write_text(edit(config.read_text(encoding="utf-8"), {"prompt_template": template}), encoding="utf-8")
    [line] = [line for line in check_config(wrong).lines if "[FAIL] 模板" in line]
    assert re.search(r"修复：(改成 PROMPT_TEMPLATE\.\w+|用 helpers\.train\.config 的 for_model)", line)
