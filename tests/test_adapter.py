import os

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from peft import PeftConfig
from safetensors.torch import load_file

from helpers.machine.commands import CourseError
from helpers.train import adapter
from helpers.train.adapter import extract, newest_checkpoint, read_checkpoint
from tests import finetune


@pytest.fixture
def checkpoint(tuned):
    return newest_checkpoint(tuned[0] / "work")


@pytest.fixture
def config(tuned):
    return tuned[0] / "config.py"


def test_the_newest_checkpoint_is_found_after_the_training_folder_has_moved(tmp_path):
    (tmp_path / "last_checkpoint").write_text("/elsewhere/work/iter_195.pth")
    assert newest_checkpoint(tmp_path) == tmp_path / "iter_195.pth"


def test_without_a_training_the_error_names_the_lesson(tmp_path):
    with pytest.raises(CourseError, match="第 4 课"):
        newest_checkpoint(tmp_path)


def test_a_real_checkpoint_is_read_and_its_log_with_it(checkpoint):
    content = read_checkpoint(checkpoint)
    assert content["meta"]["iter"] == int(checkpoint.stem.removeprefix("iter_"))
    assert all(".lora_" in name for name in content["state_dict"])
    assert len(content["message_hub"]["log_scalars"]["train/loss"]._log_history)


class Trap:
    """What a malicious checkpoint holds: opened with pickle, it runs a command."""

    def __init__(self, where):
        self.command = f"touch {where}"

    def __reduce__(self):
        return os.system, (self.command,)


class Climb:
    """The first step of a way to any code: getattr, which an honest training log asks for, too."""

    def __reduce__(self):
        return getattr, ("text", "upper")


def test_a_checkpoint_cannot_run_code(tmp_path):
    torch.save({"trap": Trap(tmp_path / "trapped")}, tmp_path / "iter_1.pth")
    with pytest.raises(CourseError, match=rf"{os.system.__module__}\.system"):
        read_checkpoint(tmp_path / "iter_1.pth")
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("poisoned", [
    "import os\nos.system({command!r})\nmodel = dict(lora=dict(r=1))",
    "model = dict(lora=dict(r=__import__('os').system({command!r})))",
    "model = dict(lora=dict(**__import__('os').system({command!r})))",
    "model = __import__('os').system({command!r})",
], ids=["beside the settings", "as a setting", "as the settings", "as the model"])
def test_the_config_in_a_checkpoint_is_read_and_never_run(poisoned, tmp_path):
    text = poisoned.format(command=f"touch {tmp_path / 'trapped'}")
    finetune.write_config(tmp_path / "config.py", tmp_path / "train.jsonl")
    weights = {"llm.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.zeros(1, 9)}
    torch.save({"state_dict": weights, "meta": {"cfg": text}}, tmp_path / "iter_1.pth")
    with pytest.raises(CourseError, match=r"model\.lora|r：训练时 1，现在 64"):
        extract(tmp_path / "config.py", tmp_path / "iter_1.pth", tmp_path / "adapter")
    assert not (tmp_path / "trapped").exists()


def test_the_lora_that_mmengine_writes_into_a_checkpoint_is_read_as_it_was_set(tmp_path):
    finetune.write_config(tmp_path / "config.py", tmp_path / "train.jsonl")
    written = Config.fromfile(tmp_path / "config.py")
    written.model.lora.target_modules = ["q_proj", "v_proj"]
    written.model.lora.rank_pattern = {"layers.0.q_proj": 8}  # no name of Python's: mmengine writes it in another way
    content = {"meta": {"cfg": written.pretty_text}}
    assert adapter.trained_lora(tmp_path / "iter_1.pth", content) == written.model.lora.to_dict()


def test_getattr_in_a_checkpoint_reaches_nothing(tmp_path):
    torch.save({"climb": Climb()}, tmp_path / "iter_1.pth")
    assert read_checkpoint(tmp_path / "iter_1.pth") == {"climb": "upper"}


def test_reading_a_checkpoint_leaves_the_logger_of_this_process_alone(checkpoint):
    read_checkpoint(checkpoint)
    assert HistoryBuffer([1.0, 3.0], [1, 1]).statistics("mean") == 2


@pytest.mark.parametrize(("break_it", "says"), [
    (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "不完整"),
    (lambda path: path.write_bytes(b""), "不完整"),
    (lambda path: path.unlink(), "有：iter_1.pth"),
    (lambda path: (path.unlink(), path.mkdir()), "是文件夹"),
])
def test_what_is_not_a_whole_checkpoint_is_named(tmp_path, break_it, says):
    for name in ("iter_1.pth", "iter_2.pth"):
        torch.save({"state_dict": {"x": torch.zeros(999)}}, tmp_path / name)
    break_it(tmp_path / "iter_2.pth")
    with pytest.raises(CourseError, match=rf"iter_2\.pth.*{says}"):
        read_checkpoint(tmp_path / "iter_2.pth")


def test_the_adapter_is_the_checkpoints_lora_in_float16_and_made_once(config, checkpoint, tmp_path):
    made = tmp_path / "adapter"
    made.mkdir()
    (made / adapter.SETTINGS).write_text("half of another")  # as an interrupted xtuner leaves it
    extract(config, checkpoint, made)
    trained = read_checkpoint(checkpoint)["state_dict"]
    weights = load_file(made / adapter.WEIGHTS)
    name = "base_model.model.model.layers.3.mlp.up_proj.lora_B"
    assert len(weights) == len(trained)
    assert torch.equal(weights[f"{name}.weight"], trained[f"llm.{name}.default.weight"].half())
    assert PeftConfig.from_pretrained(made).r == 64
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "adapter.log"]

    before = (made / adapter.WEIGHTS).stat()
    extract(config, checkpoint, made)
    assert (made / adapter.WEIGHTS).stat() == before


def test_another_lora_alpha_than_in_training_is_an_error(config, checkpoint, tmp_path):
    changed = tmp_path / "config.py"
    changed.write_text(config.read_text(encoding="utf-8").replace("lora_alpha=16", "lora_alpha=64"), encoding="utf-8")
    with pytest.raises(CourseError, match="lora_alpha：训练时 16，现在 64"):
        extract(changed, checkpoint, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_diverged_training_makes_no_adapter(config, checkpoint, tmp_path):
    content = read_checkpoint(checkpoint)
    content["state_dict"] = {name: tensor * float("nan") for name, tensor in content["state_dict"].items()}
    torch.save(content | {"message_hub": {}}, tmp_path / "iter_1.pth")
    with pytest.raises(CourseError, match="发散"):
        extract(config, tmp_path / "iter_1.pth", tmp_path / "adapter")


def test_a_folder_with_something_else_is_not_replaced(config, checkpoint, tmp_path):
    (tmp_path / "thesis.docx").write_text("mine")
    with pytest.raises(CourseError, match="不能覆盖"):
        extract(config, checkpoint, tmp_path)
    assert (tmp_path / "thesis.docx").read_text() == "mine"


def test_a_missing_config_is_named(checkpoint, tmp_path):
    with pytest.raises(CourseError, match="第 3 课"):
        extract(tmp_path / "config.py", checkpoint, tmp_path / "adapter")
