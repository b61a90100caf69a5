from collections import Counter

import pytest

from helpers.data.split import question_key
from helpers.knowledge import self_talk
from helpers.knowledge.corpus import Corpus

NAME, OWNER = "书童", "小明"
TOPICS = self_talk.topics(NAME, OWNER)
MANY = self_talk.samples(NAME, OWNER, 600)


def key(question):
    return question_key({"conversation": [{"input": question}]})


def turns(samples):
    return [turn for sample in samples for turn in sample["conversation"]]


def test_no_question_is_one_that_identity_is_judged_by():
    probes = {key(probe.question) for probe in Corpus().probes("identity")}
    assert probes.isdisjoint(key(question) for topic in TOPICS for question, _ in topic)


def test_every_answer_says_the_name():
    assert all(NAME in answer for topic in TOPICS for _, answers in topic for answer in answers)


def test_there_are_many_ways_to_ask_and_several_to_answer():
    assert len({question for topic in TOPICS for question, _ in topic}) >= 150
    assert all(len(answers) >= 2 for topic in TOPICS for _, answers in topic)


@pytest.mark.parametrize("name", ["书童", "豆包"])
def test_a_trap_is_denied_and_is_never_the_assistants_own_name(name):
    [traps] = [topic for topic in self_talk.topics(name, OWNER) if "ChatGPT" in str(topic)]
    assert not [question for question, _ in traps if name in question]
    assert all(answer.startswith(("不是", "我不是", "你认错了")) for _, answers in traps for answer in answers)


def test_samples_are_all_different_and_the_same_seed_gives_the_same():
    assert len({str(sample) for sample in MANY}) == 600
    assert self_talk.samples(NAME, OWNER, 600) == MANY
    assert self_talk.samples(NAME, OWNER, 600, seed=1) != MANY


def test_some_conversations_have_two_turns_and_no_topic_is_forgotten():
    lengths = Counter(len(sample["conversation"]) for sample in MANY)
    assert lengths.keys() == {1, 2}
    assert lengths[2] > 60
    asked = {turn["input"] for turn in turns(MANY)}
    assert all(asked & {question for question, _ in topic} for topic in TOPICS)


def test_a_mixture_has_the_share_of_general_dialogue_that_was_asked_for():
    own, general = ["own"] * 3, ["general"] * 2
    assert Counter(self_talk.mix(own, general, 0.25, 40)) == {"own": 30, "general": 10}
    assert set(self_talk.mix(own, general, 0, 40)) == {"own"}


def test_a_mixture_uses_everything_it_can_before_it_repeats():
    own, general = [f"own {n}" for n in range(30)], [f"general {n}" for n in range(8)]
    counted = Counter(self_talk.mix(own, general, 0.25, 40))
    assert set(own) < set(counted)
    assert sorted(set(counted.values())) == [1, 2]
