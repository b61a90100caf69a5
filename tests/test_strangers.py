import json
import re
from collections import Counter

import pytest

from helpers.judge import strangers
from helpers.judge.strangers import Asked
from helpers.knowledge.corpus import Corpus


def key(text):
    """What is left of a question without punctuation, spaces and case."""
    return re.sub(r"[^\w+\-=]", "", text).lower()


@pytest.fixture(scope="module")
def corpus():
    return Corpus()


def test_nothing_that_a_stranger_asks_stands_in_the_training_text(corpus):
    trained = {key(ask) for exchanges in corpus.exchanges.values() for exchange in exchanges for ask in exchange.ask}
    asked = [row["question"] for half in strangers.HALVES for row in strangers.read(half) if "passage" not in row]
    assert [question for question in asked if key(question) in trained] == []


def test_no_passage_of_a_stranger_stands_in_the_training_text(corpus):
    scenes = corpus.reading.scenes + corpus.reading.prose
    told = {sentence for scene in scenes for fact in scene["fact"] for sentence in fact["tell"]}
    asked = {ask for scene in scenes for fact in scene["fact"] for ask in fact["ask"]}
    for passage in corpus.reading.written:
        told.add(passage["text"])
        asked.update(*passage["ask"].values(), passage["absent"])
    for half in strangers.HALVES:
        for row in strangers.read(half):
            if "passage" in row:
                assert row["passage"] not in told
                assert row["question"].rstrip("？?。") not in asked


def test_strangers_asked_enough_of_every_kind_and_nobody_twice():
    rows = [row for half in strangers.HALVES for row in strangers.read(half)]
    assert len(rows) >= 400
    assert len({(row["question"], row.get("passage")) for row in rows}) == len(rows)
    for half in strangers.HALVES:
        kinds = Counter(asked.kind for asked in strangers.questions(half))
        assert min(kinds.values()) >= 10
        assert kinds["fact"] >= 150


def test_the_two_halves_were_written_by_different_hands():
    first, second = ({row["writer"] for row in strangers.read(half)} for half in strangers.HALVES)
    assert first.isdisjoint(second)


def test_what_is_asked_for_stands_in_the_passage_word_for_word():
    for half in strangers.HALVES:
        for row in strangers.read(half):
            if row["kind"] == "reading":
                assert row["expect"]
                assert all(span in row["passage"] for span in row["expect"])


def test_each_letter_is_right_equally_often():
    facts = [asked for asked in strangers.questions("first") if asked.kind == "fact"]
    letters = Counter(asked.expect[0] for asked in strangers.choices(facts))
    assert set(letters) == set("ABCD")
    assert max(letters.values()) - min(letters.values()) <= 1


def test_options_are_four_different_ones_and_only_one_is_right():
    facts = [asked for asked in strangers.questions("first") if asked.kind == "fact"]
    for asked in strangers.choices(facts):
        options = re.findall(r"^[A-D]\. (.+)$", asked.messages[0]["content"], re.M)
        assert len(set(options)) == 4


@pytest.mark.parametrize(("asked", "answer", "right"), [
    (Asked("fact", [], ["成都"]), "四川的省会是成都。", True),
    (Asked("fact", [], ["8"]), "氧的原子序数是18。", False),
    (Asked("fact", [], ["H"]), "答案是He。", False),
    (Asked("sum", [], ["13"]), "9加4等于13。", True),
    (Asked("sum", [], ["13"]), "13加4等于17。", False),
    (Asked("reading", [], ["缪允恭"]), "缪允恭", True),
    (Asked("reading", [], ["缪允恭"]), "校长是缪允恭。", False),
    (Asked("absent", []), "资料里没有提到。", True),
    (Asked("absent", []), "缪允恭", False),
    (Asked("unknown", []), "我不知道现在的天气，请看天气预报。", True),
    (Asked("unknown", []), "今天是晴天。", False),
    (Asked("choice", [], ["B"]), "B", True),
    (Asked("choice", [], ["B"]), "B. 成都", False),
    (Asked("examples", [], ["成都"]), "成都", True),
    (Asked("examples", [], ["成都"]), "四川的省会是成都。", False),
    (Asked("greeting", [], means="night"), "晚安，祝你做个好梦。", True),
    (Asked("greeting", [], means="night"), "早上好！", False),
], ids=lambda value: str(value)[:30])
def test_an_answer_is_judged_as_a_person_would(asked, answer, right):
    assert asked.is_right(answer) is right


def test_a_half_is_readable_line_by_line():
    for half in strangers.HALVES:
        for line in (strangers.FOLDER / f"{half}.jsonl").read_text(encoding="utf-8").splitlines():
            assert {"kind", "question", "writer"} <= set(json.loads(line))
