"""Lesson 08: a comparison as one HTML file that needs nothing else: no server, no network, no script."""
import base64
import io
from difflib import SequenceMatcher
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.figure import Figure

from helpers.judge.chance import paired
from helpers.machine.charts import before_after_chart, shares_chart
from helpers.machine.files import replaced

if TYPE_CHECKING:
    from helpers.judge.compare import Comparison, Row

KINDS = {"exam": "考试题", "identity": "你是谁", "fact": "常识问答", "poem": "古诗", "greeting": "问候",
         "sum": "加减法"}
# The figures of one kind of question; the third is of what was right before, so that it has no share before.
KIND_OF = {"考试题答对": "exam", "说出自己的名字": "identity"}
MEANINGS = {
    "考试题答对": "没有训练过的考试题，一字不差地答对",
    "说出自己的名字": "用没有训练过的问法问“你是谁”，回答里有它的名字",
    "原来会的还会": "微调前答对的一般问题里，微调后还答对的",
}
# How a table of answers looks, here and in a notebook.
STYLE = """
table.answers { font-size: 14px; table-layout: fixed; width: 100%; }
table.answers th, table.answers td { text-align: left !important; vertical-align: top; }
table.answers th:nth-child(1) { width: 26%; }
table.answers th:nth-child(2) { width: 16%; }
table.answers th:nth-child(5) { width: 4em; }
del { background: #fde0dc; text-decoration: none; }
ins { background: #d9f0d3; text-decoration: none; }
.worse td:last-child { color: #b3261e; font-weight: bold; }
.better td:last-child { color: #2e7d32; font-weight: bold; }
"""
CHANGES = {"worse": "变差", "better": "变好", "same": "不变"}


def change(row: "Row") -> str:
    """Whether a row's answer became "better" or "worse", or is right or wrong as before: the "same"."""
    if row.right_before == row.right_after:
        return "same"
    return "better" if row.right_after else "worse"


def conclusions(comparison: "Comparison") -> list[str]:
    """What the numbers say, a sentence each."""
    figures = comparison.figures()
    sentences = []
    for name, kind in KIND_OF.items():
        before, after = figures[name]
        if before.total:
            verdict = _verdict([row for row in comparison.rows if row.kind == kind])
            sentences.append(f"{name}：从 {before} 到 {after}，{verdict}。")
    sentences.append(f"原来会的还会：{figures['原来会的还会'].after}；原来不会的，现在会了：{comparison.gained()}。")
    if kept := comparison.kept():
        kind, least = min(kept.items(), key=lambda item: item[1].value)
        sentences.append(f"一般问题里保留得最少的是{KINDS[kind]}：{least}。")
    sentences.append(f"一共 {len(comparison.rows)} 个问题：{_counted(comparison.rows)}。")
    return sentences


def _counted(rows: list["Row"]) -> str:
    """How many rows became worse, better, or neither."""
    changes = [change(row) for row in rows]
    return "，".join(f"{name} {changes.count(key)} 个" for key, name in CHANGES.items())


def _verdict(rows: list["Row"]) -> str:
    """Which way the answers to the same questions went, and whether that is more than chance.

    Two intervals that meet would not tell: they know nothing of the questions being the same.
    """
    compared = paired([row.right_before for row in rows], [row.right_after for row in rows])
    if compared.only_first == compared.only_second:
        direction = "没有变"
    else:
        direction = "提高了" if compared.only_second > compared.only_first else "下降了"
    return f"{direction}；同样的问题，{compared}"


def marked(before: str, after: str) -> tuple[str, str]:
    """Both answers as HTML: in the first what went is marked <del>, in the second what came is marked <ins>."""
    old = new = ""
    for step, start, end, new_start, new_end in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        gone, come = escape(before[start:end]), escape(after[new_start:new_end])
        if step == "equal":
            old, new = old + gone, new + come
        else:
            old += f"<del>{gone}</del>" if gone else ""
            new += f"<ins>{come}</ins>" if come else ""
    return old, new


def answers_table(rows: list["Row"]) -> str:
    """Rows as an HTML table, what became worse first, both answers with their differences marked."""
    worst_first = list(CHANGES)
    lines = []
    for row in sorted(rows, key=lambda row: worst_first.index(change(row))):
        before, after = marked(row.before, row.after)
        cells = [escape(row.question), escape(row.expected), f"{_sign(row.right_before)} {before}",
                 f"{_sign(row.right_after)} {after}", CHANGES[change(row)]]
        lines.append(f'<tr class="{change(row)}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{name}</th>" for name in ("问题", "期望", "微调前", "微调后", "变化"))
    return f'<table class="answers"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def _sign(right: bool) -> str:
    return "✓" if right else "✗"


def _figures_table(comparison: "Comparison") -> str:
    rows = ""
    for name, (before, after) in comparison.figures().items():
        told = before if name in KIND_OF else "按定义全对"
        rows += f"<tr><th>{name}<small>{MEANINGS[name]}</small></th><td>{told}</td><td>{after}</td></tr>"
    return f"<table><thead><tr><th></th><th>微调前</th><th>微调后</th></tr></thead><tbody>{rows}</tbody></table>"


def _image(figure: Figure) -> str:
    """A chart as an <img> that carries its own SVG, with letters as shapes: they need no font."""
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "path"}):
        figure.savefig(content, format="svg", bbox_inches="tight")
    data = base64.b64encode(content.getvalue()).decode()
    return f'<img alt="{escape(figure.axes[0].get_title())}" src="data:image/svg+xml;base64,{data}">'


def _folded(rows: list["Row"], kind: str) -> str:
    """The answers of one kind, to be unfolded by a click."""
    chosen = [row for row in rows if row.kind == kind]
    summary = f"{KINDS[kind]} {len(chosen)} 个：{_counted(chosen)}"
    return f"<details><summary>{summary}</summary>{answers_table(chosen)}</details>"


def _names_table(values: dict) -> str:
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in values.items())
    return f'<table class="pairs">{rows}</table>'


def page(comparison: "Comparison") -> str:
    """The whole report."""
    rows, provenance = comparison.rows, comparison.provenance
    worse = [row for row in rows if change(row) == "worse"]
    kept = {KINDS[kind]: share.value for kind, share in comparison.kept().items()}
    charts = [before_after_chart(comparison.figures(), "三个数字，微调前和微调后")]
    if kept:
        charts.append(shares_chart(kept, "原来会的还会多少"))
    return PAGE.substitute(
        style=STYLE, date=escape(provenance["date"]), machine=escape(provenance["machine"]),
        conclusions="".join(f"<li>{escape(sentence)}</li>" for sentence in conclusions(comparison)),
        figures=_figures_table(comparison), charts="".join(_image(chart) for chart in charts),
        worse=answers_table(worse) if worse else "<p>没有。</p>",
        answers="".join(_folded(rows, kind) for kind in dict.fromkeys(row.kind for row in rows)),
        settings=_names_table(provenance["settings"] | provenance["recipe"]), config=escape(provenance["config"]),
        versions=_names_table(provenance["versions"]), files=_names_table(provenance["files"]))


def write(comparison: "Comparison", path: str | Path) -> Path:
    """Writes the report; gives its path."""
    path = Path(path)
    with replaced(path) as file:
        file.write(page(comparison))
    return path


PAGE = Template("""<!doctype html>
<html lang="zh-CN">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>前后对比</title>
<style>
:root { color-scheme: light; --line: #d8e0e8; --blue: #2b5c8a; }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1.5rem; color: #222; background: white;
  font: 16px/1.6 "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif; }
h1, h2 { color: var(--blue); line-height: 1.3; }
h2 { margin-top: 2.5rem; border-bottom: 2px solid var(--line); }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .4rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  overflow-wrap: anywhere; }
thead th { background: #eef3f8; position: sticky; top: 0; white-space: nowrap; }
small { display: block; font-weight: normal; color: #66727f; }
img { max-width: 49%; vertical-align: top; }
$style.pairs { font-size: 14px; }
.pairs th { width: 18rem; font-weight: normal; color: #66727f; }
summary { cursor: pointer; padding: .4rem 0; font-weight: bold; }
pre { font-size: 13px; line-height: 1.4; padding: 1rem; background: #f6f8fa; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.filter + label { margin: 0 1rem .6rem .2rem; }
#worse:checked ~ details tbody tr:not(.worse), #better:checked ~ details tbody tr:not(.better),
#same:checked ~ details tbody tr:not(.same) { display: none; }
@media print {
  body { margin: 0; max-width: none; font-size: 12px; }
  .filter, .filter + label { display: none; }
  thead th { position: static; }
  tr, img, figure { break-inside: avoid; }
  h2 { break-after: avoid; }
}
</style>
</head>
<body>
<h1>前后对比</h1>
<p>$date，$machine</p>
<h2>结论</h2>
<ul>$conclusions</ul>
<h2>三个数字</h2>
$figures
<small>95 % 区间：题目只有这么多，真正的比例多半落在这里面。</small>
<h2>图</h2>
$charts
<h2>变差的</h2>
<p>微调前答对、微调后答错的全在这里。常识问答要用整句话回答才算对，只答一个词就是忘了怎么聊天。<del>红色</del>是没有了的字，<ins>绿色</ins>是新写的字。</p>
$worse
<h2>全部回答</h2>
<input type="radio" class="filter" name="show" id="all" checked><label for="all">全部</label>
<input type="radio" class="filter" name="show" id="worse"><label for="worse">变差</label>
<input type="radio" class="filter" name="show" id="better"><label for="better">变好</label>
<input type="radio" class="filter" name="show" id="same"><label for="same">不变</label>
$answers
<h2>设置</h2>
$settings
<details><summary>训练用的配置</summary><pre>$config</pre></details>
<h2>版本</h2>
$versions
<h2>来历</h2>
<p>每个文件的 SHA-256，文件夹是其中全部权重的。</p>
$files
</body>
</html>
""")
