"""Charts whose Chinese labels render on a machine without Chinese fonts."""
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from helpers.machine import lessons
from helpers.machine.profile import ROOT

FONT = ROOT / "assets" / "fonts" / "NotoSansCJKsc-subset.otf"
STAGES = {
    "开始": ["00"],
    "数据": ["01", "02"],
    "训练": ["03", "04", "05", "06"],
    "使用": ["07", "08"],
    "深入": ["09", "10", "11", "12"],
}


def use_chinese_font() -> None:
    """Makes the course's own font matplotlib's default."""
    font_manager.fontManager.addfont(FONT)
    matplotlib.rcParams["font.family"] = font_manager.FontProperties(fname=FONT).get_name()
    matplotlib.rcParams["axes.unicode_minus"] = False


def course_map(here: str) -> Figure:
    """The course's stages and lessons by their titles, with the lesson `here` ("00", "A") filled."""
    use_chinese_font()
    [appendix] = lessons.NOTEBOOKS.glob("appendix_a_*.ipynb")
    names = {path.name[:2]: _name(path) for path in lessons.core_lessons()}
    figure = Figure(figsize=(9, 2.3))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.set(xlim=(0, 5 * len(STAGES)), ylim=(-5.2, 1))
    for column, (stage, numbers) in enumerate(STAGES.items()):
        left = 5 * column
        axes.text(left + 2.1, 0.4, stage, ha="center", va="center", fontsize=12)
        if column:
            axes.annotate("", (left + 0.6, 0.4), (left - 1.5, 0.4), arrowprops={"arrowstyle": "->", "color": "gray"})
        for row, number in enumerate(numbers, 1):
            _box(axes, left + 0.1, -row, f"{number} {names[number]}", number == here)
    _box(axes, 0.1, -4.5, f"A {_name(appendix)}", here == "A")
    return figure


def _name(notebook: Path) -> str:
    """What a title says after its number."""
    return lessons.title(notebook).partition("\u3000")[2]


def _box(axes: Axes, left: float, top: float, text: str, filled: bool) -> None:
    axes.add_patch(FancyBboxPatch(
        (left, top - 0.3), 4, 0.6, boxstyle="round,pad=0.08", edgecolor="#4878a8",
        facecolor="#4878a8" if filled else "#eef3f8"))
    axes.text(left + 2, top, text, ha="center", va="center", fontsize=9, color="white" if filled else "black")


def curve(points: dict | Sequence, x_label: str, y_label: str, title: str, scale: str = "linear") -> Figure:
    """One line through {x: y}, or through values at 0, 1, 2, ..."""
    points = points if isinstance(points, dict) else dict(enumerate(points))
    use_chinese_font()
    figure = Figure(figsize=(7, 2.8))
    axes = figure.subplots()
    axes.plot(list(points), list(points.values()), color="#4878a8")
    axes.set(xlabel=x_label, ylabel=y_label, title=title, yscale=scale)
    axes.grid(alpha=0.3)
    return figure


def shares_chart(shares: dict[str, float], title: str) -> Figure:
    """Horizontal bars of named shares, each with its value."""
    use_chinese_font()
    figure = Figure(figsize=(7, 0.45 * len(shares) + 1))
    axes = figure.subplots()
    axes.bar_label(axes.barh(list(shares), list(shares.values()), color="#4878a8"), fmt="{:.0%}", padding=4)
    axes.set(title=title, xlim=(0, 1.1 * max(shares.values())), xticks=[])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    return figure


def before_after_chart(pairs: dict[str, tuple], title: str = "", axes: Axes | None = None) -> Figure:
    """Bars of named shares before and after, each with its interval, on these axes or in a figure of their own."""
    use_chinese_font()
    axes = axes or Figure(figsize=(7, 3.2)).subplots()
    before, after = zip(*pairs.values())
    return grouped_bars(axes, list(pairs), {"微调前": before, "微调后": after}, ("#b8c4d0", "#4878a8"), title)


def grouped_bars(axes: Axes, groups: list[str], series: dict[str, Sequence], colors: Sequence[str],
                 title: str = "") -> Figure:
    """The figure of these axes, with a group of bars for each name: a share of every series, with its interval."""
    width = 0.8 / len(series)
    for side, ((label, shares), color) in enumerate(zip(series.items(), colors)):
        places = [place + width * side for place in range(len(groups))]
        below = [abs(share.value - share.interval[0]) for share in shares]  # at 0 % and 100 % rounding can cross zero
        above = [abs(share.interval[1] - share.value) for share in shares]
        bars = axes.bar(places, [share.value for share in shares], 0.95 * width, yerr=[below, above],
                        ecolor="#66727f", capsize=3, label=label, color=color)
        axes.bar_label(bars, [f"{share.value:.0%}" for share in shares], padding=2, fontsize=9)
    axes.set_xticks([place + width * (len(series) - 1) / 2 for place in range(len(groups))], groups)
    axes.set(title=title, ylim=(0, 1.3), yticks=[])
    axes.legend(loc="upper center", ncols=len(series), frameon=False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return axes.figure
