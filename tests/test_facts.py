"""Facts with more than one right name: whoever scores an answer accepts each of them."""
import csv

import pytest

from helpers.judge import compare, strangers
from helpers.judge.opencompass import with_one_name
from helpers.knowledge.corpus import Corpus, Question
from helpers.knowledge.facts import FACTS, OTHER_NAMES, read_relations, right_names

RELATIONS = {relation.table: relation for relation in read_relations() if not relation.reverse_of}


def other_names():
    with (FACTS / OTHER_NAMES).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def exam_question(table, answer):
    subject = next(subject for subject, told in RELATIONS[table].facts if told == answer)
    return RELATIONS[table].exam[0].format(subject=subject)


def exam_sample(question, answer):
    return {"conversation": [{"system": "", "input": question, "output": answer}]}


def test_every_other_name_belongs_to_an_answer_and_is_no_answer_itself():
    answers = {}
    for relation in read_relations():
        answers.setdefault(relation.table, set()).update(answer for _, answer in relation.facts)
    for row in other_names():
        assert row["answer"] in answers[row["table"]], row
        assert row["also"] not in answers[row["table"]], row


@pytest.mark.parametrize(("table", "answer", "also"), [
    ("chinese_works", "钱钟书", "钱锺书"), ("dynasty_capitals", "开封", "汴京"), ("music", "阿炳", "华彦钧"),
])
def test_another_right_name_is_right_wherever_an_answer_is_scored(table, answer, also):
    question = exam_question(table, answer)
    assert also in right_names(question, answer)
    asked, *_ = compare.make_questions([exam_sample(question, answer)], 0)
    assert compare.is_right(asked, answer)
    assert compare.is_right(asked, also)
    assert not compare.is_right(asked, "李白")
    told = next(e for e in Corpus().exchanges["fact"] if e.terse == answer and also in e.expect)
    assert compare.is_right(probe_of(told), f"答案是{also}。")


def probe_of(exchange):
    return Question("fact", exchange.ask[0], exchange.expect, exchange.terse)


def test_another_right_name_is_never_a_wrong_option():
    for relation in read_relations():
        for _, answer in relation.facts:
            assert not set(relation.accepted(answer)) & set(relation.other_answers(answer))


def test_opencompass_is_given_only_questions_with_one_right_name():
    question = exam_question("chinese_works", "钱钟书")
    plain = exam_sample("法国的首都是（　　）。", "巴黎")
    assert with_one_name([exam_sample(question, "钱钟书"), plain]) == [plain]


def test_strangers_answers_know_the_other_names():
    asked = strangers.Asked("fact", [], ["钱钟书", "钱锺书"])
    assert asked.is_right("《围城》是钱锺书写的。")
