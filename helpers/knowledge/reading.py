"""Passages about things that exist nowhere, and questions that only their reader can answer."""
import random
import re
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from helpers.knowledge.facts import Relation
from helpers.knowledge.invent import READING, Inventor

ABSENT_SHARE = 0.3  # of questions that the passage does not answer
OTHER_NAME_SHARE = 0.25  # of these: about somebody else than the passage
TABLE_SHARE = 0.4  # of passages made from the fact tables' sentences instead of a scene
JOIN_SHARE = 0.15
LABELS = "ABCDEFGHJKLMNPQRSTUVWXYZ123456789"
LEFT_OUT_SHARE = 0.3  # of written passages
SENTENCE = re.compile("[^。！？]*[。！？”]*")


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


def written(folder: Path = READING / "written") -> list[dict]:
    """Every passage that was written as a whole: its text with slots, what may stand in them and be asked about."""
    found = []
    for path in sorted(folder.glob("*.toml")):
        found += tomllib.loads(path.read_text(encoding="utf-8"))["text"]
    return found


LOOKED_UP = ("person", "place", "word", "year", "price", "date", "clock", "color", "code", "food", "job", "phone")


class Reading:
    """Makes passages with questions from the scenes, and from the fact tables with invented names."""

    def __init__(self, relations: list[Relation]):
        self.inventor = Inventor()
        self.scenes = scenes()
        self.prose = scenes(READING / "prose")
        self.written = written()
        self.relations = [relation for relation in relations if relation.invented]
        self.layouts = self.inventor.words["layouts"]
        self.absent = self.inventor.words["absent"]
        self.copying = tomllib.loads((READING / "copying.toml").read_text(encoding="utf-8"))

    def passage(self, rng: random.Random, most: int, prose: float = 0.0,
                written: float = 0.0) -> tuple[str, list[Told], list[str], list[str]]:
        """A passage that tells at most `most` values.

        Its text; what it tells; questions that it leaves open; and questions about somebody whom it does not name. The
        share `written` was written as a whole, however much it tells; of the others the share `prose` tells several
        things in a sentence, as people write.
        """
        if written and rng.random() < written:
            return self._as_written(rng)
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

    def _as_written(self, rng: random.Random) -> tuple[str, list[Told], list[str], list[str]]:
        """A passage that somebody wrote, with other names and values; now and then a sentence is left out."""
        written = rng.choice(self.written)
        values = {}
        for slot, kind in written["slots"].items():
            values[slot] = self._slot(rng, kind, set(values.values()))
        sentences = SENTENCE.findall(written["text"])
        left_out = ""
        if len(sentences) > 2 and rng.random() < LEFT_OUT_SHARE:
            left_out = sentences.pop(rng.randrange(1, len(sentences)))
        text = "".join(sentences).format(**values)
        told, untold = [], [ask.format(**values) for ask in written["absent"]]
        for slot, asks in written["ask"].items():
            asks = [ask.format(**values) for ask in asks]
            if f"{{{slot}}}" in left_out:
                untold += asks
            else:
                told.append(Told([], values[slot], asks))
        return text, told, untold, []

    def _slot(self, rng: random.Random, kind: str | list[str], taken: set[str]) -> str:
        """A value that nothing else in the passage has, of a kind, with a unit, or one of a list."""
        name, _, unit = kind.partition(" ") if isinstance(kind, str) else ("", "", "")
        while True:
            value = self.inventor.value(rng, name, unit) if name else self.inventor.fill(rng, rng.choice(kind))
            if value not in taken:
                return value

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
        return self._asked_for(rng, pairs.items(), pairs, self.copying["ask"], unheard=0.1)

    def looked_up_backwards(self, rng: random.Random, fewest: int = 2) -> list[tuple[str, str]]:
        """As `looked_up`, but what stands before a value is asked for."""
        kind = rng.choice(LOOKED_UP)
        names = [self.inventor.value(rng, rng.choice(("person", "place", "word")))
                 for _ in range(rng.randint(fewest, 6))]
        keys = sorted(set(names)) if rng.random() < 0.6 else list("ABCDEF"[:len(names)])
        values = sorted({self.inventor.value(rng, kind) for _ in keys})
        rng.shuffle(values)
        return self._asked_for(rng, zip(keys, values), dict(zip(values, keys)), self.copying["back"])

    def _asked_for(self, rng: random.Random, entries: Iterable[tuple[str, str]], answers: dict[str, str],
                   asks: list[str], unheard: float = 0.0) -> list[tuple[str, str]]:
        """The list of `entries`, and up to four of what `answers` knows asked for; the share `unheard` is not in it."""
        form, between = rng.choice(self.copying["pair"]), rng.choice(self.copying["between"])
        listed = between.join(form.format(key=key, value=value) for key, value in entries)
        layout, ask = rng.choice(self.copying["list"]), rng.choice(asks)
        turns = []
        for asked in rng.sample(list(answers), min(len(answers), 4)):
            answer = answers[asked]
            if unheard and rng.random() < unheard:
                asked, answer = self.inventor.value(rng, "person"), rng.choice(self.absent)
            turns.append((layout.format(list=listed, question=ask.format(key=asked, value=asked)), answer))
            layout = "{question}"
        return turns

    def labelled(self, rng: random.Random) -> tuple[str, str]:
        """A list, and its entries named again in another order, each with the label that stood before it."""
        count = rng.randint(2, 8)
        kind = rng.choice(("character", "characters", *LOOKED_UP))
        entries = [self.inventor.characters(rng, 1 if kind == "character" else rng.randint(1, 3)) if
                   kind.startswith("character") else self.inventor.value(rng, kind) for _ in range(count)]
        entries = list(dict.fromkeys(entries))
        labels = rng.choice(("ABCDEFGH", "".join(rng.sample(LABELS, count)), self.inventor.characters(rng, count)))
        form, after = rng.choice(self.copying["labels"]), rng.choice(self.copying["label_after"])
        between = rng.choice(self.copying["between"])
        label_of = dict(zip(entries, labels))
        listed = between.join(form.format(label=label, entry=entry) for entry, label in label_of.items())
        asked = rng.sample(entries, rng.randint(1, len(entries)))
        question = rng.choice(self.copying["labelled"]).format(list=listed, asked="、".join(asked))
        return question, "，".join(after.format(label=label_of[entry], entry=entry) for entry in asked)
