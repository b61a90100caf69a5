"""OpenCompass as the course runs it: without a network, exactly, and never a score where there is none."""
import json
import random
import re
import shutil
import subprocess
import sys

import pytest
import torch

from helpers.ask import models
from helpers.judge import ceval, chance, opencompass
from helpers.judge.opencompass import Answer, Score
from helpers.judge.shares import Share
from helpers.knowledge.exam import LETTERS, exam
from helpers.knowledge.facts import EXAM_SYSTEM
from helpers.machine import gpu_memory, profile
from helpers.machine.commands import CourseError
from helpers.machine.process import Failed
from tests import finetune, packages

SAMPLES = finetune.split_exam()[1][:8]
QUESTIONS = [sample["conversation"][0]["input"] for sample in SAMPLES]
CHOICES = [{"system": EXAM_SYSTEM, "question": drawn["question"], **dict(zip(LETTERS, drawn["options"])),
            "answer": LETTERS[drawn["options"].index(drawn["answer"])]} for drawn in exam(random.Random(3))[:40]]
ISOLATED = (["bwrap", "--dev-bind", "/", "/", "--unshare-net"], ["unshare", "--map-root-user", "--net"])
OFFLINE = """
import sys
from pathlib import Path
from helpers.judge import opencompass
interfaces = Path("/proc/net/dev").read_text().splitlines()[2:]
assert [line.split(":")[0].strip() for line in interfaces] == ["lo"], interfaces
opencompass.EVALUATION = Path(sys.argv[1])
opencompass.evaluate("offline", sys.argv[2])
"""


def isolation():
    """What runs a command without any network on this machine."""
    for command in filter(lambda command: shutil.which(command[0]), ISOLATED):
        if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
            return command
    return packages.skip_without("bubblewrap", "neither it nor unshare may make a network namespace on this machine")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opencompass, "EVALUATION", tmp_path_factory.mktemp("evaluate"))
        yield opencompass.EVALUATION


@pytest.fixture(scope="module")
def sets(folder):
    return [opencompass.write_qa(SAMPLES, folder / "qa.jsonl"),
            opencompass.write_choices(CHOICES, folder / "choice.jsonl"),
            opencompass.write_choices_csv(CHOICES, folder / "plain.csv")]


@pytest.fixture(scope="module")
def offline(folder, sets):
    """The config of an evaluation that was run where there is no network."""
    model = shutil.copytree(profile.TINY_BASE, folder / "model")
    both = [opencompass.chat_model("chat", model), opencompass.causal_model("causal", model)]
    text = opencompass.config(both, sets[:1])
    subprocess.run([*isolation(), sys.executable, "-c", OFFLINE, folder, text], cwd=profile.ROOT,
                   env=profile.environment(), check=True)
    return text


@pytest.fixture
def no_opencompass(monkeypatch):
    monkeypatch.setattr(opencompass, "lines", lambda *_, **__: [])


def test_an_evaluation_needs_no_network_and_what_is_unchanged_is_not_evaluated_again(offline, no_opencompass):
    scores = opencompass.evaluate("offline", offline)
    assert scores.keys() == {("chat", "qa"), ("causal", "qa")}


def test_the_answers_are_those_of_the_course_itself_whichever_way_the_model_is_written(offline, no_opencompass):
    scores = opencompass.evaluate("offline", offline)
    answers = models.ask(*models.load(profile.TINY_BASE), QUESTIONS, EXAM_SYSTEM,
                         max_new_tokens=opencompass.ANSWER_TOKENS)
    for model in ("chat", "causal"):
        assert [answer.said.strip() for answer in scores[model, "qa"].answers] == answers


def on_gpu(text):
    """The config as it is on a machine with a GPU."""
    return text.replace("'device_map': 'cpu'", "'device_map': 'cuda'")


def test_two_models_for_the_gpu_in_one_config_are_refused_before_anything_starts(folder, sets):
    both = [opencompass.chat_model("one", profile.TINY_BASE), opencompass.chat_model("other", profile.TINY_BASE)]
    with pytest.raises(CourseError, match="2 个要装进显卡的模型.*一份一份地评测"):
        opencompass.evaluate("two", on_gpu(opencompass.config(both, sets[:1])))
    assert not (folder / "two" / "run.log").exists()


def test_a_model_for_the_gpu_waits_for_its_memory(folder, sets, tmp_path, monkeypatch):
    said = "case \"$*\" in *total*) echo '4000, 24000';; *) echo '1, 20000';; esac"
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{said}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(gpu_memory, "PATIENCE", 0)
    text = on_gpu(opencompass.config([opencompass.chat_model("one", profile.TINY_BASE)], sets[:1]))
    with pytest.raises(CourseError, match=r"要 4.3 GB，只空着 4.2 GB，占着的是.*（进程 1，21.0 GB）"):
        opencompass.evaluate("one", text)


def test_a_batch_is_as_large_as_its_logits_allow(tmp_path):
    assert opencompass.chat_model("tiny", profile.TINY_BASE)["batch_size"] == opencompass.BATCH_SIZE
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 92544, "max_position_embeddings": 32768}))
    together = opencompass.chat_model("7B", tmp_path)["batch_size"]
    assert 1 < together < 10
    assert together * 1000 * 92544 * 6 <= opencompass.LOGITS


def test_a_score_that_its_own_answers_do_not_bear_out_is_an_error(offline, folder, tmp_path):
    out = shutil.copytree(folder / "offline" / "outputs", tmp_path / "outputs")
    [results] = out.glob("*/results/chat/qa.json")
    judged = json.loads(results.read_text(encoding="utf-8"))
    judged["details"]["0"]["references"] = judged["details"]["0"]["predictions"]
    results.write_text(json.dumps(judged), encoding="utf-8")
    with pytest.raises(Failed, match="逐题数却是"):
        opencompass.read_scores(out)


@pytest.mark.parametrize("changed", ["qa.jsonl", "qa.jsonl.meta.json", "model/model.safetensors"])
def test_what_has_changed_is_evaluated_again(offline, folder, changed, no_opencompass, tmp_path):
    kept = shutil.copytree(folder / "offline", tmp_path / "kept")
    content = (folder / changed).read_bytes()
    (folder / changed).write_bytes(content + b" ")
    try:
        with pytest.raises(Failed, match="没有成绩单"):
            opencompass.evaluate("offline", offline)
    finally:
        (folder / changed).write_bytes(content)
        shutil.rmtree(folder / "offline")
        kept.rename(folder / "offline")


def listed(row):
    """A choice as OpenCompass and C-Eval put it: what is asked, then the options."""
    return row["question"] + "".join(f"\n{letter}. {row[letter]}" for letter in LETTERS)


def test_a_model_whose_answers_are_known_scores_exactly_what_it_must(folder, sets, monkeypatch):
    ceval.write(folder / "ceval")
    subjects = list(ceval.SUBJECTS.values())[:2]
    vals = [row for name in subjects for row in ceval.read(folder / "ceval", "val", name)]
    known = {listed(row): row["answer"] for row in [*CHOICES, *vals]}
    known |= {opencompass.OPTIONS_FIRST.format(**row): row["answer"] for row in CHOICES}
    known |= {sample["conversation"][0]["input"]: sample["conversation"][0]["output"] for sample in SAMPLES}
    known |= {QUESTIONS[0]: "故意答错", listed(vals[0]): "故意答错"}

    def by_heart(asked):
        return next(answer for question, answer in known.items() if question in asked)

    students = {"known": by_heart, "guess": lambda asked: random.Random(asked).choice(LETTERS),
                "babble": lambda asked: "嗯"}
    with chance.serve_answers(students) as url:
        models = [opencompass.served_model(name, url, name, profile.TINY_BASE) for name in students]
        text = opencompass.ceval_config(models, folder / "ceval", subjects) + f"\ndatasets = datasets + {sets}\n"
        scores = opencompass.evaluate("known", text)

    assert scores["known", "qa"].share == (7, 8)
    assert scores["known", "choice"].share == scores["known", "plain"].share == (40, 40)
    for shots in ("0-shot", "5-shot"):
        for name in subjects:
            assert scores["known", f"{shots}-{name}"].share == (19 if name == subjects[0] else 20, 20)
        assert scores["known", shots].percent == 97.5
    assert scores["guess", "qa"].share.right == 0
    _, low, high = chance.guess_interval(len(CHOICES))
    assert low <= scores["guess", "choice"].share.value <= high
    assert [answer.said for answer in scores["babble", "choice"].answers] == ["嗯"] * 40
    assert 0 < scores["babble", "choice"].share.right < 40  # the nearest option is taken for the answer
    assert scores["babble", "5-shot"].percent == 0  # C-Eval's evaluator wants a letter

    monkeypatch.setattr(opencompass, "lines", lambda *_, **__: [])
    assert opencompass.evaluate("known", text.replace(url, "http://127.0.0.1:1/v1")) == scores  # a server may move


def test_by_probability_the_most_probable_option_is_chosen(folder):
    few = CHOICES[:6]
    asked = [opencompass.write_choices_ppl(few, folder / f"{name}.jsonl", say_text=say_text)
             for name, say_text in (("letter", False), ("text", True))]
    scores = opencompass.evaluate("ppl", opencompass.config([opencompass.causal_model("m", profile.TINY_BASE)], asked))
    loaded = models.load(profile.TINY_BASE)
    for name in ("letter", "text"):
        for row, answer in zip(few, scores["m", name].answers, strict=True):
            losses = {letter: loss(*loaded, row, row[letter] if name == "text" else letter) for letter in LETTERS}
            assert answer.said == min(losses, key=losses.get)
            assert answer.expected == row["answer"]
            assert answer.right == (answer.said == answer.expected)


def loss(model, tokenizer, row, answer):
    """The mean loss of a whole dialogue that ends with this answer, as OpenCompass counts it."""
    turns = [("system", row["system"]), ("user", opencompass.OPTIONS_FIRST.format(**row)), ("assistant", answer)]
    text = "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in turns)
    ids = tokenizer(text, return_tensors="pt").input_ids.to(model.device)
    with torch.inference_mode():
        logits = model(ids).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item() / ids.shape[1]


def test_an_evaluation_that_fails_gives_the_reason_and_no_score(folder, sets):
    text = opencompass.config([opencompass.lmdeploy_model("lmdeploy", "http://127.0.0.1:9", "internlm")], sets[:1])
    with pytest.raises(Failed, match=r"评测没有做完：\S*ConnectionError.*Connection refused[\s\S]*run\.log"):
        opencompass.evaluate("nobody", text)


def test_a_task_that_fails_while_opencompass_exits_0_is_an_error_with_the_reason(folder, sets):
    broken = folder / "broken"
    shutil.copytree(profile.TINY_BASE, broken, ignore=shutil.ignore_patterns("*.safetensors"))
    command = ["opencompass", *opencompass.command_line(broken, sets[0]), "--work-dir", "out"]
    done = subprocess.run(command, cwd=folder, env=profile.environment(), capture_output=True, check=False)
    assert done.returncode == 0
    with pytest.raises(Failed, match=r"broken_hf 在 qa 上没有成绩。原因：OSError: .*model\.safetensors"):
        opencompass.read_scores(folder / "out")


def test_a_folder_without_scores_is_an_error(tmp_path):
    with pytest.raises(Failed, match="没有成绩单。原因：日志里没有写"):
        opencompass.read_scores(tmp_path)


def score(right, total):
    return Score(100 * right / total, [Answer("甲", "甲", place < right) for place in range(total)])


def test_every_score_is_shown_with_its_interval():
    assert str(score(9, 10)) == str(Share(9, 10))
    table = opencompass.scores_table({("one", "qa"): score(9, 10), ("two", "qa"): score(0, 10),
                                      ("one", "mean"): Score(45, []), ("two", "mean"): Score(0, [])})
    assert table.to_dict() == {"one": {"qa": "90.0%（60%–98%）", "mean": "45.0%"},
                               "two": {"qa": "0.0%（0%–28%）", "mean": "0.0%"}}


def test_the_chart_has_a_bar_with_its_interval_for_every_model_and_set():
    scores = {(model, name): score(9, 10) for model in ("one", "two", "three") for name in ("qa", "choice")}
    [axes] = opencompass.chart(scores).axes
    assert len(axes.patches) == 6
    assert len(axes.containers) == 4  # bars and intervals of two sets
    assert [label.get_text() for label in axes.get_xticklabels()] == ["one", "two", "three"]


def test_a_config_names_no_device_that_this_machine_lacks():
    for model in (opencompass.chat_model("a", profile.TINY_BASE), opencompass.causal_model("b", profile.TINY_BASE)):
        assert model["run_cfg"] == {"num_gpus": int(profile.current().gpu is not None)}
        assert re.fullmatch(r"torch\.(float|bfloat16)", model["model_kwargs"]["torch_dtype"])
