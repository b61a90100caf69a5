"""What is alike, side by side, for the instructor to judge: one page, in which nothing of a student's is run."""
from collections.abc import Sequence
from functools import partial
from html import escape
from pathlib import Path
from string import Template

import nh3

from helpers.grading import traits
from helpers.grading.similar import FACTS, QUESTIONS, Group, Pair
from helpers.grading.traits import ADAPTER, CODE, FOREIGN, NAMED, PROSE, ROWS
from helpers.machine.files import replaced

TAGS = {"h1", "h2", "h3", "p", "table", "tr", "th", "td", "pre", "mark", "ul", "li"}
PAGE = Template("""<!DOCTYPE html>
<html lang="zh"><head><meta charset="utf-8"><title>相像的作业</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
body { font: 16px/1.7 sans-serif; max-width: 80em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; width: 100%; table-layout: fixed; }
th, td { border-bottom: 1px solid #ccc; padding: .3em .6em; text-align: left; vertical-align: top; }
pre { background: #f5f5f5; padding: .6em; white-space: pre-wrap; overflow-wrap: anywhere; }
</style></head><body>$body</body></html>
""")
WHY = {
    CODE: "改了名字、数字、顺序和排版也一样的部分涂了颜色。有多少：较短的那份代码里，同样的部分占的比例。",
    NAMED: "连变量的名字也一样的部分涂了颜色。有多少：较短的那份代码里，同样的部分占的比例。",
    PROSE: "同样的字句涂了颜色；课文里有的已经去掉。有多少：较短的那份里占的比例。",
    ROWS: "下面的样本既不是课程给大家的，也不是按学号抽给其中一人的，两人却都有（名字已经换掉）。",
    ADAPTER: "两个适配器对同样的输入做同样的事。各自训练出来的，余弦到不了 0.98。",
    QUESTIONS: "训练数据里有隐藏考卷的原题，一字不差。",
    FACTS: "隐藏的考卷问的事，训练数据里讲了大半：多半是拿整个题库训练的。",
}
MOST_PAIRS, MOST_CELLS, MOST_ROWS = 12, 3, 10  # shown of a group and of a pair


def write(groups: Sequence[Group], answers: dict[str, dict[str, str]], known: dict[str, dict], path: Path) -> None:
    """Writes the page: for every group its pairs, and of the most alike what is alike.

    `answers` is {student: {cell: source}}, `known` {student: traits}.
    """
    parts = ["<h1>相像的作业</h1><p>像不等于抄：请看过再判断。</p>"]
    if not groups:
        parts.append("<p>没有像得可疑的。</p>")
    for number, group in enumerate(groups, 1):
        parts.append(f"<h2>第 {number} 组：{len(group.members)} 个</h2><p>{escape('、'.join(group.members))}</p>")
        for pair in _to_show(group):
            parts.append(_pair(pair, answers, known))
        if len(group.pairs) > MOST_PAIRS:
            parts.append(f"<p>这一组共有 {len(group.pairs)} 对，都在 similar.csv 里。</p>")
    with replaced(path) as file:
        file.write(PAGE.substitute(body=nh3.clean("".join(parts), tags=TAGS, attributes={})))


def _to_show(group):
    """Some pairs of a group, the most alike ones that bring in somebody new first."""
    seen, new, rest = set(), [], []
    for pair in group.pairs:
        (rest if seen.issuperset(pair[:2]) else new).append(pair)
        seen |= {pair.first, pair.second}
    return (new + rest)[:MOST_PAIRS]


def _pair(pair: Pair, answers, known):
    head = (f"<h3>{escape(pair.first)} 和 {escape(pair.second)}：{pair.what}，{pair.share:.0%}</h3>"
            f"<p>{WHY[pair.what]}</p>")
    first, second = answers.get(pair.first, {}), answers.get(pair.second, {})
    if pair.what in (CODE, NAMED):
        return head + _cells(pair, first, second, partial(_lines_alike, with_names=pair.what == NAMED))
    if pair.what == PROSE:
        return head + _cells(pair, first, second, _stretches_alike)
    if pair.what == ROWS:
        return head + _rows(known[pair.first], known[pair.second])
    return head


def _cells(pair, first, second, alike):
    """The cells that both have, those first in which most is alike."""
    rows = []
    for cell in first.keys() & second.keys():
        one, other = alike(first[cell], second[cell]), alike(second[cell], first[cell])
        rows.append((one.count("<mark>"), f"<tr><td>{one}</td><td>{other}</td></tr>"))
    rows.sort(reverse=True)
    head = f"<tr><th>{escape(pair.first)}</th><th>{escape(pair.second)}</th></tr>"
    return f"<table>{head}{''.join(row for marks, row in rows[:MOST_CELLS] if marks)}</table>"


def _lines_alike(source, other, with_names):
    """A cell's code with the lines marked that say what the other cell says too."""
    trees = traits.parsed(source), traits.parsed(other)
    if None in trees:
        return f"<pre>{escape(source)}</pre>"
    known = {shape for shape, _, _ in traits.shapes(trees[1], with_names)}
    marked = set()
    for shape, _, node in traits.shapes(trees[0], with_names):
        if shape in known and hasattr(node, "lineno"):
            marked.update(range(node.lineno, node.end_lineno + 1))
    lines = [f"<mark>{escape(line)}</mark>" if number in marked else escape(line)
             for number, line in enumerate(source.splitlines(), 1)]
    return f"<pre>{chr(10).join(lines)}</pre>"


def _stretches_alike(text, other):
    """A text with the characters marked that stand in a stretch of the other text too."""
    known = traits.stretches(other)
    places = [place for place, char in enumerate(text) if char.isalnum()]
    marked = set()
    for start in range(len(places) - traits.STRETCH + 1):
        stretch = places[start:start + traits.STRETCH]
        if traits.stretches("".join(text[place] for place in stretch)) & known:
            marked.update(range(stretch[0], stretch[-1] + 1))
    shown = "".join(f"<mark>{escape(char)}</mark>" if place in marked else escape(char)
                    for place, char in enumerate(text))
    return f"<pre>{shown.replace('</mark><mark>', '')}</pre>"


def _rows(first, second):
    """Some rows that both have and neither was given."""
    common = [text for one, other in ((first, second), (second, first))
              for digest, text in one[FOREIGN].items() if digest in set(other[ROWS])]
    items = "".join(f"<li>{escape(text)}</li>" for text in common[:MOST_ROWS])
    return f"<p>一共 {len(common)} 条，例如：</p><ul>{items}</ul>"
