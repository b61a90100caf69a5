"""A workbook of 100,000 rows and six columns: the classic script beside ours, each in a process of its own.

python -m tests.bench_convert
"""
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS = 100_000
LEAST_SPEEDUP, LEAST_SAVING = 8, 5


def make(workbook, _):
    """Writes the workbook."""
    from datetime import date, timedelta

    from openpyxl import Workbook

    from helpers.knowledge.facts import exam_questions, read_relations

    questions = exam_questions(read_relations())
    book = Workbook(write_only=True)
    sheet = book.create_sheet("题库")
    sheet.append(["题目", "主题", "题型", "答案", "编号", "录入日期"])
    for number in range(ROWS):
        row = questions[number % len(questions)]
        sheet.append([f"第{number}题：{row['question']}", row["theme"], "填空", row["answer"], number,
                      date(2024, 1, 1) + timedelta(number % 366)])
    book.save(workbook)


def classic(workbook, target):
    """The script of the classic tutorial."""
    import openpyxl

    from helpers.knowledge.facts import EXAM_SYSTEM

    rows = []
    for row in openpyxl.load_workbook(workbook).active.iter_rows(min_row=2, values_only=True):
        rows.append({"conversation": [{"system": EXAM_SYSTEM, "input": row[0], "output": row[3]}]})
    with open(target, "w", encoding="utf-8") as file:
        json.dump(rows, file, ensure_ascii=False, indent=4)


def ours(workbook, target):
    """The helper."""
    from helpers.data.convert import convert
    from helpers.data.readers import Layout
    from helpers.knowledge.facts import EXAM_SYSTEM

    convert(workbook, target, EXAM_SYSTEM, Layout("A", "D"))


def measured(name, *paths):
    """Seconds and peak MiB of one of the functions above, its Python started anew."""
    started = time.perf_counter()
    child = subprocess.run([sys.executable, "-m", __spec__.name, name, *map(str, paths)], check=True,
                           stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - started, int(child.stdout) / 1024


def bench():
    """Prints time and peak memory of both, and says whether the promise holds."""
    with tempfile.TemporaryDirectory() as folder:
        workbook, old, new = (Path(folder) / name for name in ("book.xlsx", "old.jsonl", "new.jsonl"))
        measured("make", workbook, old)  # elsewhere, for a child's peak begins with its parent's
        old_seconds, old_peak = measured("classic", workbook, old)
        new_seconds, new_peak = measured("ours", workbook, new)
        with new.open(encoding="utf-8") as lines:
            assert list(map(json.loads, lines)) == json.loads(old.read_text(encoding="utf-8"))
    print(f"{ROWS} 行 x 6 列      经典脚本 {old_seconds:6.2f} s {old_peak:5.0f} MiB      "
          f"helpers.data.convert {new_seconds:5.2f} s {new_peak:4.0f} MiB      "
          f"快 {old_seconds / new_seconds:.1f} 倍，内存是 1/{old_peak / new_peak:.1f}")
    return old_seconds / new_seconds >= LEAST_SPEEDUP and old_peak / new_peak >= LEAST_SAVING


if __name__ == "__main__":
    if sys.argv[1:]:
        globals()[sys.argv[1]](*sys.argv[2:])
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    else:
        sys.exit(not bench())
