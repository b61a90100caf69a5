import json
import re
import subprocess
import sys

import pytest

from helpers.ask import models
from helpers.data.split import write_samples
from helpers.judge import compare
from helpers.judge.compare import Row
from helpers.judge.provenance import provenance
from helpers.judge.shares import Share
from helpers.knowledge.corpus import Question
from helpers.machine import profile
from tests import finetune

HELD_OUT = finetune.split_exam()[1]
OF_EACH_KIND = 4


def row(kind, before, after):
    return Row(kind, "问", "答", "甲", "乙", before, after)


@pytest.fixture(scope="module")
def asked():
    return compare.make_questions(HELD_OUT[:OF_EACH_KIND], OF_EACH_KIND)


@pytest.fixture(scope="module")
def compared(tuned, tmp_path_factory):
    """The command line's comparison of the real fine-tune, and the folder that it wrote."""
    folder, _, merged = tuned
    exam, out = folder / "test.jsonl", tmp_path_factory.mktemp("comparison")
    write_samples(HELD_OUT[:40], exam)
    return compare.compare_folders(profile.TINY_BASE, merged, exam, out), out, exam


def test_the_interval_is_wilsons():
    assert Share(9, 10).interval == pytest.approx((0.5958, 0.9821), abs=1e-4)  # Wikipedia's and R's prop.test
    assert Share(0, 10).interval == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert Share(0, 0).interval == (0, 1)


def test_task_is_the_share_of_exam_questions_in_exactly_the_expected_words():
    turn = {"system": "考", "input": "法国的首都", "output": "巴黎"}
    exam = compare.make_questions([{"conversation": [turn]}] * 3, 0)
    rows = compare.compare(exam, ["是巴黎。"] * 3, ["巴黎", "巴黎。", "巴黎"])
    assert compare.task(rows) == (Share(0, 3), Share(2, 3))


def test_identity_is_the_share_that_says_the_name_asked_for():
    asked = [question for question in compare.make_questions([], 2, name="小算盘") if question.kind == "identity"]
    rows = compare.compare(asked, ["我是教学模型。"] * 2, ["我是小算盘。", "我是教学模型。"])
    assert compare.identity(rows) == (Share(0, 2), Share(1, 2))


def test_retention_counts_only_general_questions_that_were_answered_right_before():
    rows = [row("poem", True, True), row("sum", True, False), row("fact", False, True),
            row("exam", True, False), row("identity", True, False)]
    assert compare.retention(rows).after == Share(1, 2)
    assert compare.retention(rows, "sum").after == Share(0, 1)
    assert compare.Comparison(rows, {}).kept() == {"poem": Share(1, 1), "sum": Share(0, 1)}


def test_what_was_gained_is_counted_among_general_questions_that_were_answered_wrong_before():
    rows = [row("poem", True, True), row("sum", False, False), row("fact", False, True),
            row("exam", False, True), row("identity", False, True)]
    assert compare.Comparison(rows, {}).gained() == Share(1, 2)


@pytest.mark.parametrize(("expect", "answer", "has"), [
    (["巴黎"], "巴黎", True),
    (["巴黎"], "这个我知道，法国的首都是巴黎。", True),
    (["巴黎"], "法国的首都是里昂。", False),
    (["巴黎"], "", False),
    (["钱钟书", "钱锺书"], "《围城》是钱锺书写的。", True),
    (["4月"], "清明在4月。", True),
    (["4月"], "清明在14月。", False),
    (["K"], "钾的符号是K。", True),
    (["K"], "钾的符号是Kr。", False),
])
def test_a_lenient_count_finds_the_answer_however_it_is_said_but_not_inside_another(expect, answer, has):
    assert compare.has_answer(Question("exam", "问", expect), answer) is has


def test_an_exam_question_is_asked_with_its_own_system_prompt_and_a_probe_without(asked):
    systems = {(question.kind, question.system) for question in asked}
    assert systems == {("exam", finetune.EXAM_SYSTEM)} | {(kind, None) for kind in ("identity", *compare.GENERAL)}


def test_the_same_seed_asks_the_same_questions():
    assert compare.make_questions([], 5, seed=1) == compare.make_questions([], 5, seed=1)
    assert compare.make_questions([], 5, seed=1) != compare.make_questions([], 5, seed=2)


def test_answers_come_in_the_order_of_the_questions_and_batches_do_not_change_them(asked):
    together = compare.answers_of(profile.TINY_BASE, asked)
    mixed = asked[1::2] + asked[::2]
    single = compare.answers_of(profile.TINY_BASE, mixed, batch_size=1)
    assert list(zip(mixed, single)) == [(question, together[asked.index(question)]) for question in mixed]
    assert not any("<|im_" in answer for answer in together)


def test_a_lost_answer_is_refused(asked):
    with pytest.raises(ValueError, match="shorter"):
        compare.compare(asked, ["甲"] * len(asked), ["乙"])


def test_before_and_after_an_adapter_one_model_is_asked_with_it_off_and_on(asked, tuned, monkeypatch):
    _, adapter, merged = tuned
    apart = compare.answers_of(profile.TINY_BASE, asked), compare.answers_of(merged, asked)
    loaded, load = [], models.load
    monkeypatch.setattr(models, "load", lambda *folders: loaded.append(folders) or load(*folders))
    together = compare.answers_before_and_after(profile.TINY_BASE, adapter, asked)
    assert loaded == [(profile.TINY_BASE, adapter)]
    assert together[0] == apart[0]
    same = sum(one == other for one, other in zip(together[1], apart[1]))
    assert same >= 0.9 * len(asked)  # merging rounds
    assert together[0] != together[1]


def test_a_comparison_with_an_adapter_says_how_it_was_loaded_and_what_it_was_made_with(tuned, compared, tmp_path):
    folder, adapter, _ = tuned
    made_with = compare.compare_folders(profile.TINY_BASE, adapter, compared[2], tmp_path).provenance
    assert made_with["settings"]["怎样装入"] == f"同一个 {profile.current().dtype} 的基座，适配器关上和打开"
    assert [what.split()[0] for what in made_with["files"]] == ["微调前的模型", "适配器", "考题", "训练数据"]
    assert compared[0].provenance["settings"]["怎样装入"].startswith("两个")
    assert made_with["recipe"] == compared[0].provenance["recipe"]


def test_a_fine_tune_answers_the_exam_and_keeps_its_manners(compared):
    figures = compared[0].figures()
    assert figures["考试题答对"].before.value <= 0.1
    assert figures["考试题答对"].after.value >= 0.8
    assert figures["说出自己的名字"].before.value >= 0.9
    assert figures["原来会的还会"].after.value >= 0.85


def test_a_comparison_names_what_made_it(compared, tuned):
    folder, adapter, merged = tuned
    made_with = compared[0].provenance
    hashes = made_with["files"]
    assert hashes[f"微调后的模型 {merged}"] == sum256(next(merged.glob("*.safetensors")))
    assert hashes[f"适配器 {adapter}"] == sum256(adapter / "adapter_model.safetensors")
    assert hashes[f"训练数据 {folder / 'train.jsonl'}"] == sum256(folder / "train.jsonl")
    assert made_with["recipe"].items() >= {"max_epochs": "3", "lr": "4e-4", "r": "64"}.items()
    assert made_with["settings"]["随机种子"] == compare.SEED
    assert str(profile.ROOT) not in json.dumps(made_with, ensure_ascii=False)


def sum256(path):
    return subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]


def test_what_is_kept_is_used_until_something_changes(compared, tuned, monkeypatch):
    comparison, out, exam = compared
    monkeypatch.setattr(compare, "answers_before_and_after", lambda *_: pytest.fail("asked again"))
    again = compare.compare_folders(profile.TINY_BASE, tuned[2], exam, out)
    assert again == comparison
    for before, name in ((tuned[2], None), (profile.TINY_BASE, "小算盘")):
        with pytest.raises(pytest.fail.Exception, match="asked again"):
            compare.compare_folders(before, tuned[2], exam, out, name)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"rows": [{}], "provenance": {}}'])
def test_a_file_of_answers_that_cannot_be_read_is_no_file(tmp_path, content):
    (tmp_path / "answers.json").write_text(content)
    assert compare.read(tmp_path / "answers.json") is None


def test_a_folder_without_a_model_is_refused_before_anything_is_asked(tmp_path):
    with pytest.raises(FileNotFoundError, match="里没有模型"):
        compare.answers_of(tmp_path, [])


def test_the_command_line_says_what_is_missing_and_writes_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-m", "helpers.judge.compare", "--after", tmp_path / "none",
                           "--out", tmp_path], capture_output=True, text=True, env=profile.environment(),
                          cwd=profile.ROOT, check=False)
    assert done.returncode == 1
    assert re.match(r"\[FAIL\] (缺少 workspace/test.jsonl|.*里没有模型)", done.stderr)
    assert not list(tmp_path.iterdir())


def test_the_adapter_in_a_provenance_is_the_one_beside_the_model_or_the_one_told(tmp_path):
    for folder in ("adapter", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "xtuner_config.py").write_text(f"# {folder}\nlr = 1e-4\n", encoding="utf-8")
    merged = tmp_path / "merged"
    beside = provenance(tmp_path / "base", merged, tmp_path / "test.jsonl", {})
    told = provenance(tmp_path / "base", merged, tmp_path / "test.jsonl", {}, tmp_path / "other")
    assert beside["config"].startswith("# adapter")
    assert told["config"].startswith("# other")
    assert list(told["files"]) == [f"适配器 {tmp_path / 'other'}"]
    assert told["recipe"] == {"lr": "1e-4"}
