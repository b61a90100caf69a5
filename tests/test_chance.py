"""What makes a score trustworthy, on cases whose outcome is known."""
import random

import pytest
from openai import APIConnectionError, OpenAI

from helpers.judge import chance


def results(both, only_first, only_second, neither):
    pairs = [(True, True)] * both + [(True, False)] * only_first + [(False, True)] * only_second
    pairs += [(False, False)] * neither
    random.Random(1).shuffle(pairs)
    return zip(*pairs)


@pytest.mark.parametrize(("only_first", "only_second", "p"), [
    (10, 2, 158 / 4096),  # twice the chance of at most 2 heads in 12 throws
    (2, 10, 158 / 4096),
    (0, 5, 2 / 32),
    (3, 3, 1),
    (0, 0, 1),
])
def test_a_difference_is_judged_by_the_questions_on_which_two_models_differ(only_first, only_second, p):
    for agreed in (1, 500):
        compared = chance.paired(*results(agreed, only_first, only_second, agreed))
        assert compared == (only_first, only_second)
        assert compared.p == pytest.approx(p)


def test_the_verdict_is_said_in_words():
    assert "不像是碰巧" in str(chance.Paired(10, 2))
    assert "可能只是碰巧" in str(chance.Paired(4, 2))
    assert "p = 0.039" in str(chance.Paired(10, 2))
    assert "p < 0.001" in str(chance.Paired(0, 300))


def test_models_that_were_not_asked_the_same_are_not_compared():
    with pytest.raises(ValueError, match="shorter"):
        chance.paired([True, False], [True])


def test_blind_guesses_stay_where_they_are_expected():
    share, low, high = chance.guess_interval(100)
    assert share == 0.25
    rng = random.Random(1)
    exams = [sum(rng.choice("ABCD") == "A" for _ in range(100)) / 100 for _ in range(1000)]
    assert 0.93 <= sum(low <= exam <= high for exam in exams) / len(exams) <= 0.99


def test_a_server_answers_for_every_model_and_ends_with_its_block():
    with chance.serve_answers({"loud": str.upper, "shy": lambda question: ""}) as url:
        client = OpenAI(base_url=url, api_key="EMPTY", max_retries=0)

        def ask(model):
            answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hello"}])
            return answer.choices[0].message.content
        assert (ask("loud"), ask("shy")) == ("HELLO", "")
    with pytest.raises(APIConnectionError):
        ask("loud")
