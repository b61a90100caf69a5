import json
import sys

import pytest

from helpers.data.split import question_key, read_samples
from helpers.grading import inputs, secret
from helpers.grading.rules import DEFAULT, Rules
from helpers.judge import compare
from helpers.knowledge import self_talk
from helpers.knowledge.corpus import Corpus
from helpers.knowledge.facts import read_relations, told
from helpers.machine.commands import CourseError
from tests import finetune

SEED = "a secret of this class"


@pytest.fixture(scope="module")
def drawn():
    return secret.draw(SEED)


@pytest.fixture(scope="module")
def public():
    return secret.read(DEFAULT.parent / secret.QUESTIONS)


def key(question):
    return question_key({"conversation": [{"input": question}]})


def keys(questions):
    return {key(one.question.question) for one in questions}


def of_the_exam(questions):
    return [one for one in questions if one.subject]


def test_a_seed_always_gives_the_same_questions_and_another_one_others(drawn, public):
    assert secret.draw(SEED) == drawn
    assert len(keys(drawn) & keys(public)) < len(drawn) / 50


def test_every_question_of_the_exam_has_a_right_answer(drawn):
    accepted = {}
    for relation in read_relations():
        for subject, answer in relation.facts:
            accepted.setdefault((subject, answer), []).append(relation.accepted(answer))
    exam = of_the_exam(drawn)
    assert len(exam) == len({one.fact for one in exam}) == secret.EXAM_QUESTIONS
    for one in exam:
        assert one.subject in one.question.question
        assert one.question.expect in accepted[one.fact]


def test_no_file_of_the_lessons_tells_what_the_exam_asks_for(drawn):
    given = finetune.training_rows() + finetune.split_exam()[1]
    told_keys = {(one.subject, one.question.terse) for one in of_the_exam(drawn)}
    forms = [form.format(subject=subject) for relation in read_relations() for form in relation.exam[:1]
             for subject, answer in relation.facts if (subject, answer) in told_keys]
    assert not told(given, forms)


def test_the_words_of_no_question_stand_in_the_repository(drawn):
    corpus = Corpus()
    known = {key(form.format(subject=subject)) for relation in corpus.relations
             for form in relation.exam + relation.ask + relation.held_out for subject, _ in relation.facts}
    known |= {key(ask) for kind in ("identity", "self", "greeting", "poem", "sum")
              for exchange in corpus.exchanges[kind] for ask in exchange.ask + exchange.held_out}
    known |= {key(ask) for topic in self_talk.topics("小星星", "李雷") for ask, _ in topic}
    assert not keys(drawn) & known


def test_there_are_as_many_of_every_other_kind(drawn):
    kinds = [one.question.kind for one in drawn if not one.subject]
    assert {kind: kinds.count(kind) for kind in kinds} == dict.fromkeys(
        (compare.IDENTITY, *compare.GENERAL), secret.OF_EACH_KIND)


def test_an_exam_is_drawn_into_rules_that_the_grader_can_use(drawn, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["secret", SEED, "--into", str(tmp_path / "rules")])
    secret.main()
    assert SEED in capsys.readouterr().out
    rules = Rules(tmp_path / "rules" / DEFAULT.name)
    assert secret.read(rules.questions) == drawn
    assert read_samples(rules.drawn) == inputs.draw(SEED)
    assert rules.fingerprint != Rules().fingerprint


def test_without_a_seed_it_thinks_of_one_that_nobody_guesses(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["secret", "--into", str(tmp_path / "rules")])
    secret.main()
    assert len((tmp_path / "rules" / secret.SEED).read_text(encoding="utf-8").strip()) > secret.SHORTEST_SEED


def test_a_seed_that_can_be_guessed_is_refused(tmp_path):
    with pytest.raises(CourseError, match="太好猜"):
        secret.make("42", tmp_path / "rules")
    assert not (tmp_path / "rules").exists()


def test_an_exam_in_use_is_not_replaced_by_that_of_another_seed(tmp_path):
    (tmp_path / secret.SEED).write_text(SEED + "\n", encoding="utf-8")
    with pytest.raises(CourseError, match="另一个种子"):
        secret.make("another secret of this class", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [secret.SEED]


def test_a_file_of_something_else_is_no_exam(tmp_path):
    (tmp_path / "q.jsonl").write_text(json.dumps({"conversation": []}) + "\n", encoding="utf-8")
    with pytest.raises(CourseError, match="make exam"):
        secret.read(tmp_path / "q.jsonl")
