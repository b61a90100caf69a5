"""Names for an assistant: those of which is known that they are learnt, and what the base model says anyway."""
import csv
from pathlib import Path

from helpers.ask import models
from helpers.knowledge.corpus import Corpus
from helpers.machine import profile

MEASURED = profile.ROOT / "data" / "homework" / "names.csv"


def learnt() -> list[str]:
    """Names that the homework's own recipe has taught: tools/measure_names.py did, and measured it."""
    with MEASURED.open(encoding="utf-8", newline="") as file:
        return [row["name"] for row in csv.DictReader(file)]


def said_anyway(name: str, base: str | Path | None = None) -> list[str]:
    """The base model's answers to "who are you" in which the name stands; such a name proves nothing."""
    questions = [probe.question for probe in Corpus().probes("identity")]
    answers = models.ask(*models.load(base or profile.current().base_model), questions)
    return sorted({answer for answer in answers if name in answer})
