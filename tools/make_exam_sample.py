"""Makes a multiple-choice exam in COIG's layout, with the dirt of the sources that it was gathered from.

python -m tools.make_exam_sample [FILE]
"""
import json
import random
import sys
from pathlib import Path

from helpers.knowledge.exam import LETTERS, exam
from tools.make_raw_data import CHINESE_PAIR, FOLDER, FULL_WIDTH

FILE = FOLDER / "coig_exam_sample.jsonl"
INSTRUCTION = "选择题，四个选项中只有一项正确。"
DUPLICATES = 36
DIRTY_SHARE = 0.85
ENTITIES = {ord(char): f"&{name};" for char, name in
            {"“": "ldquo", "”": "rdquo", "—": "mdash", "；": "#65307", "《": "#12298", "》": "#12299"}.items()}
# Every theme was gathered in another way, and every way has a dirt of its own; the last one was typed with care.
DIRT = {
    "地理": lambda text, _: text.translate(ENTITIES) + "&nbsp;",  # the source of a web page
    "历史": lambda text, _: text.translate(FULL_WIDTH),  # typed in full width
    "文学": lambda text, at: text[:at] + "\n" + text[at:],  # a PDF
    "科技": lambda text, _: "\t" + text + " ",  # a spreadsheet
    "法律与政府": lambda text, _: "&emsp;" + text.translate(ENTITIES),
    "社会与文化": lambda text, _: text,
}


def layout(question):
    """The fields of the exams in COIG; the options come before the question."""
    listed = "；".join(f"{letter}. {option}" for letter, option in zip(LETTERS, question["options"]))
    return {"textbox_q_instruction": INSTRUCTION, "textbox_q_context": f"{listed}。",
            "textbox_question": question["question"], "textbox_answer": question["answer"],
            "textbox_answer_analysis": "", "subject": question["theme"]}


def dirty(row, dirt, rng):
    """The row with most of its options, questions and answers made dirty."""
    def spoil(text):
        inside = [match.end() for match in CHINESE_PAIR.finditer(text)] or [len(text)]
        return dirt(text, rng.choice(inside)) if rng.random() < DIRTY_SHARE else text
    return row | {field: spoil(row[field]) for field in ("textbox_q_context", "textbox_question", "textbox_answer")}


def main(file):
    rng = random.Random(42)
    rows = [layout(question) for question in exam(rng)]
    gathered = [(row, DIRT[row["subject"]]) for row in rows]
    gathered += [(row, rng.choice(list(DIRT.values()))) for row in rng.sample(rows, DUPLICATES)]  # met elsewhere again
    rng.shuffle(gathered)
    lines = (json.dumps(dirty(row, dirt, rng), ensure_ascii=False) + "\n" for row, dirt in gathered)
    file.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else FILE)
