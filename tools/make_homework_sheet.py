"""Makes the homework's messy spreadsheet from the course's facts, and the questions that stand in for a secret exam.

python -m tools.make_homework_sheet [FOLDER]   data/homework/messy.xlsx and data/homework/questions.jsonl
"""
import random
import sys
from pathlib import Path

from openpyxl import Workbook

from helpers.grading import secret
from helpers.knowledge.corpus import end_of
from helpers.knowledge.facts import read_relations
from helpers.machine.profile import ROOT
from tools.make_raw_data import CHINESE_PAIR, FULL_WIDTH

FOLDER = ROOT / "data" / "homework"
SHEET = "messy.xlsx"
PUBLIC = "public"  # the seed of what everybody can read
RELATIONS = {("capitals", "capital"), ("province_seats", "seat"), ("chinese_works", "author"),
             ("treaties", "treaty_year"), ("elements", "symbol"), ("paintings", "painter")}
PER_RELATION = 12
REPEATED, WITHOUT_QUESTION, WITHOUT_ANSWER = 14, 2, 4
DIRTY_SHARE = 0.4
HEADERS = ("编号", "题目", "录入人", "答案", "备注")
TYPISTS = ("小周", "老郑", "阿宁")
DIRT = (
    lambda text, at: text[:at] + " " + text[at:],
    lambda text, at: text[:at] + "\n" + text[at:],
    lambda text, at: text[:at] + "\u200b" + text[at:],
    lambda text, at: text + " \t",
    lambda text, at: "\u3000\u3000" + text,
    lambda text, at: "\xa0" + text,
    lambda text, at: text.translate(FULL_WIDTH),
)


def questions(rng):
    """Questions with their terse answers, a year as the number that a spreadsheet takes it for."""
    chosen = [relation for relation in read_relations() if (relation.table, relation.name) in RELATIONS]
    return [(ask + end_of(ask), int(year) if (year := answer.removesuffix("年")).isdecimal() else answer)
            for relation in chosen
            for subject, answer in rng.sample(relation.facts, PER_RELATION)
            for ask in [rng.choice(relation.held_out).format(subject=subject).rstrip("？。")]]


def dirty(value, rng):
    """The value, now and then with dirt where cleaning can find it; nothing stays nothing."""
    if value is None or rng.random() >= DIRTY_SHARE:
        return value
    text = str(value)
    inside = [match.end() for match in CHINESE_PAIR.finditer(text)] or [len(text)]
    return rng.choice(DIRT)(text, rng.choice(inside))


def write_sheet(file):
    """The sheet as three typists left it."""
    rng = random.Random(42)
    asked = questions(rng)
    rows = asked + rng.sample(asked, REPEATED)
    rng.shuffle(rows)
    gaps = rng.sample(range(len(rows)), WITHOUT_QUESTION + WITHOUT_ANSWER)
    for number, row in enumerate(gaps):
        rows[row] = (" ", rows[row][1]) if number < WITHOUT_QUESTION else (rows[row][0], None)
    book = Workbook()
    book.active.title = "说明"
    book.active.append(["题目和答案在第二张表里。录入的人不止一个，格式没有统一。"])
    sheet = book.create_sheet("题库")
    sheet.append(["常识题汇总"])
    sheet.append([])
    sheet.append(HEADERS)
    for number, (question, answer) in enumerate(rows, 1):
        sheet.append([number, dirty(question, rng), rng.choice(TYPISTS), dirty(answer, rng)])
    for column, width in zip("ABCDE", (8, 60, 10, 20, 10)):
        sheet.column_dimensions[column].width = width
    book.save(file)


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    write_sheet(folder / SHEET)
    secret.write(secret.draw(PUBLIC), folder / secret.QUESTIONS)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else FOLDER)
