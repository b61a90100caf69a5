"""Answers that are read from passages, or that say that the passages do not hold one; and what they are worth."""
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from helpers.ask import models
from helpers.judge.compare import stands_in
from helpers.judge.shares import Share
from helpers.judge.strangers import ABSENT, LAYOUT, UNKNOWN
from helpers.retrieve.handbook import Asked
from helpers.retrieve.passages import Passage

ABSENT_ANSWER = "资料里没有提到。"
MAX_NEW_TOKENS = 32


class Verdicts(NamedTuple):
    """What became of questions: how many of them answered right, answered with "it does not say", and made up."""

    right: Share
    refused: Share
    made_up: Share


def prompt(question: str, passages: Sequence[Passage]) -> str:
    """What the model is asked: the passages and the question below them; without passages the question alone."""
    if not passages:
        return question
    return LAYOUT.format(passage="\n".join(passage.text for passage in passages), question=question)


def answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[str],
           passages: Sequence[Sequence[Passage]]) -> list[str]:
    """The answer to each question from its own passages."""
    prompts = [prompt(question, given) for question, given in zip(questions, passages, strict=True)]
    return models.ask(model, tokenizer, prompts, max_new_tokens=MAX_NEW_TOKENS)


def refuses(said: str) -> bool:
    """Whether an answer says that it cannot be known from what is there."""
    return bool(ABSENT.search(said) or UNKNOWN.search(said))


def judge(answers: Sequence[str], values: Sequence[str | None]) -> Verdicts:
    """The verdicts on answers, of which the right ones hold these values; where there is none, nothing is right."""
    right = [bool(value) and stands_in(value, said) for said, value in zip(answers, values, strict=True)]
    refused = [refuses(said) and not is_right for said, is_right in zip(answers, right)]
    made_up = [not (is_right or is_refused) for is_right, is_refused in zip(right, refused)]
    return Verdicts(Share.of(right), Share.of(refused), Share.of(made_up))


def samples(asked: Sequence[Asked], found: Sequence[Sequence[Passage]]) -> list[dict]:
    """What reading is learnt from, as XTuner's conversations: each question twice, with a passage that answers it and
    with the one most like the question that does not, where the answer is that it does not say.
    """
    made = []
    for one, passages in zip(asked, found, strict=True):
        misleading = next(passage for passage in passages if one.value not in passage.text)
        for passage, output in ((one.passage, one.value), (misleading, ABSENT_ANSWER)):
            turn = {"system": "", "input": prompt(one.question, [passage]), "output": output}
            made.append({"conversation": [turn]})
    return made
