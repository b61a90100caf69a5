"""Draws the README's pictures into assets/figures/: the map, and before/after of a real fine-tune.

PYTHONPATH=. python tools/draw_readme.py
"""
import tempfile
from pathlib import Path

from matplotlib.figure import Figure

from helpers.judge import compare
from helpers.machine import profile
from helpers.machine.charts import before_after_chart, course_map, use_chinese_font
from tests import figures, finetune

FIGURES = profile.ROOT / "assets" / "figures"
PROBES_OF_EACH_KIND = 200
SHOWN = 4


def measure():
    """The rows of a comparison of the tiny base with a fine-tune."""
    with tempfile.TemporaryDirectory() as folder:
        _, merged = finetune.finetune(Path(folder), finetune.training_rows())
        return figures.measure(merged, PROBES_OF_EACH_KIND)


def before_after(rows):
    """Bars for task and retention, and beside them a few held-out questions with both answers."""
    use_chinese_font()
    figure = Figure(figsize=(10, 4.4))
    bars, table = figure.subplots(1, 2, width_ratios=[2, 5])
    before_after_chart({"考试题完全答对": compare.task(rows), "原来会的还会": compare.retention(rows)}, axes=bars)
    table.axis("off")
    table.set(xlim=(0, 1), ylim=(-SHOWN, 0.1))
    exam = [row for row in rows if row.kind == compare.EXAM]
    for place, row in enumerate(exam[::len(exam) // SHOWN][:SHOWN]):
        table.text(0, -place - 0.15, row.question, fontsize=10)
        table.text(0.03, -place - 0.42, f"微调前：{row.before}", fontsize=9, color="#66727f")
        table.text(0.03, -place - 0.69, f"微调后：{row.after}", fontsize=9, color="#2b5c8a")
    return figure


if __name__ == "__main__":
    FIGURES.mkdir(parents=True, exist_ok=True)
    course_map("00").savefig(FIGURES / "map.png", dpi=110, bbox_inches="tight")
    before_after(measure()).savefig(FIGURES / "before_after.png", dpi=110, bbox_inches="tight")
