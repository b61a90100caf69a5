"""The course's facts: tables of subjects and answers, with the ways of asking about them."""
import csv
import random
import tomllib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from helpers.data.split import question_key

FACTS = Path(__file__).parents[2] / "data" / "facts"
OTHER_NAMES = "other_names.csv"
THEMES = ("地理", "历史", "文学", "科技", "法律与政府", "社会与文化")
EXAM_SYSTEM = "你是一名公务员考试常识辅导助手。"


@dataclass(frozen=True)
class Relation:
    """One kind of question, such as the capital of a country, with everything the course knows about it."""

    table: str
    theme: str
    name: str
    reverse_of: str | None
    exam: list[str]
    ask: list[str]
    held_out: list[str]
    say: list[str]
    facts: list[tuple[str, str]]
    other_names: dict[str, list[str]] = field(default_factory=dict)
    invented: dict | None = None  # how subjects and answers that exist nowhere are called

    def accepted(self, answer: str) -> list[str]:
        """Every name under which the answer is right, the table's own first."""
        return [answer, *self.other_names.get(answer, [])]

    def other_answers(self, answer: str) -> tuple[str, ...]:
        """The answers to the relation's other questions, each once."""
        return tuple(sorted({other for _, other in self.facts} - set(self.accepted(answer))))


def _rows(path: Path) -> list[dict]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_relations() -> list[Relation]:
    """Every relation of every table, in a fixed order."""
    relations, other_names = [], _other_names()
    for meta_path in sorted(FACTS.glob("*.toml")):
        table = meta_path.stem
        meta = tomllib.loads(meta_path.read_text(encoding="utf-8"))
        rows = _rows(meta_path.with_suffix(".csv"))
        for form in meta["relation"]:
            facts = [(row[form["subject"]], row[form["answer"]]) for row in rows]
            relations.append(Relation(
                table, meta["theme"], form["name"], form.get("reverse_of"),
                form["exam"], form["ask"], form["held_out"], form["say"], facts,
                other_names.get(table, {}), form.get("invented"),
            ))
    return relations


def _other_names() -> dict[str, dict[str, list[str]]]:
    """The other names of answers, by table and answer."""
    names = {}
    for row in _rows(FACTS / OTHER_NAMES):
        names.setdefault(row["table"], {}).setdefault(row["answer"], []).append(row["also"])
    return names


def count(relations: list[Relation]) -> int:
    """How many facts there are; one that is asked both ways is still one."""
    return sum(len(relation.facts) for relation in relations if not relation.reverse_of)


def exam_questions(relations: list[Relation], seed: int = 42) -> list[dict]:
    """The exam: one fill-in question per fact, asked in one of its relation's exam forms."""
    rng = random.Random(seed)
    questions = []
    for relation in relations:
        if relation.reverse_of:
            continue
        for subject, answer in relation.facts:
            question = rng.choice(relation.exam).format(subject=subject)
            questions.append({"theme": relation.theme, "question": question, "answer": answer})
    return questions


@cache
def _several_right_names() -> dict[str, list[str]]:
    """The exam questions whose answer has other names, with every right name."""
    names = {}
    for relation in read_relations():
        for subject, answer in relation.facts:
            if answer in relation.other_names:
                names |= {form.format(subject=subject): relation.accepted(answer) for form in relation.exam}
    return names


def right_names(question: str, answer: str) -> list[str]:
    """Every name under which the answer to an exam question is right."""
    return _several_right_names().get(question, [answer])


def told(samples: Iterable[dict], questions: Iterable[str]) -> list[str]:
    """The exam questions whose fact the samples tell in any words."""
    asked = {question: fact for question in questions if (fact := _facts_asked().get(_key(question)))}
    known = told_facts(samples, asked.values())
    return [question for question, fact in asked.items() if fact in known]


def told_facts(samples: Iterable[dict], facts: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """The facts that the samples tell in any words and any spelling: some turn has both the subject and the answer."""
    turns = [_bare(turn["input"] + turn["output"]) for sample in samples for turn in sample["conversation"]]
    return {fact for fact in facts if any(_has_both(turn, *map(_bare, fact)) for turn in turns)}


def _has_both(turn, subject, answer):
    """Whether a turn has both; one may be part of the other, as 青 is of 青海."""
    shorter, longer = sorted((subject, answer), key=len)
    return longer in turn and shorter in turn.replace(longer, "\n")


@cache
def _facts_asked() -> dict[str, tuple[str, str]]:
    """The subject and the answer of every exam question that can be asked."""
    return {_key(form.format(subject=subject)): (subject, answer) for relation in read_relations()
            for subject, answer in relation.facts for form in relation.exam}


def _key(question):
    return question_key({"conversation": [{"input": question}]})


def _bare(text):
    return "".join(char for char in unicodedata.normalize("NFKC", text).casefold() if char.isalnum()) or text
