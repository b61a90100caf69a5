"""Lesson 02: seven tenths to train on, three to test on, and no question in both."""
import json
import random
import unicodedata
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path

from helpers.machine.files import replaced


def read_samples(path: str | Path) -> list[dict]:
    """The samples of a JSON Lines file."""
    with Path(path).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write_samples(samples: Iterable[dict], path: str | Path) -> None:
    """Writes samples as JSON Lines; the file appears when it is whole."""
    with replaced(Path(path)) as file:
        file.writelines(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)


def question_key(sample: dict) -> str:
    """What tells a sample's questions from others: equal for the same question."""
    return text_key("\n".join(turn["input"] for turn in sample["conversation"]))


def text_key(text: str) -> str:
    """What is left of a text without spaces, punctuation, case and width."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return "".join(char for char in text if char.isalnum()) or text


def split(samples: list[dict], test_share: float = 0.3, seed: int = 42) -> tuple[list[dict], list[dict]]:
    """Training and test samples by chance, each on its own: duplicates land on both sides."""
    shuffled = random.Random(seed).sample(samples, len(samples))
    cut = len(samples) - round(len(samples) * test_share)
    return shuffled[:cut], shuffled[cut:]


def split_by_group(samples: list[dict], test_share: float = 0.3, seed: int = 42,
                   theme_of: Callable[[dict], Hashable] = lambda sample: None) -> tuple[list[dict], list[dict]]:
    """Training and test samples in their order, every question on one side only, every theme in the same proportion."""
    themes = {}
    for sample in samples:
        themes.setdefault(theme_of(sample), {}).setdefault(question_key(sample), []).append(sample)
    seen = tested = 0
    test_keys = set()
    rng = random.Random(seed)
    for groups in themes.values():
        seen += sum(map(len, groups.values()))
        for key in rng.sample(list(groups), len(groups)):
            if tested + len(groups[key]) <= round(seen * test_share):
                tested += len(groups[key])
                test_keys.add(key)
    train = [sample for sample in samples if question_key(sample) not in test_keys]
    test = [sample for sample in samples if question_key(sample) in test_keys]
    return train, test


def leaks(train: Iterable[dict], test: Iterable[dict]) -> list[dict]:
    """The test samples whose question is in the training samples too."""
    known = set(map(question_key, train))
    return [sample for sample in test if question_key(sample) in known]
