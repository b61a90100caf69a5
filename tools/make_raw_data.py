"""Makes the sources that lesson 01 converts, from the course's own facts, with the dirt of real ones: data/raw/.

python -m tools.make_raw_data [FOLDER]
"""
import json
import random
import re
import sys
from datetime import date, timedelta
from pathlib import Path

from docx import Document
from openpyxl import Workbook

from helpers.data.split import write_samples
from helpers.knowledge.corpus import EVERYDAY_TALK, Corpus
from helpers.knowledge.facts import EXAM_SYSTEM, THEMES, exam_questions, read_relations

FOLDER = Path(__file__).parent.parent / "data" / "raw"
PER_THEME = 200
DUPLICATES = 56
EMPTY_ANSWERS = 6
DIRTY_SHARE = 0.15
SMALL = 30
EVERYDAY = 400
HEADERS = ("题目", "主题", "题型", "答案", "正确率", "录入日期")
FULL_WIDTH = {code: code + 0xFEE0 for code in (*range(48, 58), *range(65, 91), *range(97, 123))}
CHINESE_PAIR = re.compile("[\u4e00-\u9fff](?=[\u4e00-\u9fff])")
DIRT = (
    lambda text, at: text[:at] + " " + text[at:],
    lambda text, at: text[:at] + "\n" + text[at:],
    lambda text, at: text + " \t",
    lambda text, at: "\u3000\u3000" + text,
    lambda text, at: "\t" + text,
    lambda text, at: text + "\n",
    lambda text, at: text.translate(FULL_WIDTH),
)


def chosen(rng):
    """The same number of exam questions of each theme, where there are so many, mixed."""
    questions = exam_questions(read_relations())
    rng.shuffle(questions)
    chosen = [question for theme in THEMES for question in [q for q in questions if q["theme"] == theme][:PER_THEME]]
    rng.shuffle(chosen)
    return chosen


def dirty(text, rng):
    """The text, now and then with dirt where cleaning can find it: at its ends or between two Chinese characters."""
    inside = [match.end() for match in CHINESE_PAIR.finditer(text)]
    if rng.random() >= DIRTY_SHARE or not inside:
        return text
    return rng.choice(DIRT)(text, rng.choice(inside))


def write_workbook(questions, path, rng):
    """A sheet of six columns, question in A and answer in D, and a sheet that says what they are."""
    rows = questions + rng.sample(questions, DUPLICATES)
    without_answer = set(rng.sample(range(len(rows)), EMPTY_ANSWERS))
    rng.shuffle(rows)
    book = Workbook()
    sheet = book.active
    sheet.title = "题库"
    sheet.append(HEADERS)
    for index, row in enumerate(rows):
        answer = "" if index in without_answer else dirty(row["answer"], rng)
        entered = date(2024, 1, 1) + timedelta(rng.randrange(366))
        answer = int(answer) if answer.isdecimal() and answer == str(int(answer)) else answer  # as Excel stores it
        sheet.append([dirty(row["question"], rng), row["theme"], "填空", answer, rng.randrange(30, 100) / 100, entered])
        sheet[f"E{sheet.max_row}"].number_format = "0%"
        sheet[f"F{sheet.max_row}"].number_format = "yyyy/m/d"
    for column, width in zip("ABCDEF", (60, 14, 8, 24, 8, 12)):
        sheet.column_dimensions[column].width = width
    sheet.freeze_panes = "A2"
    notes = book.create_sheet("说明")
    for line in (("列", "内容"), ("A", "题目"), ("D", "答案"), ("其余", "训练时用不到")):
        notes.append(line)
    book.save(path)


def write_document(questions, path):
    """Numbered questions and answers."""
    document = Document()
    document.add_heading("常识题选", 0)
    for number, question in enumerate(questions, 1):
        document.add_paragraph(f"{number}. {question['question']}")
        document.add_paragraph(f"答案：{question['answer']}")
    document.save(path)


def write_coig(questions, path):
    """The fields of the exams in COIG."""
    rows = [{"textbox_q_instruction": "完成下面的填空题。", "textbox_q_context": "", "textbox_question": q["question"],
             "textbox_answer": q["answer"], "textbox_answer_analysis": "", "subject": q["theme"]} for q in questions]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_pretty(questions, path):
    """What the classic script calls .jsonl: an array printed over many lines."""
    rows = [{"conversation": [{"system": EXAM_SYSTEM, "input": question["question"], "output": question["answer"]}]}
            for question in questions]
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=4), encoding="utf-8")


def write_everyday(path, rng):
    """Dialogue as the base model speaks it, in XTuner's conversations: what keeps a fine-tune from forgetting."""
    corpus, samples = Corpus(), []
    for _ in range(EVERYDAY):
        system, turns = "", []
        for message in corpus.dialogue(rng, EVERYDAY_TALK):
            if message["role"] == "system":
                system = message["content"]
            elif message["role"] == "user":
                turns.append({"system": system, "input": message["content"]})
                system = ""
            else:
                turns[-1]["output"] = message["content"]
        samples.append({"conversation": turns})
    write_samples(samples, path)


def main(folder):
    rng = random.Random(42)
    questions = chosen(rng)
    folder.mkdir(parents=True, exist_ok=True)
    write_workbook(questions, folder / "exam.xlsx", rng)
    write_document(questions[:SMALL], folder / "exam.docx")
    write_coig(questions[:SMALL], folder / "coig_exam.jsonl")
    write_pretty(questions[:SMALL], folder / "classic.jsonl")
    write_everyday(folder / "everyday.jsonl", rng)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else FOLDER)
