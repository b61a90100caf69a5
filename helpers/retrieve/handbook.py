"""The course's own handbook of an invented town: its documents, and what is asked about it."""
import json
from dataclasses import dataclass

from helpers.machine.profile import ROOT
from helpers.retrieve import passages
from helpers.retrieve.passages import Passage

DOCUMENTS = [ROOT / "data" / "raw" / f"{name}.docx" for name in ("handbook", "handbook_older")]
FOLDER = ROOT / "data" / "handbook"
VALID = {"edition": "2025"}  # what the older edition says no longer holds


@dataclass(frozen=True)
class Asked:
    """A question with its answer and the passage that holds it; without them where the handbook is silent."""

    question: str
    value: str | None = None
    passage: Passage | None = None


def everything() -> list[Passage]:
    """The passages of both editions."""
    return [passage for document in DOCUMENTS for passage in passages.read(document)]


def strangers() -> list[Asked]:
    """What somebody asks who has seen the facts and never the text, and what that person asked in vain."""
    return _asked("questions.jsonl")


def practice() -> list[Asked]:
    """Questions to learn from, about the facts that no stranger asks for."""
    return _asked("practice.jsonl")


def _asked(name):
    facts = {fact["id"]: fact for fact in _rows("facts.jsonl") if str(fact["edition"]) == VALID["edition"]}
    valid = [passage for passage in everything() if passage.edition == VALID["edition"]]
    asked = []
    for row in _rows(name):
        fact = facts.get(row["id"])
        asked.append(Asked(row["question"], fact["value"], _stands(fact, valid)) if fact else Asked(row["question"]))
    return asked


def _stands(fact, valid):
    """The passage that holds a fact."""
    chapter = [passage for passage in valid if passage.chapter == fact["chapter"]]
    if "paragraph" in fact:
        return [passage for passage in chapter if not passage.table][fact["paragraph"]]
    captions = list(dict.fromkeys(passage.table for passage in chapter if passage.table))
    return [passage for passage in chapter if passage.table == captions[fact["table"]]][fact["row"] - 1]


def _rows(name):
    with (FOLDER / name).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
