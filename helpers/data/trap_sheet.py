"""A sheet in which nearly every row is a trap of lesson 01, to try conversion scripts on."""
import random
import re
from collections.abc import Sequence
from datetime import date
from io import BytesIO
from pathlib import Path
from typing import NamedTuple
from zipfile import ZIP_DEFLATED, ZipFile

from openpyxl import Workbook
from openpyxl.worksheet.worksheet import Worksheet

from helpers.data.readers import Layout
from helpers.machine.files import replacement

HEADERS = ("题目", "主题", "题型", "答案")
LAYOUT = Layout("题目", "答案")
NO_TRAP, MERGED, FORMULA, EMPTY = "没有陷阱", "合并单元格", "公式", "空行"
TWICE, NO_ANSWER, HIDDEN_ROW, HIDDEN_SHEET = "重复的题", "没有答案", "隐藏的行", "隐藏的工作表"
YEAR_MONTH_DAY = 'yyyy"年"m"月"d"日"'
NO_RESULT, RESULT = re.compile(rb"(<f>24\*60</f>)<v */?>(?:</v>)?"), rb"\g<1><v>1440</v>"  # openpyxl stores none
PLAIN = {
    "中国的首都是哪座城市？": "北京", "太阳系里最大的行星是哪一颗？": "木星", "面积最大的洲是哪一个？": "亚洲",
    "端午节纪念的诗人是谁？": "屈原", "写出史记的史学家是谁？": "司马迁", "人体最坚硬的组织是什么？": "牙釉质",
    "二十四节气里的第一个是什么？": "立春", "大熊猫最爱吃的植物是什么？": "竹子", "最深的湖是哪一个？": "贝加尔湖",
    "发明活字印刷术的人是谁？": "毕昇", "离太阳最近的行星是哪一颗？": "水星",
}
# What dirt does to a text, at a place inside it.
DIRT = {
    "换行": lambda text, at: text[:at] + "\n" + text[at:],
    "制表符": lambda text, at: text[:at] + "\t" + text[at:],
    "多余的空格": lambda text, at: text[:at] + " " + text[at:],
    "开头的全角空格": lambda text, at: "\u3000\u3000" + text,
}


class Row(NamedTuple):
    """A row: its trap, what stands in its cells, how the answer is displayed, and its number in the sheet."""

    trap: str
    question: str | None
    answer: object
    number_format: str = "General"
    number: int = 0


# Rows that stand one below the other make one trap.
AS_THEY_ARE = (
    [Row(MERGED, "四大发明里，有一项是什么？", "造纸术"), Row(MERGED, None, "印刷术")],
    [Row("英文单词之间的空格", "World Wide Web 的中文名是什么？", "万维网")],
    [Row("要填的空", "人体最大的器官是（\u3000\u3000）。", "皮肤")],
    [Row("全角字母和数字", "ＤＮＡ的结构是哪一年发现的？", "１９５３年")],
    [Row("数字", "一年有几个季节？", 4)],
    [Row("答案是零", "水在多少摄氏度结冰？", 0)],
    [Row("存成文字的数字", "郑州的长途区号是多少？", "0371")],
    [Row("数字格式", "詹姆斯·邦德的代号是多少？", 7, "000")],
    [Row("百分数", "空气里氧气的体积大约占多少？", 0.209, "0.0%")],
    [Row("日期", "中华人民共和国是哪一天成立的？", date(1949, 10, 1), YEAR_MONTH_DAY)],
    [Row(FORMULA, "一昼夜有多少分钟？", "=24*60")],
    [Row(EMPTY, None, None)],
)
OLD_SHEET = "旧题库"
OLD_ROWS = [Row(HIDDEN_SHEET, "太阳系有几颗行星？", "九颗", number=2),
            Row(HIDDEN_SHEET, "最近一届夏季奥运会在哪里举行？", "雅典", number=3)]
TRAPS = [*DIRT, *(block[0].trap for block in AS_THEY_ARE), TWICE, NO_ANSWER, HIDDEN_ROW, HIDDEN_SHEET]


def blocks(seed: int = 42) -> list[list[Row]]:
    """The rows of a fresh sheet, those of one trap together; the seed mixes them and says where the dirt falls."""
    rng = random.Random(seed)
    plain = iter(rng.sample(list(PLAIN.items()), len(PLAIN)))
    made = list(AS_THEY_ARE)
    for trap, dirty in DIRT.items():
        made.append([Row(trap, *(dirty(text, rng.randrange(1, max(2, len(text) - 1))) for text in next(plain)))])
    twice, (question, _), hidden = Row(TWICE, *next(plain)), next(plain), Row(HIDDEN_ROW, *next(plain))
    made += [[twice, twice], [Row(NO_ANSWER, question, None)], [hidden]]
    made += [[Row(NO_TRAP, *pair)] for pair in plain]
    rng.shuffle(made)
    number = 1
    numbered = []
    for block in made:
        numbered.append([row._replace(number=number + place) for place, row in enumerate(block, 1)])
        number += len(block)
    return numbered


def write(rows: Sequence[Row], path: str | Path) -> None:
    """Writes those rows as the visible sheet of a workbook, behind a hidden one."""
    book = Workbook()
    old, sheet = book.active, book.create_sheet("题库")
    old.title, old.sheet_state = OLD_SHEET, "hidden"
    book.active = sheet
    _fill(old, OLD_ROWS)
    _fill(sheet, rows)
    saved = BytesIO()
    book.save(saved)
    with replacement(Path(path)) as whole, ZipFile(saved) as old, ZipFile(whole, "w", ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, NO_RESULT.sub(RESULT, old.read(name)))


def _fill(sheet: Worksheet, rows: Sequence[Row]) -> None:
    sheet.append(HEADERS)
    for place, row in enumerate(rows, 2):
        sheet.cell(place, 1, row.question)
        sheet.cell(place, 4, row.answer).number_format = row.number_format
        if row.trap == MERGED and row.question is None:
            sheet.merge_cells(f"A{place - 1}:A{place}")
        sheet.row_dimensions[place].hidden = row.trap == HIDDEN_ROW
