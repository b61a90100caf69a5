"""The split: seven to three, the same every time, and no question on both sides."""
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.data.cleaning import Cleaning
from helpers.data.convert import convert
from helpers.data.readers import Layout, read
from helpers.data.split import leaks, question_key, read_samples, split, split_by_group, write_samples
from helpers.knowledge.facts import EXAM_SYSTEM
from tools.make_raw_data import FOLDER


def sample(question, answer="答"):
    return {"conversation": [{"system": EXAM_SYSTEM, "input": question, "output": answer}]}


SAMPLES = [sample(f"第{number}题？") for number in range(100)] + [sample(f"第 {number} 题？") for number in range(20)]
questions_of = st.lists(st.sampled_from(["一", "二", "三", "四", "五", "六", "七"]), max_size=60)


@pytest.fixture(scope="module")
def exam(tmp_path_factory):
    """The course's own exam, converted."""
    path = tmp_path_factory.mktemp("exam") / "exam.jsonl"
    convert(FOLDER / "exam.xlsx", path, EXAM_SYSTEM, Layout("题目", "答案"))
    return read_samples(path)


def test_both_splits_keep_every_sample_and_are_seven_to_three():
    for train, test in (split(SAMPLES), split_by_group(SAMPLES)):
        assert (len(train), len(test)) == (84, 36)
        assert Counter(map(json.dumps, train + test)) == Counter(map(json.dumps, SAMPLES))


def test_a_seed_gives_the_same_split_and_another_seed_another():
    for way in (split, split_by_group):
        assert way(SAMPLES, seed=1) == way(SAMPLES, seed=1) != way(SAMPLES, seed=2)


def test_duplicates_leak_from_a_naive_split_and_not_from_one_by_group(exam):
    assert len(leaks(*split(exam))) > 10
    assert leaks(*split_by_group(exam)) == []


def test_a_question_with_other_spaces_width_or_punctuation_is_the_same_question():
    asked = ["HTTP 的默认端口是（　　）。", "ＨＴＴＰ的默认端口是（ ）", "http的默认端口是()？"]
    assert len({question_key(sample(question)) for question in asked}) == 1
    assert question_key(sample("……")) != question_key(sample("？！"))


def test_conversations_with_several_turns_are_the_same_when_all_their_questions_are():
    first, second = sample("一"), sample("一")
    second["conversation"].append({"system": "", "input": "二", "output": "答"})
    assert question_key(first) != question_key(second)


def test_every_theme_is_split_in_the_same_proportion(exam):
    _, rows = read(FOLDER / "exam.xlsx", Layout("题目", "主题"))
    themes = {question_key(sample(Cleaning()(turn.question))): turn.answer for row in rows for turn in row.turns}
    train, test = split_by_group(exam, theme_of=lambda one: themes[question_key(one)])
    tested = Counter(themes[question_key(one)] for one in test)
    total = Counter(themes[question_key(one)] for one in train + test)
    assert len(total) == 6
    assert all(abs(tested[theme] / total[theme] - 0.3) < 0.01 for theme in total)


@given(questions_of)
def test_no_split_by_group_leaks_or_takes_more_than_its_share(questions):
    samples = [sample(question) for question in questions]
    train, test = split_by_group(samples)
    assert leaks(train, test) == []
    assert len(test) <= round(len(samples) * 0.3)
    assert len(train) + len(test) == len(samples)


@settings(deadline=None)  # the disk can be slow
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_written_samples_are_read_back(tmp_path_factory, questions):
    path = tmp_path_factory.mktemp("samples") / "samples.jsonl"
    samples = [sample(question) for question in questions]
    write_samples(samples, path)
    assert read_samples(path) == samples
