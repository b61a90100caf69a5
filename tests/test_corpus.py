import random
import re
from collections import Counter

import pytest

from helpers.knowledge.corpus import LETTERS, Corpus, Stage, end_of
from helpers.knowledge.invent import COMMON, in_chinese

TURNS = 20_000
AT_MOST = 0.0005  # of user turns
# What a reader of 134,166 composed turns stumbled over, and more of the kind.
UNGRAMMATICAL = {name: re.compile(pattern) for name, pattern in {
    "a favour before a question": r"(能不能|可不可以|能否|可以|你能)[^，]{0,8}的?是(谁|什么|多少|哪里)吗",
    "a request that is asked as a question": r"^(能不能|可不可以|能否)[^，。\n]*。$",
    "two particles": "吧吗|吗吧|呢吗|呗吗|吧呢|吗吗",
    "please before a request": "请问(告诉|说说|麻烦|快说|考考|想问|介绍|你好|您好|希望你)",
    "a greeting before a greeting": "^(你好|您好)，(你好|您好)",
    "two marks": "[？?。！，][？?。，]",
    "a placeholder": "[{}]",
    "a question mark because of a name": "^告诉我几内亚[^是什哪]*？",
    "二 before a measure word": r"(?<![十第百千零礼拜周期一二三四五六七八九])二[个只本块颗辆枝支页]",
    "none of something counted": r"(?<![0-9.:])0[个只本块颗辆枝页]|(?<![一二三四五六七八九千百])零[个只本块颗辆枝页]",
    "两 in a sum": "两[加减]",
    "titles in titles": "《[^》]*《",
    "nothing in quotes": "“”|《》",
    "a space at an end": "^ | $",
}.items()}


@pytest.fixture(scope="module")
def corpus():
    return Corpus()


def dialogues(corpus, kind, count=500, **stage):
    rng = random.Random(7)
    return [corpus.dialogue(rng, Stage(0, {kind: 1.0}, **stage)) for _ in range(count)]


def test_hardly_a_turn_is_ungrammatical(corpus):
    rng, turns, wrong = random.Random(99), 0, []
    while turns < TURNS:
        for message in corpus.dialogue(rng):
            if message["role"] == "user":
                turns += 1
                wrong += [(name, message["content"]) for name, pattern in UNGRAMMATICAL.items()
                          if pattern.search(message["content"])]
    assert len(wrong) / turns <= AT_MOST, wrong[:10]


@pytest.mark.parametrize(("form", "mark"), [
    ("{subject}的省会是哪里", "？"), ("{subject}省会", "？"), ("告诉我{subject}的首都", "。"),
    ("说说{subject}吧", "。"),
    ("请问{subject}是谁写的", "？"), ("我想知道{subject}的作者是谁", "。"), ("你知道{subject}吗", "？"),
    ("{subject}的作者我忘了", "。"), ("Who are you", ""),
])
def test_a_form_ends_with_what_fits_it(form, mark):
    assert end_of(form) == mark


def test_a_name_has_no_say_in_the_punctuation(corpus):
    [exchange] = [e for e in corpus.exchanges["fact"] if e.terse == "科纳克里" and "几内亚" in e.ask[0]]
    [told] = [ask for ask in exchange.ask if ask.startswith("告诉我几内亚的首都")]
    assert told.endswith("。")


@pytest.mark.parametrize("share", [{}, {"prose": 1.0}, {"written": 1.0}], ids=str)
def test_a_passage_holds_the_answer_word_for_word_or_the_answer_says_that_it_does_not(corpus, share):
    absent = 0
    for dialogue in dialogues(corpus, "reading", **share):
        messages = [message for message in dialogue if message["role"] != "system"]
        passage = messages[0]["content"]
        for answer in messages[1::2]:
            absent += answer["content"] in corpus.reading.absent
            assert answer["content"] in corpus.reading.absent or answer["content"] in passage
    assert absent > 50


def test_a_value_stands_only_once_in_what_a_passage_tells(corpus):
    rng = random.Random(3)
    for _ in range(500):
        _, told, *_ = corpus.reading.passage(rng, 6)
        values = [fact.value for fact in told if fact.sentences]
        assert len(set(values)) == len(values)


def test_prose_tells_several_things_in_a_sentence_and_every_sentence_ends(corpus):
    rng = random.Random(4)
    passages = [corpus.reading.passage(rng, 6, prose=1.0)[0] for _ in range(300)]
    assert all(re.fullmatch(r"([^，。]+，)*[^，。]+。", sentence) for text in passages
               for sentence in re.findall("[^。]*。", text))
    assert sum("，" in text for text in passages) > 150


def test_a_written_passage_answers_each_of_its_questions_once_and_no_question_tells_its_answer(corpus):
    for passage in corpus.reading.written:
        for slot, asks in passage["ask"].items():
            assert passage["text"].count(f"{{{slot}}}") == 1
            assert len(set(asks)) >= 4
            assert not any(f"{{{slot}}}" in ask for ask in asks)


def test_what_is_left_out_of_a_written_passage_is_not_in_it(corpus):
    rng, left_out = random.Random(6), 0
    for _ in range(300):
        text, told, untold, _ = corpus.reading.passage(rng, 6, written=1.0)
        assert all(fact.value in text for fact in told)
        left_out += len(untold) > 7
    assert 50 < left_out < 150


def test_entries_are_named_with_the_label_that_stood_before_them(corpus):
    for dialogue in dialogues(corpus, "labelled", 200):
        question, answer = [message["content"] for message in dialogue if message["role"] != "system"]
        for named in answer.split("，"):
            entry, label = re.fullmatch("(.+?)[：（是]?(.)）?", named).groups()
            assert re.search(rf"{re.escape(label)}[ .、：）是]?\s?{re.escape(entry)}", question)


def test_a_list_is_asked_for_what_stands_before_a_value(corpus):
    for dialogue in dialogues(corpus, "back", 300):
        first, *turns = [message["content"] for message in dialogue if message["role"] != "system"]
        assert all(answer in first for answer in turns[::2])


def test_passages_are_about_names_that_no_table_knows(corpus):
    rng, known = random.Random(5), {subject for relation in corpus.relations for subject, _ in relation.facts}
    invented = {corpus.reading.inventor.value(rng, "person") for _ in range(500)}
    assert len(invented & known) <= 2
    assert len(invented) > 490


def test_every_common_character_takes_part_in_invented_names(corpus):
    rng = random.Random(1)
    drawn = set(corpus.reading.inventor.characters(rng, 60_000))
    assert len(drawn & set(COMMON)) > 0.99 * len(COMMON)


def test_the_right_option_is_equally_often_in_each_place(corpus):
    letters = Counter(dialogue[-1]["content"][0] for dialogue in dialogues(corpus, "choice", 2000))
    assert set(letters) == set(LETTERS)
    assert max(letters.values()) < 1.2 * min(letters.values())


def test_the_letter_asked_for_is_the_one_before_the_option(corpus):
    for dialogue in dialogues(corpus, "letter", 200, letters=4):
        texts = [message["content"] for message in dialogue if message["role"] != "system"]
        assert len(texts) == 8
        for question, letter in zip(texts[::2], texts[1::2]):
            named = re.findall(rf"{letter}[.、：） ] ?(.+?)(?=[；\n，]|  |$)", texts[0])
            assert any(option in question for option in named)


def test_what_is_said_around_a_question_changes_neither_it_nor_its_answer(corpus):
    plain, talked = (Stage(0, {"fact": 1.0}, talk=share) for share in (0.0, 1.0))
    for seed in range(200):
        (*_, question, answer), (*_, with_talk, same) = (corpus.dialogue(random.Random(seed), stage)[:3][-2:]
                                                         for stage in (plain, talked))
        if question["role"] == with_talk["role"] == "user" and answer == same:
            assert question["content"].rstrip("？?。！") in with_talk["content"]


def test_examples_before_a_question_are_read_but_not_learnt(corpus):
    turns = [dialogue for dialogue in dialogues(corpus, "examples") if len(dialogue) >= 8]
    assert turns
    for dialogue in turns:
        answers = [message for message in dialogue if message["role"] == "assistant"]
        assert [bool(message.get("given")) for message in answers] == [True, True, True, False]


@pytest.mark.parametrize(("number", "words"), [
    (0, "零"), (9, "九"), (10, "十"), (15, "十五"), (20, "二十"), (90, "九十"), (105, "一百零五"), (110, "一百一十"),
    (206, "二百零六"), (1000, "一千"), (1050, "一千零五十"), (3797, "三千七百九十七"), (4002, "四千零二"),
])
def test_numbers_are_written_as_people_write_them(number, words):
    assert in_chinese(number) == words
