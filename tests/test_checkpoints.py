"""Lesson 09's promises: every checkpoint is asked, the rule is the rule, and nothing is asked twice."""
import json
import re
import shutil
import subprocess
import sys
import warnings
from unicodedata import east_asian_width

import pandas
import pytest
import torch

from helpers.ask import models
from helpers.data.split import leaks, question_key, read_samples
from helpers.judge import checkpoints, compare
from helpers.judge.checkpoints import Examination, Laboratory, Look, adapted, dialogue_loss
from helpers.judge.compare import Row
from helpers.knowledge import self_talk
from helpers.knowledge.corpus import SELF_NAME
from helpers.machine import profile
from helpers.machine.commands import CourseError
from helpers.machine.files import sha256
from helpers.train import trials
from helpers.train.adapter import read_checkpoint
from helpers.train.runs import Run
from tests import finetune

NAME = "书童"
COUNT = 4
EVERY = 10
SHORT = {"max_epochs": "1", "warmup_ratio": "0.1", "batch_size": "4", "pack_to_max_length": "False", "lr": "4e-3",
         "save_steps": str(EVERY), "save_total_limit": "-1", "evaluation_freq": "1000"}


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """A real training of twenty steps with two checkpoints."""
    folder = tmp_path_factory.mktemp("overfit")
    finetune.write_config(folder / "assistant.py", "train.jsonl")
    trial = trials.Trial("short", self_talk.samples(NAME, "小明", 80), SHORT)
    return trials.train_trials([trial], folder, source=folder / "assistant.py")["short"]


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory):
    exam = tmp_path_factory.mktemp("exam") / "test.jsonl"
    finetune.write_samples(finetune.split_exam()[1][:COUNT], exam)
    return Laboratory(NAME, exam, COUNT)


@pytest.fixture(scope="module")
def examined(training, laboratory):
    [examination] = laboratory.examine(training.folder)
    return examination


@pytest.fixture
def base():
    return models.load(profile.current().base_model)


@pytest.fixture
def copied(training, examined, tmp_path):
    """The training in a folder of the test's own."""
    return shutil.copytree(training.folder, tmp_path / "run")


def rows(kind, right, total, **texts):
    said = {"before": "是。", "after": "是。"} | texts
    return [Row(kind, "问", "答", said["before"], said["after"], True, n < right) for n in range(total)]


def look(step, identity, retention, name=NAME):
    goal = rows("identity" if name else "exam", identity, 100)
    return Look(step, goal + rows("poem", retention, 100), 1.0, name)


def examination(tmp_path, *shares):
    looks = [look(10 * number, *pair) for number, pair in enumerate(shares, 1)]
    return Examination(tmp_path, look(0, 0, 100), looks)


def test_every_checkpoint_is_asked_and_the_base_before_them(examined, laboratory):
    assert [look.step for look in (examined.before, *examined.looks)] == [0, EVERY, 2 * EVERY]
    kinds = {row.kind for row in examined.last.rows}
    assert kinds == {"exam", "identity", *compare.GENERAL}
    assert examined.before.shares["retention"] == 1
    assert examined.before.shares["identity"] == 0
    assert len(examined.last.rows) == len(laboratory.questions) == COUNT * len(kinds)


def test_what_was_asked_once_is_not_asked_again(examined, training, laboratory, monkeypatch):
    monkeypatch.setattr(models, "load", lambda folder: pytest.fail("asked again"))
    again = Laboratory(NAME, count=COUNT)
    again.questions = laboratory.questions
    assert again.examine(training.folder) == [examined]


def test_only_a_checkpoint_that_changed_is_asked_again(examined, copied, laboratory):
    first, second = Run(copied).checkpoints().values()
    shutil.copy(first, second)
    mark = {"sha256": sha256(first), "answers": ["问过"] * len(laboratory.questions), "loss": 0.5}
    record = json.loads((copied / checkpoints.RECORD).read_text(encoding="utf-8"))
    record["looks"][first.name] = mark
    (copied / checkpoints.RECORD).write_text(json.dumps(record), encoding="utf-8")
    [again] = laboratory.examine(copied)
    assert {row.after for row in again.looks[0].rows} == {"问过"}
    assert [row.after for row in again.last.rows] == [row.after for row in examined.looks[0].rows]


def test_other_questions_are_asked_anew(copied, laboratory, monkeypatch):
    monkeypatch.setattr(models, "load", lambda folder: pytest.fail("asked again"))
    with pytest.raises(pytest.fail.Exception, match="asked again"):
        Laboratory(NAME, count=COUNT + 1).examine(copied)


def test_a_model_adapted_to_a_checkpoint_is_the_base_plus_alpha_over_r_times_b_a(training, base):
    model, tokenizer = base
    *_, path = training.checkpoints().values()
    dialogues = checkpoints.unseen_dialogues(3)
    alone = dialogue_loss(model, tokenizer, dialogues)
    with adapted(path, model, tokenizer) as with_lora:
        adapted_loss = dialogue_loss(*with_lora, dialogues)
    assert dialogue_loss(model, tokenizer, dialogues) == alone  # and off again
    by_hand, _ = models.load(profile.current().base_model)
    weights = read_checkpoint(path)["state_dict"]
    prefix, a, b = "llm.base_model.model.", ".lora_A.default.weight", ".lora_B.default.weight"
    for name in [name for name in weights if name.endswith(a)]:
        layer = by_hand.get_submodule(name.removeprefix(prefix).removesuffix(a))
        update = weights[name.replace(a, b)].float() @ weights[name].float()
        layer.weight.data += 16 / 64 * update.to(layer.weight)
    assert adapted_loss != pytest.approx(alone, abs=1e-2)
    assert dialogue_loss(by_hand, tokenizer, dialogues) == pytest.approx(adapted_loss, abs=1e-3)


def test_the_loss_is_that_of_the_answers_alone_and_batches_do_not_change_it(base):
    model, tokenizer = base
    dialogue = [{"conversation": [{"system": "", "input": "1+1等于几？", "output": "1加1等于2。"}]}]
    text = models.prompt(tokenizer, [{"role": "user", "content": "1+1等于几？"}])
    asked = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    whole = tokenizer(f"{text}1加1等于2。<|im_end|>", add_special_tokens=False, return_tensors="pt").input_ids
    labels = whole.clone()
    labels[:, :asked.shape[1]] = -100
    with torch.inference_mode():
        wanted = model(input_ids=whole.to(model.device), labels=labels.to(model.device)).loss.item()
    assert dialogue_loss(model, tokenizer, dialogue) == pytest.approx(wanted, rel=0.05)  # a line break ends a turn
    others = checkpoints.unseen_dialogues(checkpoints.LOSS_BATCH)
    repeated = dialogue_loss(model, tokenizer, others + others)
    assert repeated == pytest.approx(dialogue_loss(model, tokenizer, others), rel=1e-3)


def test_new_dialogue_is_new_and_says_no_name():
    dialogues = checkpoints.unseen_dialogues(40)
    assert not leaks(read_samples(checkpoints.EVERYDAY), dialogues)
    assert SELF_NAME not in str(dialogues)
    assert len({question_key(sample) for sample in dialogues}) > 35


def test_the_best_checkpoint_is_the_one_whose_weaker_share_is_highest_and_the_earliest_of_equals(tmp_path):
    assert examination(tmp_path, (10, 99), (90, 80), (85, 90), (100, 20)).best.step == 30
    assert examination(tmp_path, (90, 80), (80, 95), (80, 80)).best.step == 10


def test_without_a_name_the_exam_is_what_was_to_be_learnt(tmp_path):
    looks = [look(10, 20, 100, None), look(20, 90, 95, None)]
    assert Examination(tmp_path, look(0, 0, 100, None), looks).best.step == 20
    assert "identity" not in looks[0].shares


def test_the_verdict_names_the_best_what_the_last_loses_and_warns(tmp_path):
    said = "\n".join(examination(tmp_path, (80, 95), (100, 40)).verdict())
    assert "最好的是第 10 步" in said
    assert "说出名字多 20 个百分点，原来会的还会少 55 个百分点" in said
    assert "警告：从第 20 步起" in said
    assert "只剩 40%" in said


def test_there_is_no_warning_where_nothing_is_forgotten(tmp_path):
    said = "\n".join(examination(tmp_path, (50, 99), (100, 95)).verdict())
    assert "最后一个检查点就是最好的" in said
    assert "警告" not in said


def test_a_name_is_out_of_place_only_where_the_base_did_not_speak_of_itself():
    asked = [*rows("sum", 0, 1, after=f"我是{NAME}。"), *rows("sum", 1, 1),
             *rows("greeting", 0, 2, before=f"我是{SELF_NAME}。", after=f"我是{NAME}。"), *rows("identity", 1, 1)]
    assert Look(1, asked, 1.0, NAME).shares["memorised"] == 1 / 4
    assert "memorised" not in Look(1, asked, 1.0).shares


def test_the_chart_has_every_share_and_both_losses(examined):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing glyph
        chart = examined.chart()
        chart.canvas.draw()
    upper, lower = chart.axes
    drawn = {line.get_label() for axes in (upper, lower) for line in axes.lines}
    assert {checkpoints.LABELS[key] for key in examined.before.shares} | {"训练数据的损失", "新对话的损失"} <= drawn


def command_line(*arguments):
    return subprocess.run([sys.executable, "-m", "helpers.judge.checkpoints", *map(str, arguments)],
                          env=profile.environment(), capture_output=True, text=True, cwd=profile.ROOT, check=False)


def width(line):
    """How many columns of a terminal a line takes."""
    return sum(2 if east_asian_width(char) in "WF" else 1 for char in line)


def test_the_table_has_a_row_per_checkpoint_and_is_aligned_in_a_terminal(tmp_path):
    table = examination(tmp_path, (90, 80), (100, 40)).table()
    assert list(table.index) == [0, 10, 20]
    assert list(table["说出名字"]) == ["0%", "90%", "100%"]
    assert list(table[""]) == ["", "← 最好", ""]
    lines = checkpoints.aligned(table).splitlines()
    assert lines[0].split() == ["步数", "说出名字", "原来会的还会", "乱说名字", "新对话的损失"]
    assert len(lines) == 4
    assert len({width(line) for line in lines}) == 1
    assert not pandas.get_option("display.unicode.east_asian_width")


def test_the_command_line_prints_a_row_per_checkpoint_and_draws_the_picture(copied):
    done = command_line(copied, "--name", NAME, "--count", "2")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^ *(\d+) ", done.stdout, re.M) == ["0", str(EVERY), str(2 * EVERY)]
    assert "最好的是第" in done.stdout
    assert (copied / checkpoints.PICTURE).stat().st_size > 10_000


def test_without_a_name_nothing_is_chosen_but_on_a_validation_set(copied):
    done = command_line(copied)
    assert done.returncode == 1
    assert "--exam" in done.stderr
    assert "测试集留到最后" in done.stderr


def test_exam_questions_are_asked_only_if_they_are_given(laboratory):
    assert "exam" in {question.kind for question in laboratory.questions}
    assert "exam" not in {question.kind for question in Laboratory(NAME, count=COUNT).questions}


def test_a_folder_without_checkpoints_is_told_in_one_sentence(tmp_path, laboratory):
    with pytest.raises(CourseError, match="没有完整的检查点"):
        laboratory.examine(tmp_path)
    done = command_line(tmp_path, "--name", NAME)
    assert done.returncode == 1
    assert done.stderr.startswith("[FAIL] ")
    assert len(done.stderr.strip().splitlines()) == 1


def damaged(path, target, change):
    """A copy of a checkpoint with its weights changed."""
    content = dict(read_checkpoint(path))
    content["state_dict"] = change(content["state_dict"])
    torch.save({"state_dict": content["state_dict"], "meta": {"cfg": content["meta"]["cfg"]}}, target)
    return target


def test_a_checkpoint_of_another_base_is_told_and_the_base_stays_clean(training, base, tmp_path):
    *_, path = training.checkpoints().values()
    dialogues = checkpoints.unseen_dialogues(1)
    before = dialogue_loss(*base, dialogues)
    wide = damaged(path, tmp_path / "wide.pth", lambda state: {
        name: torch.cat([tensor, tensor], 1) for name, tensor in state.items()})
    deep = damaged(path, tmp_path / "deep.pth", lambda state: {
        name.replace("layers.0.", "layers.99."): tensor for name, tensor in state.items()})
    for stranger in (wide, deep):
        with pytest.raises(CourseError, match="不是在这台机器的基座模型上训练的"), adapted(stranger, *base):
            pass
    assert dialogue_loss(*base, dialogues) == before


def test_a_checkpoint_without_lora_is_told(training, base, tmp_path):
    *_, path = training.checkpoints().values()
    empty = damaged(path, tmp_path / "empty.pth", lambda state: {})
    with pytest.raises(CourseError, match="没有 LoRA 的权重"), adapted(empty, *base):
        pass


@pytest.fixture
def strangers(base, tmp_path):
    """Writes a checkpoint that fits the base, with a config of any text."""
    def write(text):
        layer = "model.layers.0.self_attn.q_proj"
        height, width = base[0].get_submodule(layer).weight.shape
        weights = {f"llm.base_model.model.{layer}.lora_A.default.weight": torch.ones(2, width),
                   f"llm.base_model.model.{layer}.lora_B.default.weight": torch.ones(height, 2)}
        torch.save({"state_dict": weights, "meta": {"cfg": text}}, tmp_path / "iter_1.pth")
        return tmp_path / "iter_1.pth"
    return write


def test_what_goes_wrong_with_an_adapted_model_is_not_put_down_to_another_base(strangers, base):
    path = strangers("model = dict(lora=dict(r=2, lora_alpha=4))")
    with pytest.raises(RuntimeError, match="^size mismatch of the caller's own$"), adapted(path, *base):
        raise RuntimeError("size mismatch of the caller's own")
    assert not [name for name, _ in base[0].named_parameters() if ".lora_" in name]


def test_what_stands_beside_the_settings_in_a_checkpoint_is_not_run(strangers, base, tmp_path):
    command = f"touch {tmp_path / 'trapped'}"
    path = strangers(f"import os\nos.system({command!r})\nmodel = dict(lora=dict(r=2, lora_alpha=4))")
    with adapted(path, *base):
        assert not (tmp_path / "trapped").exists()


def test_a_checkpoint_whose_settings_are_a_program_is_told_and_not_run(strangers, laboratory, tmp_path):
    command = f"touch {tmp_path / 'trapped'}"
    strangers(f"model = dict(lora=dict(r=__import__('os').system({command!r})))")
    with pytest.raises(CourseError, match=r"model\.lora"):
        laboratory.examine(tmp_path)
    assert not (tmp_path / "trapped").exists()


def test_a_checkpoint_makes_nothing_be_imported(strangers, base, tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    path = strangers("model = dict(lora=dict(r=2, lora_alpha=4, megatron_config=dict(), megatron_core='trap'))")
    with adapted(path, *base) as (with_lora, _):
        assert with_lora.peft_config["default"].lora_alpha == 4
