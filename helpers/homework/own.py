"""What a student is given: everyone has a task of their own, and it follows from the student's number alone.

Whoever grades again, on whatever machine, draws the same. What is right for whom: helpers/grading/rules.py.
"""
import random
import re
import tempfile
import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from IPython.display import Markdown
from openpyxl import Workbook

from helpers.data.convert import convert
from helpers.data.readers import Layout
from helpers.data.split import question_key, read_samples
from helpers.homework.release import HOMEWORK
from helpers.knowledge.corpus import LETTERS, end_of
from helpers.knowledge.facts import EXAM_SYSTEM, read_relations, told_facts
from helpers.machine.files import replacement
from helpers.machine.profile import ROOT, made_by

EXAM_ROWS = 600
UNDERSTANDING = ROOT / "data" / "homework" / "understanding.toml"
SHEET, TAB = "messy.xlsx", "题库"
# What the sheet is about, and how it was typed.
RELATIONS = {("capitals", "capital"), ("province_seats", "seat"), ("cities", "city_province"), ("elements", "symbol"),
             ("treaties", "treaty_year"), ("events", "year"), ("chinese_works", "author"), ("paintings", "painter"),
             ("poem_lines", "line_author"), ("courtesy_names", "courtesy_name"), ("formulas", "formula"),
             ("organizations_abbr", "organization_abbr")}
OF_EACH, THEMES = 12, 6
QUESTIONS = ("题目", "问题", "题干", "试题", "考题")
ANSWERS = ("答案", "标准答案", "参考答案", "正确答案", "回答")
OTHERS = ("编号", "录入人", "备注", "来源", "难度")
TYPISTS = ("小周", "老郑", "阿宁", "小杜", "阿彭", "老苗")
TITLES = ("常识题汇总", "三个人录的题", "期末题库", "第二版，未校对")
INVISIBLE = ("\u200b", "\u200c", "\u200d", "\u2060", "\ufeff")
DIRTY_SHARE = 0.4
FULL_WIDTH = {code: code + 0xFEE0 for code in (*range(48, 58), *range(65, 91), *range(97, 123))}
CHINESE_PAIR = re.compile("[\u4e00-\u9fff](?=[\u4e00-\u9fff])")
DIRT = (
    lambda text, at, invisible: text[:at] + " " + text[at:],
    lambda text, at, invisible: text[:at] + "\n" + text[at:],
    lambda text, at, invisible: text[:at] + invisible + text[at:],
    lambda text, at, invisible: text + " \t",
    lambda text, at, invisible: "\u3000\u3000" + text,
    lambda text, at, invisible: "\xa0" + text,
    lambda text, at, invisible: text.translate(FULL_WIDTH),
)


@dataclass(frozen=True)
class Sheet:
    """A messy sheet: its rows, and what one has to know to clean it."""

    rows: list[list]
    question: str  # what stands over the questions
    answer: str  # and over the answers
    invisible: str  # the character that nobody sees
    tested: tuple[int, ...]  # the last digits of the numbers that go into the test
    complete: int  # rows with a question and an answer
    different: int  # questions among them


def _rng(student, what):
    return random.Random(f"{what} of {student}")


def training(student: str) -> list[dict]:
    """The student's own exam questions to train on, none that lesson 02 keeps for testing, and everyday dialogue."""
    workspace = ROOT / "workspace"
    tested = told_facts(read_samples(made_by("第 2 课", workspace / "test.jsonl")), _facts())
    everyday = [sample for sample in read_samples(made_by("第 2 课", workspace / "train.jsonl"))
                if sample["conversation"][0]["system"] != EXAM_SYSTEM]
    return exam_rows(student, tested, EXAM_ROWS) + everyday


def exam_rows(student: str, but: Collection[tuple[str, str]] = (), count: int | None = None) -> list[dict]:
    """So many of the facts, or all, as exam questions in the student's own order and wording, about none of `but`."""
    rng = _rng(student, "exam")
    rows = []
    for subject, answer in rng.sample(list(_facts()), len(_facts())):
        asked = rng.choice(_facts()[subject, answer].exam).format(subject=subject)
        if (subject, answer) not in but:
            rows.append({"conversation": [{"system": EXAM_SYSTEM, "input": asked, "output": answer}]})
    return rows[:count]


def of_the_lessons() -> list[dict]:
    """The samples of every file that lesson 02 makes, to train on and to test on."""
    raw = ROOT / "data" / "raw"
    with tempfile.TemporaryDirectory() as folder:
        exam = Path(folder) / "exam.jsonl"
        convert(raw / "exam.xlsx", exam, EXAM_SYSTEM, Layout("题目", "答案"))
        return read_samples(exam) + read_samples(raw / "everyday.jsonl")


@cache
def _relations():
    return read_relations()


@cache
def _facts():
    """Every fact once, with its relation."""
    return {fact: relation for relation in _relations() if not relation.reverse_of for fact in relation.facts}


def sheet_file(student: str) -> Path:
    """The student's own messy sheet, written anew."""
    book = Workbook()
    book.active.title = "说明"
    book.active.append(["题目和答案在第二张表里。录入的人不止一个，格式没有统一。"])
    tab = book.create_sheet(TAB)
    for row in sheet(student).rows:
        tab.append(row)
    for column in "ABCDE":
        tab.column_dimensions[column].width = 30
    path = HOMEWORK / student / SHEET
    with replacement(path) as beside:
        book.save(beside)
    return path


def card(student: str) -> str:
    """What the student has to know of the sheet, in words."""
    drawn = sheet(student)
    digits = "、".join(map(str, drawn.tested))
    return (f"学号 {student} 的任务单\n"
            f"表头：题目那一列叫“{drawn.question}”，答案那一列叫“{drawn.answer}”\n"
            f"看不见的字符：U+{ord(drawn.invisible):04X}，Python 里写作 \"\\u{ord(drawn.invisible):04x}\"\n"
            f"划分：编号除以 10 余 {digits} 的进测试")


@cache
def sheet(student: str) -> Sheet:
    """The student's own messy sheet as three typists left it."""
    rng = _rng(student, "sheet")
    question, answer, invisible = rng.choice(QUESTIONS), rng.choice(ANSWERS), rng.choice(INVISIBLE)
    typists = rng.sample(TYPISTS, 3)
    pairs = _pairs(rng)
    headers = [question, answer, *rng.sample(OTHERS, 3)]
    rng.shuffle(headers)
    rows = [[rng.choice(TITLES)], *[[] for _ in range(rng.randint(0, 2))], headers]
    for number, (asked, answered) in enumerate(pairs, 1):
        cells = {question: dirty(asked, invisible, rng), answer: dirty(answered, invisible, rng),
                 "编号": number, "录入人": rng.choice(typists)}
        rows.append([cells.get(header) for header in headers])
    complete = [asked for asked, answered in pairs if asked.strip() and answered]
    keys = {question_key({"conversation": [{"input": asked}]}) for asked in complete}
    tested = tuple(sorted(rng.sample(range(10), 3)))
    return Sheet(rows, question, answer, invisible, tested, len(complete), len(keys))


def _pairs(rng):
    """Questions and answers, some of them twice, some without one or the other; a year is a number, as in Excel."""
    relations = [relation for relation in _relations() if (relation.table, relation.name) in RELATIONS]
    pairs = []
    for relation in rng.sample(relations, THEMES):
        for subject, answer in rng.sample(relation.facts, OF_EACH):
            asked = rng.choice(relation.held_out).rstrip("？。")
            year = answer.removesuffix("年")
            pairs.append((asked.format(subject=subject) + end_of(asked), int(year) if year.isdecimal() else answer))
    pairs += rng.sample(pairs, rng.randint(10, 18))
    rng.shuffle(pairs)
    without_question, without_answer = rng.randint(2, 3), rng.randint(3, 6)
    gaps = rng.sample(range(len(pairs)), without_question + without_answer)
    for number, place in enumerate(gaps):
        asked, answer = pairs[place]
        pairs[place] = (" ", answer) if number < without_question else (asked, None)
    return pairs


def dirty(value: object, invisible: str, rng: random.Random, share: float = DIRTY_SHARE) -> object:
    """The value, now and then with dirt where cleaning can find it; nothing stays nothing."""
    if value is None or rng.random() >= share:
        return value
    text = str(value)
    inside = [match.end() for match in CHINESE_PAIR.finditer(text)] or [len(text)]
    return rng.choice(DIRT)(text, rng.choice(inside), invisible)


def question(number: int, student: str) -> Markdown:
    """A question of the third notebook in the student's own numbers, its options in the student's own order."""
    [asked] = [asked for asked in _understanding() if asked["number"] == number]
    options = [f"- {letter}　{asked['options'][place]}" for letter, place in zip(LETTERS, _order(student, asked))]
    return Markdown("\n".join([asked["text"].strip().format(**_numbers(student, asked)), "", *options]))


def values(student: str) -> dict[str, object]:
    """What was drawn for a student, by the names that the rules of grading use.

    `option_5_3` is the letter that the third option of question 5 has for this student.
    """
    drawn = sheet(student)
    words = {"question": drawn.question, "answer": drawn.answer, "invisible": drawn.invisible, "tested": drawn.tested,
             "complete": drawn.complete, "different": drawn.different,
             "test": sum(number % 10 in drawn.tested for number in range(drawn.different))}
    words["train"] = words["different"] - words["test"]
    for asked in _understanding():
        words |= _numbers(student, asked)
        for letter, place in zip(LETTERS, _order(student, asked)):
            words[f"option_{asked['number']}_{place + 1}"] = letter
    return words


@cache
def _understanding():
    return tomllib.loads(UNDERSTANDING.read_text(encoding="utf-8"))["question"]


def _order(student, asked):
    """Which option stands first, and so on."""
    count = len(asked.get("options", ()))
    return _rng(student, f"options {asked['number']}").sample(range(count), count)


def _numbers(student, asked):
    rng = _rng(student, f"numbers {asked['number']}")
    return {name: rng.choice(choices) for name, choices in asked.get("numbers", {}).items()}
