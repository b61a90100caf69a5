"""A board for the class: what everyone's assistant can do, how sure that is, and who has improved.

make board [NAMES=yes]   writes workspace/grading/board.html, a page that needs no server and runs no script.

Students stand there under other names unless NAMES says otherwise; who is who: board.csv, for the instructor.
"""
import hashlib
import hmac
from collections.abc import Iterable
from html import escape
from pathlib import Path
from secrets import token_hex
from string import Template

from helpers.grading.gradebook import write_table
from helpers.grading.mark import Result, kept_results
from helpers.grading.rules import OUT
from helpers.judge.shares import Share
from helpers.machine import commands
from helpers.machine.commands import CourseError
from helpers.machine.files import replaced
from helpers.machine.process import shown

SALT = "board.salt"
ADJECTIVES = ("青色", "金色", "安静", "勤快", "圆圆", "高高", "远方", "早起", "沉稳", "机灵", "温和", "爱笑", "认真",
              "好奇", "轻快", "从容", "勇敢", "细心", "爽朗", "耐心", "晴天", "雪地", "林中", "海边", "山顶", "河畔",
              "月下", "春天", "秋天", "清晨")
ANIMALS = ("白鹭", "松鼠", "海豚", "喜鹊", "羚羊", "刺猬", "水獭", "云雀", "山羊", "鲸鱼", "燕子", "狐狸", "熊猫",
           "天鹅", "蜻蜓", "骆驼", "企鹅", "雪豹", "蜂鸟", "海龟", "画眉", "斑马", "萤火虫", "考拉", "驯鹿", "鸳鸯",
           "麋鹿", "翠鸟", "河马", "猫头鹰")
COLUMNS = {"task": "考试题答对", "identity": "说出自己的名字", "retention": "原来会的还会"}
PROGRESS = "progress"
PAGE = Template("""<!DOCTYPE html>
<html lang="zh"><head><meta charset="utf-8"><title>班级榜</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
body { font: 16px/1.6 sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; }
input { position: absolute; opacity: 0; }
label { cursor: pointer; text-decoration: underline; }
.rows { display: flex; flex-direction: column; }
.row { display: grid; grid-template-columns: 12em repeat(3, 1fr) 10em; gap: .3em 1em; border-bottom: 1px solid #ccc; }
.row > * { padding: .3em 0; }
.head { order: -1; font-weight: bold; }
.bar { display: block; height: .5em; background: #cfe3f5; }
small { color: #555; }
$sorting
</style></head><body>
<h1>班级榜</h1>
<p>每个助手答对了多少，括号里是 95% 的区间：两个人的区间重叠得多，就分不出谁高谁低。点一列的名字，按它排。</p>
$choices
<div class="rows" role="table"><div class="row head" role="row">$head</div>$rows</div>
</body></html>
""")


def aliases(students: Iterable[str], salt: str) -> dict[str, str]:
    """Another name for every student, which nobody finds out without the salt."""
    taken = {}
    for student in sorted(students):
        place = int.from_bytes(hmac.digest(salt.encode(), student.encode(), hashlib.sha256)[:4])
        while (name := _alias(place)) in taken.values():
            place += 1
        taken[student] = name
    return taken


def _alias(place):
    return f"{ADJECTIVES[place // len(ANIMALS) % len(ADJECTIVES)]}的{ANIMALS[place % len(ANIMALS)]}"


def write(results: Iterable[Result], names: dict[str, str], path: Path) -> None:
    """Writes the board of those whose assistants were asked, under these names."""
    asked = sorted((result for result in results if result.counts), key=lambda result: names[result.student])
    ranks = {column: _ranks([_value(result, column) for result in asked]) for column in (*COLUMNS, PROGRESS)}
    rows = []
    for place, result in enumerate(asked):
        order = ";".join(f"--{column}:{ranks[column][place]}" for column in ranks)
        cells = [f"<span>{escape(names[result.student])}</span>", *(_cell(result, column) for column in COLUMNS),
                 f"<span>{_progress(result)}</span>"]
        rows.append(f'<div class="row" role="row" style="{order}">{"".join(cells)}</div>')
    titles = COLUMNS | {PROGRESS: "比上一次交的"}
    with replaced(path) as file:
        file.write(PAGE.substitute(
            sorting="\n".join(f"#by-{column}:checked ~ .rows .row:not(.head) {{ order: var(--{column}); }}"
                              for column in titles),
            choices="".join(f'<input type="radio" name="by" id="by-{column}"{" checked" if column == "task" else ""}>'
                            for column in titles),
            head="<span>名字</span>" + "".join(f'<label for="by-{column}">{title}</label>'
                                            for column, title in titles.items()),
            rows="".join(rows)))


def _value(result, column):
    if column == PROGRESS:
        return _gained(result) if result.earlier else -1
    return result.shares.get(column, -1)


def _ranks(values):
    """The place of each value, the highest first; equal ones keep their order."""
    order = sorted(range(len(values)), key=lambda place: -values[place])
    return {place: rank for rank, place in enumerate(order)}


def _gained(result):
    """How much higher the shares are than those of the work before, on average."""
    both = [column for column in COLUMNS if column in result.counts and column in result.earlier]
    differences = [result.shares[column] - Share(*result.earlier[column]).value for column in both]
    return sum(differences) / len(both) if both else 0.0


def _progress(result):
    if not result.earlier:
        return "第一次交"
    points = round(100 * _gained(result))
    return f"平均{'高' if points > 0 else '低'} {abs(points)} 个百分点" if points else "差不多"


def _cell(result, column):
    if column not in result.counts:
        return "<span>没有量</span>"
    share = Share(*result.counts[column])
    low, high = share.interval
    return (f'<span><i class="bar" style="width:{share.value:.0%}"></i>{share.value:.0%} '
            f"<small>（{share.right}/{share.total}，{low:.0%}–{high:.0%}）</small></span>")


def known_aliases(out: Path, students: Iterable[str]) -> dict[str, str]:
    """The students' other names, nobody's if no board has been made under such names."""
    salt = out / SALT
    return aliases(students, salt.read_text(encoding="utf-8")) if salt.is_file() else {}


@commands.command
def main() -> None:
    """The command line."""
    parser = commands.parser("从评好的作业做一张班级榜")
    parser.add_argument("--out", type=Path, default=OUT, help="评分的结果在哪里（默认：workspace/grading）")
    parser.add_argument("--names", action="store_true", help="写学号和助手的名字，不用化名")
    options = parser.parse_args()
    results = [result for result in kept_results(options.out) if result.counts]
    if not results:
        raise CourseError(f"{shown(options.out)} 里还没有量过适配器的作业。修复：先运行 make grade。")
    if options.names:
        names = {result.student: f"{result.student}　{result.assistant}" for result in results}
    else:
        if not (options.out / SALT).is_file():
            with replaced(options.out / SALT) as file:
                file.write(token_hex(16))
        names = known_aliases(options.out, [result.student for result in results])
        write_table(["学号", "榜上的名字"], sorted(names.items()), options.out / "board.csv")
    write(results, names, options.out / "board.html")
    print(f"班级榜：{shown(options.out / 'board.html')}，{len(results)} 个助手。", end="")
    print("" if options.names else "谁是谁：board.csv，只给老师；再运行一次 make grade，反馈里就写着自己的化名。")


if __name__ == "__main__":
    main()
