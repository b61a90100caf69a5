"""What a student gets back: points, how many checks passed, what their cells printed; no hidden input, no script."""
from html import escape
from pathlib import Path
from string import Template

import nh3

from helpers.grading.gradebook import ByHand
from helpers.grading.mark import Result
from helpers.grading.rules import ADAPTER_NOTEBOOK, Rules
from helpers.machine.files import replaced

TAGS = {"h1", "h2", "h3", "p", "table", "tr", "th", "td", "pre", "strong"}
PAGE = Template("""<!DOCTYPE html>
<html lang="zh"><head><meta charset="utf-8"><title>作业反馈</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
body { font: 16px/1.7 sans-serif; max-width: 56em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid #ccc; padding: .3em .6em; text-align: left; vertical-align: top; }
pre { background: #f5f5f5; padding: .6em; overflow: auto; white-space: pre-wrap; max-height: 30em; }
</style></head><body>$body</body></html>
""")
MEASURES = {"task": "考试题答对", "identity": "说出自己的名字", "retention": "原来会的还会", "memorised": "乱说名字"}


def write(result: Result, rules: Rules, by_hand: dict[str, ByHand], path: Path, alias: str | None = None) -> None:
    """Writes a student's feedback; whatever stands in it was escaped, and then cleaned as well."""
    title = f"<h1>作业反馈：{escape(result.student)}</h1>"
    title += f"<p>班级榜上的化名：{alias}</p>" if alias else ""
    body = _failed(result) if result.failure else _graded(result, rules, by_hand)
    with replaced(path) as file:
        file.write(PAGE.substitute(body=nh3.clean(title + body, tags=TAGS, attributes={})))


def _failed(result):
    return f"<p><strong>没有评分</strong>：{escape(result.failure)}</p>"


def _graded(result, rules, by_hand):
    total = sum(_points(cell, result, by_hand) or 0 for cell in rules.cells)
    parts = [f"<p><strong>到现在 {total:g} 分</strong>，满分 {sum(cell.points for cell in rules.cells):g} 分。</p>"]
    parts += [f"<p>{escape(remark)}</p>" for remark in result.remarks]
    for notebook in rules.course:
        cells = [cell for cell in rules.cells if cell.notebook == notebook]
        rows = "".join(_row(cell, result, by_hand) for cell in cells)
        parts.append(f"<h2>{notebook}.ipynb</h2><table><tr><th>题</th><th>得分</th><th>说明</th></tr>{rows}</table>")
        for answer in result.answers.get(notebook, []):
            parts.append(f"<h3>{escape(answer['grade_id'])}</h3><pre>{escape(answer['source'])}</pre>")
            if printed := "\n".join(filter(None, (answer["text"], answer["error"]))):
                parts.append(f"<p>运行时输出：</p><pre>{escape(printed)}</pre>")
    return "".join(parts)


def _points(cell, result, by_hand):
    """The points for a cell: the instructor's if there are any; None while nobody has given any."""
    given = by_hand.get(cell.name, ByHand()).points
    return result.points.get(cell.name) if given is None else given


def _row(cell, result, by_hand):
    points = _points(cell, result, by_hand)
    shown = "等老师评" if points is None else f"{points:g}"
    comment = by_hand.get(cell.name, ByHand()).comment
    remarks = "；".join(filter(None, (_why(cell, result), comment)))
    return (f"<tr><td>{escape(cell.grade_id)}</td><td>{shown} / {cell.points:g}</td>"
            f"<td>{escape(remarks)}</td></tr>")


def _why(cell, result):
    """What the points that were given automatically depend on."""
    measure = cell.grade_id.removeprefix("adapter_")
    if cell.notebook == ADAPTER_NOTEBOOK and measure in result.shares:
        return f"{MEASURES[measure]}：{result.shares[measure]:.0%}"
    if cell.name in result.passed:
        right, total = result.passed[cell.name]
        return f"换了几组输入来试，{total} 组里对了 {right} 组"
    return ""
