"""Passages about things that exist nowhere, and questions that only their reader can answer."""
import random
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from helpers.knowledge.facts import Relation
from helpers.knowledge.invent import READING, Inventor

ABSENT_SHARE = 0.3  # of questions that the passage does not answer
OTHER_NAME_SHARE = 0.25  # of these: about somebody else than the passage
TABLE_SHARE = 0.4  # of passages made from the fact tables' sentences instead of a scene
JOIN_SHARE = 0.15


@dataclass(frozen=True)
class Told:
    """Something that a passage can tell: its sentences, its value, and the ways of asking for it."""

    sentences: list[str]
    value: str
    asks: list[str]


def scenes(folder: Path = READING) -> list[dict]:
    """Every scene of a folder: what it may be called, what can be said of it and asked about it."""
    found = []
    for path in sorted(folder.glob("*.toml")):
        found += tomllib.loads(path.read_text(encoding="utf-8")).get("scene", [])
    return found


LOOKED_UP = ("person", "place", "word", "year", "price", "date", "clock", "color", "code", "food", "job", "phone")


class Reading:
    """Makes passages with questions from the scenes, and from the fact tables with invented names."""

    def __init__(self, relations: list[Relation]):
        self.inventor = Inventor()
        self.scenes = scenes()
        self.prose = scenes(READING / "prose")
        self.relations = [relation for relation in relations if relation.invented]
        self.layouts = self.inventor.words["layouts"]
        self.absent = self.inventor.words["absent"]
        self.copying = tomllib.loads((READING / "copying.toml").read_text(encoding="utf-8"))

    def passage(self, rng: random.Random, most: int,
                prose: float = 0.0) -> tuple[str, list[Told], list[str], list[str]]:
        """A passage that tells at most `most` values.

        Its text; what it tells; questions that it leaves open; and questions about somebody whom it does not name. The
        share `prose` tells several things in a sentence, as people write.
        """
        if prose and rng.random() < prose:
            return self._from_scene(rng, most, self.prose, self._flowing)
        if rng.random() < TABLE_SHARE:
            return self._from_tables(rng, most)
        return self._from_scene(rng, most, self.scenes, self._joined)

    def _from_scene(self, rng: random.Random, most: int, scenes: list[dict],
                    joined: Callable[[random.Random, list[str]], str]) -> tuple[str, list[Told], list[str], list[str]]:
        scene = rng.choice(scenes)
        name, other = self._name(rng, scene), self._name(rng, scene)
        facts = rng.sample(scene["fact"], len(scene["fact"]))
        count = rng.randint(1, most)
        told, values = [], set()
        for fact in facts[:count]:
            value = self._value(rng, fact, values)
            values.add(value)
            told.append(Told(fact["tell"], value, [ask.replace("{name}", name) for ask in fact["ask"]]))
        sentences = [self._sentence(rng, fact.sentences, first=not i) for i, fact in enumerate(told)]
        texts = [sentence.replace("{value}", fact.value) for sentence, fact in zip(sentences, told)]
        for _ in range(rng.choice((0, 0, 1, 2))):
            texts.insert(rng.randint(1, len(texts)), rng.choice(scene["fillers"]))
        text = joined(rng, texts).replace("{name}", name)
        untold = [ask.replace("{name}", name) for fact in facts[count:] for ask in fact["ask"]]
        elsewhere = [ask.replace("{name}", other) for fact in facts[:count] for ask in fact["ask"] if "{name}" in ask]
        return text, told, untold, elsewhere

    def _from_tables(self, rng: random.Random, most: int) -> tuple[str, list[Told], list[str], list[str]]:
        """A passage of sentences as the fact tables have them, about invented names."""
        count = rng.randint(1, most)
        few = rng.sample(self.relations, rng.choice((1, 1, 2, 3)))
        told, texts, subjects = [], [], set()
        for _ in range(count):
            relation = rng.choice(few)
            subject, value = self._fact(rng, relation)
            if subject in subjects:
                continue
            subjects.add(subject)
            texts.append(rng.choice(relation.say).format(subject=subject, answer=value))
            told.append(Told([], value, [ask.format(subject=subject) for ask in relation.ask]))
        stranger, _ = self._fact(rng, few[0])
        absent = [ask.format(subject=stranger) for ask in few[0].ask]
        return self._joined(rng, texts), told, absent, absent

    def _name(self, rng: random.Random, scene: dict) -> str:
        form = rng.choice(scene["names"])
        if "{person}" in form:
            return form.replace("{person}", self.inventor.value(rng, "person"))
        return self.inventor.fill(rng, form)

    def _value(self, rng: random.Random, fact: dict, taken: set[str]) -> str:
        """A value for a fact that no other fact of the passage has."""
        while True:
            if "values" in fact:
                value = self.inventor.fill(rng, rng.choice(fact["values"]))
            else:
                value = self.inventor.value(rng, fact["value"], fact.get("unit", ""))
            if value not in taken:
                return value

    def _fact(self, rng: random.Random, relation: Relation) -> tuple[str, str]:
        """An invented subject with its answer: one of the table's own, or invented too."""
        subject = self.inventor.fill(rng, rng.choice(relation.invented["subject"]))
        if relation.invented["answer"] == "own" or rng.random() < 0.3:
            return subject, rng.choice(relation.facts)[1]
        return subject, self.inventor.value(rng, relation.invented["answer"])

    def _sentence(self, rng: random.Random, sentences: list[str], first: bool) -> str:
        """One of the sentences; the first of a passage says the name if one of them does."""
        named = [sentence for sentence in sentences if "{name}" in sentence]
        return rng.choice(named if first and named else sentences)

    def _joined(self, rng: random.Random, sentences: list[str]) -> str:
        """The sentences as one text, some joined by a comma, now and then a line each."""
        between = "\n" if rng.random() < 0.1 else ""
        text = sentences[0]
        for sentence in sentences[1:]:
            if text.endswith("。") and rng.random() < JOIN_SHARE:
                text = text[:-1] + "，"
                text += sentence
            else:
                text += between + sentence
        return text

    def _flowing(self, rng: random.Random, clauses: list[str]) -> str:
        """One to three clauses to a sentence; what ends with a full stop is one already."""
        text, room = "", 0
        for clause in clauses:
            if clause.endswith("。"):
                text, room = text.rstrip("，") + ("。" if text.endswith("，") else "") + clause, 0
                continue
            room = room or rng.choice((1, 2, 2, 3))
            room -= 1
            text += clause + ("，" if room else "。")
        return text[:-1] + "。"

    def unknown(self, rng: random.Random) -> str:
        """A question from the fact tables about a name that nobody has heard of."""
        relation = rng.choice(self.relations)
        subject, _ = self._fact(rng, relation)
        return rng.choice(relation.ask).format(subject=subject)

    def question(self, rng: random.Random, fact: Told, untold: list[str], elsewhere: list[str]) -> tuple[str, str]:
        """A question and its answer: the passage's exact words for `fact`, or that the passage does not say."""
        if rng.random() >= ABSENT_SHARE or not (untold or elsewhere):
            return rng.choice(fact.asks), fact.value
        if elsewhere and (not untold or rng.random() < OTHER_NAME_SHARE):
            untold = elsewhere
        return rng.choice(untold), rng.choice(self.absent)

    def copied(self, rng: random.Random) -> tuple[str, str]:
        """A request to write something again word for word, and what is to be written."""
        shape = rng.choice(("characters", "characters", "words", "sentence", "number"))
        if shape == "characters":
            text = self.inventor.characters(rng, rng.randint(3, 24))
        elif shape == "words":
            text = "、".join(self.inventor.value(rng, rng.choice(LOOKED_UP)) for _ in range(rng.randint(1, 6)))
        elif shape == "sentence":
            text, *_ = self._from_scene(rng, 2, self.scenes, self._joined)
        else:
            text = "".join(rng.choices("0123456789", k=rng.randint(3, 14)))
        return rng.choice(self.copying["copy"]).format(text=text), text

    def repeated(self, rng: random.Random) -> tuple[str, str]:
        """As `copied`, but long: what makes copying worth learning."""
        text = self.inventor.characters(rng, rng.randint(20, 60))
        if rng.random() < 0.3:
            text, *_ = self._from_scene(rng, 4, self.scenes, self._joined)
        return rng.choice(self.copying["copy"]).format(text=text), text

    def looked_up(self, rng: random.Random) -> list[tuple[str, str]]:
        """A list of names with values, asked for one after the other: (question, answer) pairs."""
        kind = rng.choice(LOOKED_UP)
        pairs = {self.inventor.value(rng, rng.choice(("person", "place", "word"))): self.inventor.value(rng, kind)
                 for _ in range(rng.randint(2, 6))}
        form, between = rng.choice(self.copying["pair"]), rng.choice(self.copying["between"])
        listed = between.join(form.format(key=key, value=value) for key, value in pairs.items())
        layout, ask = rng.choice(self.copying["list"]), rng.choice(self.copying["ask"])
        turns = []
        for key in rng.sample(list(pairs), min(len(pairs), 4)):
            question, answer = ask.format(key=key), pairs[key]
            if rng.random() < 0.1:
                question, answer = ask.format(key=self.inventor.value(rng, "person")), rng.choice(self.absent)
            turns.append((layout.format(list=listed, question=question), answer))
            layout = "{question}"
        return turns

    def looked_up_backwards(self, rng: random.Random) -> list[tuple[str, str]]:
        """As `looked_up`, but what stands before a value is asked for."""
        kind = rng.choice(LOOKED_UP)
        names = [self.inventor.value(rng, rng.choice(("person", "place", "word"))) for _ in range(rng.randint(2, 6))]
        keys = sorted(set(names)) if rng.random() < 0.6 else list("ABCDEF"[:len(names)])
        values = list({self.inventor.value(rng, kind) for _ in keys})
        values.sort()
        rng.shuffle(values)
        pairs = dict(zip(values, keys))
        form, between = rng.choice(self.copying["pair"]), rng.choice(self.copying["between"])
        listed = between.join(form.format(key=key, value=value) for value, key in pairs.items())
        layout, ask = rng.choice(self.copying["list"]), rng.choice(self.copying["back"])
        turns = []
        for value in rng.sample(list(pairs), min(len(pairs), 4)):
            turns.append((layout.format(list=listed, question=ask.format(value=value)), pairs[value]))
            layout = "{question}"
        return turns
