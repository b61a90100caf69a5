"""Lesson 11: C-Eval's layout, for a small exam of the course's own facts, and what a downloaded one lacks."""
import ast
import csv
import os
import random
from importlib.util import find_spec
from pathlib import Path

from helpers.convert import replaced
from helpers.exam import LETTERS, exam

# C-Eval has no subject that is exactly one of our themes; these are the nearest.
SUBJECTS = {"地理": "high_school_geography", "历史": "high_school_history",
            "文学": "chinese_language_and_literature", "科技": "high_school_chemistry"}
COLUMNS = {  # as C-Eval has them: the answers to its test questions are known to its makers only
    "dev": ["id", "question", *LETTERS, "answer", "explanation"],
    "val": ["id", "question", *LETTERS, "answer"],
    "test": ["id", "question", *LETTERS],
}
ROWS = {"dev": 5, "val": 20, "test": 20}
SHOTS = 5  # the rows of dev that OpenCompass's five-shot config shows
SEED = 11
FAULTS_SHOWN = 5


class Incomplete(RuntimeError):
    """A C-Eval folder in which something is missing."""


def write(folder, seed=SEED):
    """Writes an exam of the course's facts in C-Eval's layout: four subjects, each with dev, val and test."""
    questions = exam(random.Random(seed))
    for theme, name in SUBJECTS.items():
        rest = iter(question for question in questions if question["theme"] == theme)
        for split, count in ROWS.items():
            rows = [_row(number, next(rest)) for number in range(count)]
            with replaced(_file(folder, split, name)) as file:
                writer = csv.DictWriter(file, COLUMNS[split], extrasaction="ignore")
                writer.writeheader()
                writer.writerows(rows)


def _row(number, question):
    answer = question["answer"]
    return {"id": number, "question": question["question"], **dict(zip(LETTERS, question["options"])),
            "answer": LETTERS[question["options"].index(answer)],
            "explanation": question["question"].replace("（　　）", answer)}


def _file(folder, split, name):
    return Path(folder) / split / f"{name}_{split}.csv"


def read(folder, split, name):
    """The rows of one subject's dev, val or test."""
    with _file(folder, split, name).open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def official_subjects():
    """The Chinese name and the field of each of C-Eval's 52 subjects, as OpenCompass's config has them."""
    package = Path(find_spec("opencompass").origin).parent  # importing it would take many seconds
    source = (package / "configs/datasets/ceval/ceval_gen_5f30c7.py").read_text(encoding="utf-8")
    names = next(ast.literal_eval(node.value) for node in ast.parse(source).body
                 if isinstance(node, ast.Assign) and node.targets[0].id == "ceval_subject_mapping")
    return {name: (chinese, field) for name, (_, chinese, field) in names.items()}


def downloaded():
    """The folder that CEVAL_DIR names and C-Eval's subjects, checked; None if it names nothing."""
    folder = os.environ.get("CEVAL_DIR")
    return folder and (check(folder, official_subjects()), list(official_subjects()))


def check(folder, names):
    """The folder's absolute path, if nothing of these subjects is missing in it; otherwise the error says what."""
    folder = Path(folder).expanduser().resolve()
    found = [fault for name in names for split in COLUMNS for fault in _faults(folder, split, name)]
    if found:
        more = f"\n……一共 {len(found)} 处" if len(found) > FAULTS_SHOWN else ""
        raise Incomplete(f"C-Eval 不完整：{folder}\n" + "\n".join(found[:FAULTS_SHOWN]) + more +
                         "\n修复：重新下载并解压，让 CEVAL_DIR 指向直接含有 dev、val、test 三个文件夹的那一层。")
    return folder


def _faults(folder, split, name):
    """What is wrong with one file, if anything."""
    file = f"{split}/{name}_{split}.csv"
    try:
        rows = read(folder, split, name)
    except FileNotFoundError:
        return [f"缺少 {file}"]
    except (OSError, ValueError, csv.Error) as error:
        return [f"{file} 读不出来：{error}"]
    missing = [column for column in COLUMNS[split] if not rows or rows[0].get(column) is None]
    least = SHOTS if split == "dev" else 1
    if len(rows) < least:
        return [f"{file} 只有 {len(rows)} 题，至少要 {least} 题"]
    return [f"{file} 缺少列 {'、'.join(missing)}"] if missing else []
