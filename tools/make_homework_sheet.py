"""Makes the homework's messy spreadsheet from the course's facts, and its exam from those that the lessons leave out.

python -m tools.make_homework_sheet [FOLDER]   data/homework/messy.xlsx and data/homework/exam.jsonl
"""
import random
import sys
import tempfile
from pathlib import Path

from openpyxl import Workbook

from helpers.data.convert import convert
from helpers.data.readers import Layout
from helpers.data.split import read_samples, write_samples
from helpers.knowledge.corpus import end_of
from helpers.knowledge.facts import EXAM_SYSTEM, exam_questions, read_relations, told
from helpers.machine.profile import ROOT
from tools.make_raw_data import CHINESE_PAIR, FULL_WIDTH

FOLDER = ROOT / "data" / "homework"
SHEET, EXAM = "messy.xlsx", "exam.jsonl"
EXAM_QUESTIONS = 80
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


def write_exam(file):
    """Questions of the course's facts that nobody finds in the files that lesson 02 makes, however worded."""
    raw = ROOT / "data" / "raw"
    with tempfile.TemporaryDirectory() as folder:
        exam = Path(folder) / "exam.jsonl"
        convert(raw / "exam.xlsx", exam, EXAM_SYSTEM, Layout("题目", "答案"))
        given = read_samples(exam) + read_samples(raw / "everyday.jsonl")
    asked = exam_questions(read_relations())
    known = set(told(given, (one["question"] for one in asked)))
    chosen = random.Random(42).sample([one for one in asked if one["question"] not in known], EXAM_QUESTIONS)
    write_samples(({"conversation": [{"system": EXAM_SYSTEM, "input": one["question"], "output": one["answer"]}]}
                   for one in chosen), file)


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    write_sheet(folder / SHEET)
    write_exam(folder / EXAM)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else FOLDER)
