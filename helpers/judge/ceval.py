"""Lesson 11: C-Eval's layout, for a small exam of the course's own facts, and what a downloaded one lacks."""
import ast
import csv
import os
import random
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from helpers.knowledge.exam import LETTERS, exam
from helpers.machine.commands import CourseError
from helpers.machine.files import replaced

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


def write(folder: str | Path, seed: int = SEED) -> None:
    """Writes an exam of the course's facts in C-Eval's layout: four subjects, each with dev, val and test."""
    questions = exam(random.Random(seed))
    for theme, name in SUBJECTS.items():
        unused = [question for question in questions if question["theme"] == theme]
        for split, count in ROWS.items():
            chosen, unused = unused[:count], unused[count:]
            with replaced(_file(folder, split, name)) as file:
                writer = csv.DictWriter(file, COLUMNS[split], extrasaction="ignore")
                writer.writeheader()
                writer.writerows(_row(number, question) for number, question in enumerate(chosen))


def _row(number: int, question: dict) -> dict:
    """A question of ours with everything that any of C-Eval's columns holds."""
    answer = question["answer"]
    return {"id": number, "question": question["question"], **dict(zip(LETTERS, question["options"])),
            "answer": LETTERS[question["options"].index(answer)],
            "explanation": question["question"].replace("（　　）", answer)}


def _file(folder: str | Path, split: str, name: str) -> Path:
    return Path(folder) / split / f"{name}_{split}.csv"


def read(folder: str | Path, split: str, name: str) -> list[dict]:
    """The rows of one subject's dev, val or test."""
    with _file(folder, split, name).open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def official_subjects() -> dict[str, tuple[str, str]]:
    """The Chinese name and the field of each of C-Eval's 52 subjects, as OpenCompass's config has them."""
    package = Path(find_spec("opencompass").origin).parent  # importing it would take many seconds
    source = (package / "configs/datasets/ceval/ceval_gen_5f30c7.py").read_text(encoding="utf-8")
    [mapping] = [node.value for node in ast.parse(source).body
                 if isinstance(node, ast.Assign) and node.targets[0].id == "ceval_subject_mapping"]
    return {name: (chinese, field) for name, (_, chinese, field) in ast.literal_eval(mapping).items()}


def downloaded() -> tuple[Path, list[str]] | None:
    """The folder that CEVAL_DIR names and C-Eval's subjects, checked; None if it names nothing."""
    folder = os.environ.get("CEVAL_DIR")
    if not folder:
        return None
    names = list(official_subjects())
    return require_complete(folder, names), names


def require_complete(folder: str | Path, names: Iterable[str]) -> Path:
    """The folder's absolute path, if nothing of these subjects is missing in it; otherwise the error says what."""
    folder = Path(folder).expanduser().resolve()
    faults = [_fault(folder, split, name) for name in names for split in COLUMNS]
    faults = [fault for fault in faults if fault]
    if faults:
        lines = [f"C-Eval 不完整：{folder}", *faults[:FAULTS_SHOWN]]
        if len(faults) > FAULTS_SHOWN:
            lines.append(f"……一共 {len(faults)} 处")
        lines.append("修复：重新下载并解压，让 CEVAL_DIR 指向直接含有 dev、val、test 三个文件夹的那一层。")
        raise CourseError("\n".join(lines))
    return folder


def _fault(folder: Path, split: str, name: str) -> str | None:
    """What is wrong with one file, if anything."""
    file = f"{split}/{name}_{split}.csv"
    try:
        rows = read(folder, split, name)
    except FileNotFoundError:
        return f"缺少 {file}"
    except (OSError, ValueError, csv.Error) as error:
        return f"{file} 读不出来：{error}"
    least = SHOTS if split == "dev" else 1
    if len(rows) < least:
        return f"{file} 只有 {len(rows)} 题，至少要 {least} 题"
    missing = [column for column in COLUMNS[split] if rows[0].get(column) is None]
    return f"{file} 缺少列 {'、'.join(missing)}" if missing else None
