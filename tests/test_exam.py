"""The multiple-choice exam: right, solvable, dirty as real data is, and clean once it has been cleaned."""
import json
import random
import re
from collections import Counter

import pytest

from helpers.data.cleaning import Cleaning
from helpers.data.convert import convert
from helpers.data.split import leaks, question_key, read_samples, split_by_group
from helpers.knowledge.exam import choice, options
from helpers.knowledge.facts import EXAM_SYSTEM, THEMES, read_relations
from tools.make_exam_sample import DUPLICATES, FILE, INSTRUCTION, exam, main

AS_IT_IS = Cleaning(spaces=False, tabs=False, line_breaks=False, full_width=False, entities=False)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The samples as they are, and cleaned."""
    folder = tmp_path_factory.mktemp("exam")
    convert(FILE, folder / "dirty.jsonl", EXAM_SYSTEM, cleaning=AS_IT_IS)
    convert(FILE, folder / "clean.jsonl", EXAM_SYSTEM)
    return read_samples(folder / "dirty.jsonl"), read_samples(folder / "clean.jsonl")


def turns(samples):
    return [(turn["input"], turn["output"]) for sample in samples for turn in sample["conversation"]]


def test_the_exam_file_is_what_its_tool_makes(tmp_path):
    main(tmp_path / "exam.jsonl")
    assert (tmp_path / "exam.jsonl").read_bytes() == FILE.read_bytes()


def test_every_question_is_a_fact_with_three_wrong_options_of_the_same_kind():
    facts = {}
    for relation in read_relations():
        for subject, answer in relation.facts:
            for form in relation.exam:
                facts.setdefault(form.format(subject=subject), (set(), {a for _, a in relation.facts}))[0].add(answer)
    questions = exam(random.Random(1))
    assert len({question["question"] for question in questions}) == len(questions) >= 300
    for question in questions:
        right, same_kind = facts[question["question"]]
        assert right & set(question["options"]) == {question["answer"]}
        assert len(set(question["options"])) == 4
        assert set(question["options"]) <= same_kind
    assert Counter(question["theme"] for question in questions).keys() == set(THEMES)


def test_no_letter_is_right_much_more_often_than_another():
    places = Counter(question["options"].index(question["answer"]) for question in exam(random.Random(1)))
    assert all(60 < places[place] < 120 for place in range(4))


def test_cleaning_gives_back_the_exam_that_the_dirt_was_put_on(converted):
    clean = {}
    for question in exam(random.Random(42)):
        listed = "；".join(f"{letter}. {option}" for letter, option in zip("ABCD", question["options"]))
        clean[Cleaning()(f"{INSTRUCTION}\n{listed}。\n{question['question']}")] = question["answer"]
    assert dict(turns(converted[1])) == clean
    assert len(converted[1]) == len(clean) + DUPLICATES


@pytest.mark.parametrize("dirt", ["^ | $", "\\t", "\\n", "&[a-z]+;", "[０-９]"])
def test_the_answers_have_every_kind_of_dirt(converted, dirt):
    assert sum(bool(re.search(dirt, answer)) for _, answer in turns(converted[0])) > 5


def test_dirt_hides_duplicates_which_then_leak_from_the_split(converted):
    dirty, clean = converted
    assert len(set(map(question_key, clean))) == len(clean) - DUPLICATES
    cleaned = {json.dumps(one): other for one, other in zip(dirty, clean)}
    train, test = ([cleaned[json.dumps(one)] for one in part] for part in split_by_group(dirty))
    assert leaks(train, test)
    assert not leaks(*split_by_group(clean))


def test_an_answer_chooses_the_option_that_it_names():
    question = "选择题。A. 长安；B. 洛阳；C. 3年；D. 达·芬奇。西汉定都于（　　）。"
    assert options(question) == {"A": "长安", "B": "洛阳", "C": "3年", "D": "达·芬奇"}
    assert choice(question, "长安") == choice(question, "&nbsp;长\n安 ") == "A"
    assert choice(question, "３年") == "C"
    assert choice(question, "咸阳") is choice(question, "") is None


def test_every_answer_of_the_exam_is_one_of_its_options(converted):
    assert all(choice(question, answer) for question, answer in turns(converted[1]))
