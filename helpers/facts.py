"""The course's facts: tables of subjects and answers, with the ways of asking about them."""
import csv
import random
import tomllib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "data" / "facts"
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


def read_relations():
    """Every relation of every table, in a fixed order."""
    relations = []
    for meta_path in sorted(FOLDER.glob("*.toml")):
        meta = tomllib.loads(meta_path.read_text(encoding="utf-8"))
        with meta_path.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        for form in meta["relation"]:
            facts = [(row[form["subject"]], row[form["answer"]]) for row in rows]
            relations.append(Relation(
                meta_path.stem, meta["theme"], form["name"], form.get("reverse_of"),
                form["exam"], form["ask"], form["held_out"], form["say"], facts,
            ))
    return relations


def count(relations):
    """How many facts there are; one that is asked both ways is still one."""
    return sum(len(relation.facts) for relation in relations if not relation.reverse_of)


def exam_questions(relations, seed=42):
    """The exam: one fill-in question per fact, asked in one of its relation's exam forms."""
    rng = random.Random(seed)
    return [
        {"theme": relation.theme, "question": rng.choice(relation.exam).format(subject=subject), "answer": answer}
        for relation in relations if not relation.reverse_of
        for subject, answer in relation.facts
    ]
