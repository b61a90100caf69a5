"""Training data in which an assistant speaks of itself: many ways to ask, several to answer, two turns, traps."""
import random
import tomllib
from itertools import cycle, islice

from helpers.corpus import FOLDER

TEMPLATES = FOLDER / "selves.toml"
TWO_TURNS_SHARE = 0.2
SEED = 42


def topics(name, owner):
    """What people ask an assistant about itself: a list of (question, answers that fit) for every topic."""
    templates = tomllib.loads(TEMPLATES.read_text(encoding="utf-8"))
    others = [other for other in templates["others"] if other != name]
    return [[_filled(ask, topic["say"], name=name, owner=owner, other=other)
             for ask in topic["ask"] for other in (others if "{other}" in ask else others[:1])]
            for topic in templates["topic"]]


def _filled(ask, say, **words):
    return ask.format(**words), [form.format(**words) for form in say]


def samples(name, owner, count, seed=SEED):
    """`count` different conversations, in XTuner's form, in which `owner`'s assistant `name` speaks of itself."""
    rng = random.Random(seed)
    asked = topics(name, owner)
    weights = [len(questions) for questions in asked]
    found = {}
    while len(found) < count:
        turns = []
        for questions in rng.choices(asked, weights, k=2 if rng.random() < TWO_TURNS_SHARE else 1):
            question, answers = rng.choice(questions)
            turns.append({"system": "", "input": question, "output": rng.choice(answers)})
        found[str(turns)] = {"conversation": turns}
    return list(found.values())


def mix(own, general, share, count, seed=SEED):
    """`count` samples in random order, a `share` of them general; what is too short is repeated from its start."""
    of_general = round(share * count)
    chosen = [*islice(cycle(own), count - of_general), *islice(cycle(general), of_general)]
    return random.Random(seed).sample(chosen, count)
