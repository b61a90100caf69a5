import difflib

import pytest

from helpers.machine.commands import CourseError
from helpers.machine.profile import TINY_BASE
from helpers.train.config import edit, for_model, import_from
from tests import bases, finetune

SOURCE = """\
from xtuner.model import SupervisedFinetune
# settings
lr = 2e-4  # learning rate
name = "模型"
model = dict(
    type=SupervisedFinetune,
    lora=dict(r=64, alpha=16),
    llm=dict(
        dtype="float16",  # 半精度
        size=7,
    ),
)
hooks = [dict(type=int), dict(type=str, every=500)]
hooks += [dict(type=float)]
"""


def changed_lines(source, edited):
    return [line for line in difflib.ndiff(source.splitlines(), edited.splitlines()) if line[0] in "+-"]


def test_a_changed_value_leaves_comments_and_order_alone():
    edited = edit(SOURCE, {"lr": "1e-3", "model.llm.dtype": '"bfloat16"'})
    assert changed_lines(SOURCE, edited) == [
        "- lr = 2e-4  # learning rate", "+ lr = 1e-3  # learning rate",
        '-         dtype="float16",  # 半精度', '+         dtype="bfloat16",  # 半精度']


def test_a_new_setting_is_added_where_it_belongs():
    assert changed_lines(SOURCE, edit(SOURCE, {"model.checkpointing": "False"})) == ["+     checkpointing=False,"]
    assert "lora=dict(r=64, alpha=16, dropout=0.0)," in edit(SOURCE, {"model.lora.dropout": "0.0"})


def test_a_setting_is_removed_with_its_line():
    assert changed_lines(SOURCE, edit(SOURCE, {"model.llm.size": None})) == ["-         size=7,"]
    assert "lora=dict(alpha=16)," in edit(SOURCE, {"model.lora.r": None})


def test_an_item_of_a_list_can_be_edited():
    assert "every=30)]" in edit(SOURCE, {"hooks.1.every": "30"})


def test_an_import_is_redirected():
    assert import_from(SOURCE, "SupervisedFinetune", "helpers.cpu").startswith(
        "from helpers.cpu import SupervisedFinetune\n# settings")


def test_a_new_import_comes_after_the_others():
    assert import_from(SOURCE, "OptimWrapper", "mmengine.optim").startswith(
        "from xtuner.model import SupervisedFinetune\nfrom mmengine.optim import OptimWrapper\n# settings")


@pytest.mark.parametrize(("name", "nearest"), [("learn", "lr"), ("nmae", "name"), ("model.lorra.r", "lora")])
def test_a_key_that_does_not_exist_is_an_error_naming_the_nearest(name, nearest):
    with pytest.raises(CourseError, match=f"找不到.*最接近的是 {nearest}"):
        edit(SOURCE, {name: "1"})


def test_removing_what_is_not_there_is_an_error():
    with pytest.raises(CourseError, match="dtyp.*dtype"):
        edit(SOURCE, {"model.llm.dtyp": None})


def test_a_value_that_is_not_python_is_an_error():
    with pytest.raises(SyntaxError):
        edit(SOURCE, {"lr": "1e-"})


def test_the_config_for_an_internlm2s_way_of_talking_changes_nothing_but_the_model():
    source = finetune.TEMPLATE.read_text(encoding="utf-8")
    changed = [line for line in changed_lines(source, for_model(source, TINY_BASE)) if line[0] == "+"]
    assert changed == [f"+ pretrained_model_name_or_path = {str(TINY_BASE)!r}"]


def test_a_gemmas_evaluation_questions_have_the_system_prompt_in_them(tmp_path):
    base = bases.write_random(tmp_path, "gemma2")
    asked = {"SYSTEM": "'你是助手。'", "evaluation_inputs": "['问']"}
    changed = for_model(edit(finetune.TEMPLATE.read_text(encoding="utf-8"), asked), base)
    assert "evaluation_inputs = ['你是助手。\\n\\n问']" in changed
    assert "SYSTEM = ''" in changed


def test_a_gemmas_config_wants_the_system_prompt_written_first(tmp_path):
    with pytest.raises(CourseError, match="先用 edit 改成自己的，再用 for_model"):
        for_model(finetune.TEMPLATE.read_text(encoding="utf-8"), bases.write_random(tmp_path, "gemma2"))
