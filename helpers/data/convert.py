"""Lesson 01: from a spreadsheet, a Word file or any usual JSON to XTuner's conversations, one line of JSON each."""
import json
from array import array
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from helpers.data import Unreadable
from helpers.data.cleaning import PROSE, Cleaning
from helpers.data.readers import USUAL_LAYOUT, Layout, read
from helpers.machine.files import replaced

TEXTS_REMEMBERED = 2**12
QUOTE = json.JSONEncoder(ensure_ascii=False).encode


@dataclass
class Report:
    """What became of each row: how many were read and written, and where the others and the doubtful ones are."""

    source: str
    unit: str
    max_chars: int
    read: int = 0
    written: int = 0
    empty: list[int] = field(default_factory=list)
    hidden: list[int] = field(default_factory=list)
    duplicated: list[int] = field(default_factory=list)
    long: list[int] = field(default_factory=list)
    cleaned: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.source}：读到 {self.read} {self.unit}，写出 {self.written} {self.unit}"]
        for kind, places in {
            "空（缺问题或答案），没有写出": self.empty,
            "隐藏（在 Excel 里看不见），没有写出": self.hidden,
            "重复（问题前面出现过），照样写出": self.duplicated,
            f"过长（超过 {self.max_chars} 字，训练时会被截断），照样写出": self.long,
            "清洗改动了问题或答案，照样写出": self.cleaned,
        }.items():
            lines.append(f"  {kind}：{len(places)} {self.unit}{self._where(places)}")
        return "\n".join(lines)

    def _where(self, places: list[int]) -> str:
        first = "、".join(map(str, places[:10]))
        more = "……" if len(places) > 10 else ""
        return f"（第 {first}{more} {self.unit}）" if places else ""


def convert(source: str | Path, target: str | Path, system: str, layout: Layout = USUAL_LAYOUT,
            cleaning: Cleaning | None = None, max_chars: int = 2048) -> Report:
    """Writes a source's conversations to a JSON Lines file, and reports; a failure leaves the file as it was.

    Unless a cleaning is given, an exam's cells become one line each, and instruction data keeps its lines.
    """
    unit, samples = read(source, layout)
    report = Report(Path(source).name, unit, max_chars)
    clean_cell = lru_cache(TEXTS_REMEMBERED)(cleaning or Cleaning())
    clean_prose = lru_cache(TEXTS_REMEMBERED)(cleaning or PROSE)
    hashes, places = array("q"), array("Q")  # of the questions written
    with replaced(Path(target)) as file:
        for place, dirty, hidden, prose in samples:
            report.read += 1
            if hidden:
                report.hidden.append(place)
                continue
            clean = clean_prose if prose else clean_cell
            turns = [(own_system, clean(question), clean(answer)) for own_system, question, answer in dirty]
            questions, answers = [turn[1] for turn in turns], [turn[2] for turn in turns]
            if not turns or "" in questions or "" in answers:
                report.empty.append(place)
                continue
            if sum(map(len, questions + answers)) > max_chars:
                report.long.append(place)
            if turns != dirty:
                report.cleaned.append(place)
            hashes.append(hash("\n".join(questions)))
            places.append(place)
            file.write(_line(turns, system))
        report.written = len(places)
        report.duplicated = [places[index] for index in _repeated(hashes)]
        if not report.written:
            raise Unreadable(f"{report.source} 里没有一条完整的问答（读到 {report.read} {unit}）："
                             "请检查工作表、列名或字段名。")
    return report


def _line(turns: list[tuple[str | None, str, str]], system: str) -> str:
    """The line of JSON; the system prompt, the source's own or else this, comes before the first turn only."""
    parts = []
    for own_system, question, answer in turns:
        parts.append(f'{{"system": {QUOTE(own_system or system)}, "input": {QUOTE(question)}, '
                     f'"output": {QUOTE(answer)}}}')
        system = ""
    return '{"conversation": [' + ", ".join(parts) + "]}\n"


def _repeated(hashes: array) -> list[int]:
    """The indexes of hashes met before; looked for a share at a time, so that a million take little memory."""
    shares = len(hashes) // 2**17 + 1
    repeated = []
    for share in range(shares):
        seen = set()
        for index, value in enumerate(hashes):
            if value % shares != share:
                continue
            if value in seen:
                repeated.append(index)
            seen.add(value)
    return sorted(repeated)
