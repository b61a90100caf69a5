"""Facts with more than one right name: whoever scores an answer accepts each of them."""
import csv

import pytest

from helpers.judge import compare, strangers
from helpers.judge.opencompass import with_one_name
from helpers.knowledge.corpus import Corpus, Question
from helpers.knowledge.facts import FACTS, OTHER_NAMES, exam_questions, read_relations, right_names, told, untold

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


@pytest.mark.parametrize("sample", [
    exam_sample("哪座城市是法国的首都", "答案是巴黎。"), exam_sample("首都是巴黎的国家是（　　）。", "法国"),
    exam_sample("巴黎在哪里？", "在法国。"),
])
def test_a_fact_is_told_in_whatever_words_and_either_way(sample):
    question = exam_question("capitals", "巴黎")
    assert told([sample], [question]) == [question]


def test_a_fact_is_not_told_by_another_answer_or_in_two_turns():
    question = exam_question("capitals", "巴黎")
    france, paris = exam_sample("法国在哪里？", "在欧洲。"), exam_sample("巴黎美吗？", "很美。")
    apart = {"conversation": france["conversation"] + paris["conversation"]}
    assert told([exam_sample("日本的首都是（　　）。", "东京"), apart], [question, "今天天气怎么样？"]) == []


def test_a_name_that_is_part_of_the_other_has_to_be_told_too():
    question = RELATIONS["provinces"].exam[0].format(subject="青海")
    assert told([exam_sample("西宁在哪个省？", "在青海。")], [question]) == []
    assert told([exam_sample("简称为青的省级行政区是（　　）。", "青海")], [question]) == [question]


def test_of_every_exam_question_it_is_known_what_fact_it_asks_for():
    asked = exam_questions(read_relations())
    telling = [exam_sample(question["question"], question["answer"]) for question in asked]
    questions = [question["question"] for question in asked]
    assert told(telling, questions[::50]) == questions[::50]


def test_untold_questions_are_those_whose_facts_no_sample_tells():
    asked = exam_questions(read_relations())
    known = [exam_sample(question["question"], question["answer"]) for question in asked[:-5]]
    drawn = untold(known, 5)
    assert {sample["conversation"][0]["input"] for sample in drawn} == {row["question"] for row in asked[-5:]}
    assert told(known, [sample["conversation"][0]["input"] for sample in drawn]) == []
    assert untold(known, 3) == untold(known, 3)
