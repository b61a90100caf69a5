import pytest

from helpers.ask import models
from helpers.machine import profile
from helpers.retrieve import answers, handbook
from helpers.retrieve.handbook import Asked
from helpers.retrieve.passages import Passage

CLOCK = Passage("钟楼立在镇子正中，1761年完工。", "手册", "2025", "历史")
LIBRARY = Passage("馆长叫施半页。", "手册", "2025", "图书馆")


@pytest.fixture(scope="module")
def base():
    return models.load(profile.TINY_BASE)


def test_the_model_is_given_the_passages_and_the_question_below_them():
    both = answers.prompt("钟楼何时完工？", [CLOCK, LIBRARY])
    assert both == f"资料：{CLOCK.text}\n{LIBRARY.text}\n问题：钟楼何时完工？"
    assert answers.prompt("钟楼何时完工？", []) == "钟楼何时完工？"


def test_every_question_is_answered_from_its_own_passages(base):
    said = answers.answer(*base, ["馆长叫什么？", "钟楼是哪一年完工的？"], [[LIBRARY], [CLOCK]])
    assert said == ["施半页", "1761年"]


def test_of_an_invented_town_the_base_knows_nothing_and_reads_half_of_what_it_is_given(base):
    asked = [asked for asked in handbook.strangers() if asked.value]
    questions, values = [one.question for one in asked], [one.value for one in asked]
    closed = answers.judge(answers.answer(*base, questions, [[]] * len(asked)), values)
    given = answers.judge(answers.answer(*base, questions, [[one.passage] for one in asked]), values)
    assert closed.right.value <= 0.05
    assert given.right.value >= 0.4


def test_a_verdict_is_right_refused_or_made_up():
    said = ["1761年", "是1761年完工的。", "资料里没有提到。", "我不知道，我没有听说过。", "11761年", "1759年"]
    assert answers.judge(said, ["1761年"] * 6) == ((2, 6), (2, 6), (2, 6))


def test_where_the_handbook_is_silent_nothing_is_right():
    assert answers.judge(["资料里没有提到。", "三元"], [None, None]) == ((0, 2), (1, 2), (1, 2))


def test_reading_is_learnt_from_the_right_passage_and_from_one_that_only_looks_right():
    asked = Asked("馆长是谁？", "施半页", LIBRARY)
    other = Passage("东门图书馆，馆长施半页，一九五六年开馆。", "手册", "2025", "图书馆")
    learnt = answers.samples([asked], [[other, LIBRARY, CLOCK]])
    turns = [turn for sample in learnt for turn in sample["conversation"]]
    assert [turn["input"] for turn in turns] == [answers.prompt("馆长是谁？", [one]) for one in (LIBRARY, CLOCK)]
    assert [turn["output"] for turn in turns] == ["施半页", "资料里没有提到。"]
