"""Training data in which an assistant speaks of itself: many ways to ask, several to answer, two turns, traps."""
import random
import tomllib
from itertools import cycle, islice

from helpers.knowledge.corpus import DIALOGUES

TEMPLATES = DIALOGUES / "selves.toml"
TWO_TURNS_SHARE = 0.2
SEED = 42


def topics(name: str, owner: str) -> list[list[tuple[str, list[str]]]]:
    """What people ask an assistant about itself: for every topic, the questions, each with the answers that fit."""
    templates = tomllib.loads(TEMPLATES.read_text(encoding="utf-8"))
    others = [other for other in templates["others"] if other != name]
    return [_questions(topic, name, owner, others) for topic in templates["topic"]]


def _questions(topic: dict, name: str, owner: str, others: list[str]) -> list[tuple[str, list[str]]]:
    """The questions of one topic; where they name another assistant, one for each of the others."""
    questions = []
    for ask in topic["ask"]:
        for other in others if "{other}" in ask else others[:1]:
            words = {"name": name, "owner": owner, "other": other}
            questions.append((ask.format(**words), [say.format(**words) for say in topic["say"]]))
    return questions


def samples(name: str, owner: str, count: int, seed: int = SEED) -> list[dict]:
    """`count` different conversations, in XTuner's form, in which `owner`'s assistant `name` speaks of itself."""
    rng = random.Random(seed)
    all_topics = topics(name, owner)
    weights = [len(questions) for questions in all_topics]
    different = {}
    while len(different) < count:
        turns = []
        for questions in rng.choices(all_topics, weights, k=2 if rng.random() < TWO_TURNS_SHARE else 1):
            question, answers = rng.choice(questions)
            turns.append({"system": "", "input": question, "output": rng.choice(answers)})
        different[str(turns)] = {"conversation": turns}
    return list(different.values())


def mix(own: list, general: list, share: float, count: int, seed: int = SEED) -> list:
    """`count` samples in random order, a `share` of them general; what is too short is repeated from its start."""
    of_general = round(share * count)
    chosen = [*islice(cycle(own), count - of_general), *islice(cycle(general), of_general)]
    return random.Random(seed).sample(chosen, count)
