"""Lesson 01: what a person sees in a source is what arrives, nothing goes in silence, no failure harms the output."""
import csv
import json
import random
import re
import subprocess
import sys
import zipfile
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from pathlib import Path
from string import ascii_uppercase

import pytest
from datasets import load_dataset
from docx import Document
from hypothesis import given, settings
from hypothesis import strategies as st
from openpyxl import Workbook, load_workbook
from openpyxl.cell.rich_text import CellRichText, TextBlock
from openpyxl.cell.text import InlineFont
from python_calamine import load_workbook as load_with_calamine

from helpers.data import Unreadable, word, xlsx
from helpers.data.cleaning import Cleaning
from helpers.data.convert import convert
from helpers.data.number_format import display
from helpers.data.readers import Layout, read
from helpers.knowledge.facts import EXAM_SYSTEM, exam_questions, read_relations
from helpers.machine.files import replaced
from tools.make_raw_data import FOLDER, main

ROOT = Path(__file__).parent.parent
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
AS_IT_IS = Cleaning(spaces=False, tabs=False, line_breaks=False, full_width=False, entities=False)
# What XML, and so a workbook, can hold; a return becomes a line break there, and _x0041_ means A.
texts = st.text(st.characters(exclude_categories=["Cs", "Cc", "Co", "Cn"], include_characters="\n\t")).filter(
    lambda text: not re.search("_x[0-9A-Fa-f]{4}_", text))


def save(path, *rows, sheet="题库", change=lambda sheet: None):
    """A workbook with these rows."""
    book = Workbook()
    book.active.title = sheet
    for row in rows:
        book.active.append(row)
    change(book.active)
    book.save(path)
    return path


def edit(path, **parts):
    """Changes parts of a workbook as another program would have written them: (pattern, replacement) by part."""
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name).decode() for name in old.namelist()}
    for name, (pattern, replacement) in parts.items():
        name = {"sheet": "xl/worksheets/sheet1.xml", "book": "xl/workbook.xml"}[name]
        members[name], count = re.subn(pattern, replacement, members[name], flags=re.DOTALL)
        assert count
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, text in members.items():
            new.writestr(name, text)
    return path


def pairs(path, *layout, **more):
    """The questions and answers that arrive, and the report."""
    target = path.parent / "out.jsonl"
    report = convert(path, target, EXAM_SYSTEM, *layout, **more)
    rows = [json.loads(line)["conversation"] for line in target.read_text(encoding="utf-8").split("\n")[:-1]]
    return [(turn["input"], turn["output"]) for turns in rows for turn in turns], report


def answers(path, *values, formats=()):
    """What arrives from a column of answers of these values and number formats."""
    def change(sheet):
        for row, code in enumerate(formats, 2):
            sheet.cell(row, 2).number_format = code
    save(path, ["问", "答"], *([f"问{i}", value] for i, value in enumerate(values)), change=change)
    return [answer for _, answer in pairs(path)[0]]


def write_json(path, records, **more):
    """A JSON array, or the records as JSON Lines where `lines` is given."""
    if more.pop("lines", False):
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    else:
        path.write_text(json.dumps(records, ensure_ascii=False, **more), encoding="utf-8")
    return path


@pytest.fixture
def book(tmp_path):
    return tmp_path / "book.xlsx"


# What a person sees in Excel


def test_dates_arrive_as_they_are_displayed(book):
    day, moment = date(2019, 1, 5), datetime(2019, 1, 5, 13, 4, 5)
    formats = ("yyyy/m/d", 'yyyy"年"m"月"d"日"', "yyyy-mm-dd hh:mm:ss", "h:mm AM/PM", "mm-dd-yy")
    assert answers(book, day, day, moment, time(8, 30), day, formats=formats) == [
        "2019/1/5", "2019年1月5日", "2019-01-05 13:04:05", "8:30 AM", "2019/1/5"]


def test_whole_numbers_arrive_without_point_zero(book):
    assert answers(book, 52, 52.0, -3, 10**14, 0) == ["52", "52", "-3", "100000000000000", "0"]


def test_percentages_and_decimals_arrive_as_they_are_displayed(book):
    formats = ("0%", "0.0%", "0.00", "#,##0.0", "General")
    assert answers(book, 0.125, 0.125, 3.14159, 1234567.891, 0.1 + 0.2, formats=formats) == [
        "13%", "12.5%", "3.14", "1,234,567.9", "0.3"]


@pytest.mark.parametrize(("number", "code", "shown"), [
    (1 / 3, "General", "0.333333333"), (0.00001234, "General", "1.234E-05"), (1e20, "General", "1" + "0" * 20),
    (-5, "0;(0)", "(5)"), (0, '0;-0;"零"', "零"), (12, '0"岁"', "12岁"), (7, "000", "007"),
    (1234.5, "¥#,##0.00", "¥1,234.50"), (12756665385.25, "General", "12756665385"), (120000.5, "General", "120000.5"),
    (1234.5, "[$¥-804]#,##0", "¥1,235"), (2.5, "0", "3"), (1.005, "0.00", "1.01"), (12345, "0.00E+00", "1.23E+04"),
    (1500000, '0.0,,"百万"', "1.5百万"), (0.5, "#.##", ".5"), (5, "#.##", "5."), (5, "0.0#", "5.0"),
    (-0.5, "0%", "-50%"), (0.07, "0.0%", "7.0%"), (1e-7, "0.00", "0.00"), (3661 / 86400, "h:mm:ss", "1:01:01"),
    (43466.75, "aaaa h:mm", "星期二 18:00"), (1.5, "[h]:mm", "36:00"), (43466, "d-mmm-yy", "1-Jan-19"),
    (43466.5 + 1e-10, "上午/下午h:mm", "下午12:00"), (0.5, "mm:ss.0", "00:00.0"), (60, "yyyy/m/d", "1900/2/28"),
    (1, "yyyy/m/d", "1900/1/1"), (-1, "yyyy/m/d", "-1"), (12345678901, "General", "12345678901"), (5, "# ?/?", "5"),
    (0.5, '"共"General"个"', "0.5"),
])
def test_a_number_is_displayed_as_in_excel(number, code, shown):
    assert display(number, code) == shown


def test_dates_of_an_old_macintosh_workbook_count_from_1904(book):
    answers(book, 42004, formats=("yyyy/m/d",))
    edit(book, book=(r"<workbookPr\b", '<workbookPr date1904="1"'))
    assert pairs(book)[0] == [("问0", "2019/1/1")]


def test_a_formula_arrives_as_its_stored_value(book):
    save(book, ["问", "答"], ["一加一", "=1+1"], ["名字", "=A2"])
    edit(book, sheet=(r"(<f>1\+1</f>)<v ?(/>|></v>)", r"\1<v>2</v>"))
    edit(book, sheet=(r'"B3"[^>]*>(<f>A2</f>)<v ?(/>|></v>)', r'"B3" t="str">\1<v>一加一</v>'))
    assert pairs(book)[0] == [("一加一", "2"), ("名字", "一加一")]


def test_a_formula_without_a_stored_value_is_named_by_its_cell(book):
    save(book, ["问", "答"], ["一加一", "=1+1"])
    with pytest.raises(Unreadable, match="book.xlsx 的工作表“题库”单元格 B2 是公式.*用 Excel 打开"):
        pairs(book)


def test_a_merged_cell_keeps_its_text_in_each_of_its_rows(book):
    save(book, ["问", "答"], ["四大发明", "造纸"], [None, "印刷"], ["首都", "北京"],
         change=lambda sheet: sheet.merge_cells("A2:A3"))
    assert pairs(book)[0] == [("四大发明", "造纸"), ("四大发明", "印刷"), ("首都", "北京")]


def test_two_rows_merged_in_question_and_answer_are_one_row(book):
    def change(sheet):
        sheet.merge_cells("A2:A3")
        sheet.merge_cells("B2:B3")
    save(book, ["问", "答"], ["首都", "北京"], [None, None], ["省会", "杭州"], change=change)
    found, report = pairs(book)
    assert found == [("首都", "北京"), ("省会", "杭州")]
    assert (report.read, report.duplicated) == (2, [])


def test_a_title_merged_across_the_columns_is_no_answer(book):
    save(book, ["问", "答"], ["第一部分"], ["首都", "北京"], change=lambda sheet: sheet.merge_cells("A2:B2"))
    found, report = pairs(book)
    assert found == [("首都", "北京")]
    assert report.empty == [2]


def test_rich_text_arrives_as_text_and_its_pronunciation_does_not(book):
    capital = CellRichText("北", TextBlock(InlineFont(b=True), "京"), "市")
    save(book, ["问", "答"], ["首都", capital], ["东京", "とうきょう"])
    edit(book, sheet=(r"<is><t>(&#19996;&#20140;|东京)</t></is>",
                      r'<is><r><t>\1</t></r><rPh sb="0" eb="2"><t>トウキョウ</t></rPh></is>'))
    assert pairs(book)[0] == [("首都", "北京市"), ("东京", "とうきょう")]


def test_hidden_rows_stay_out_and_are_reported(book):
    def change(sheet):
        sheet.row_dimensions[3].hidden = True
    save(book, ["问", "答"], ["首都", "北京"], ["旧题", "旧答"], ["省会", "杭州"], change=change)
    found, report = pairs(book)
    assert found == [("首都", "北京"), ("省会", "杭州")]
    assert (report.read, report.written, report.hidden) == (3, 2, [3])


def test_empty_rows_at_the_end_are_no_rows(book):
    def change(sheet):
        for row in range(3, 200):
            sheet.cell(row, 1).number_format = "0.00"
            sheet.cell(row, 2, "")
    save(book, ["问", "答"], ["首都", "北京"], change=change)
    assert pairs(book)[1].read == 1


def test_a_header_in_the_third_row_is_found_by_its_name(book):
    save(book, ["2019 年题库"], [], ["编号", "答案", "问题"], [1, "北京", "首都"], [2, "杭州", "省会"])
    assert pairs(book, Layout("问题", "答案"))[0] == [("首都", "北京"), ("省会", "杭州")]
    assert pairs(book, Layout("C", "B", header_row=3))[0] == [("首都", "北京"), ("省会", "杭州")]


def test_a_column_of_mixed_types_becomes_text_that_arrow_reads(book):
    assert answers(book, "北京", 52, 0.5, True, date(2019, 1, 1)) == ["北京", "52", "0.5", "TRUE", "2019-01-01"]
    source = str(book.parent / "out.jsonl")
    rows = load_dataset("json", data_files=source, split="train", cache_dir=book.parent / "cache")
    assert rows[1]["conversation"] == [{"system": EXAM_SYSTEM, "input": "问1", "output": "52"}]


def test_an_error_in_a_cell_counts_as_empty(book):
    save(book, ["问", "答"], ["首都", "北京"], ["省会", "#N/A"])
    assert pairs(book)[1].empty == [3]


def test_the_first_visible_sheet_is_read_unless_another_is_named(tmp_path):
    book = Workbook()
    book.active.title = "隐藏的"
    book.active.append(["问", "答"])
    book.active.append(["首都", "北京"])
    book.active.sheet_state = "hidden"
    for name in ("题库", "补充"):
        book.create_sheet(name).append(["问", "答"])
        book[name].append([name, "答"])
    book.save(tmp_path / "book.xlsx")
    assert pairs(tmp_path / "book.xlsx")[0] == [("题库", "答")]
    assert pairs(tmp_path / "book.xlsx", Layout(sheet="补充"))[0] == [("补充", "答")]
    assert pairs(tmp_path / "book.xlsx", Layout(sheet="隐藏的"))[0] == [("首都", "北京")]


def test_columns_beyond_z_and_columns_that_share_a_letter_are_told_apart(book):
    save(book, [f"头{i}" for i in range(30)], [f"值{i}" for i in range(30)])
    assert pairs(book, Layout("AA", "A"))[0] == [("值26", "值0")]
    assert pairs(book, Layout("头28", "头1"))[0] == [("值28", "值1")]


def test_other_programs_workbooks_are_read_too(book):
    """Prefixed names, single quotes, attributes in another order, shared strings, absolute targets."""
    main_ns = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    cells = ("<x:row r='1'><x:c t='s' r='A1'><x:v>0</x:v></x:c><x:c t='s' r='B1'><x:v>1</x:v></x:c></x:row>"
             "<x:row r='2'><x:c t='s' r='A2'><x:v>2</x:v></x:c><x:c r='B2'/></x:row>"
             "<x:row r='3' hidden='0'><x:c t='s' r='A3'><x:v>2</x:v></x:c><x:c t='s' r='B3'><x:v>3</x:v></x:c></x:row>")
    shared = ("<x:si><x:t>问</x:t></x:si><x:si><x:t>答</x:t></x:si>"
              "<x:si><x:r><x:t>a&amp;</x:t></x:r><x:r><x:t>b</x:t></x:r><x:rPh sb='0'><x:t>no</x:t></x:rPh></x:si>"
              "<x:si><x:t>x_x000D_y &lt;&#20140;&gt;</x:t></x:si>")
    save(book, ["占位"])
    with zipfile.ZipFile(book) as old:
        members = {name: old.read(name) for name in old.namelist()}
    members["xl/worksheets/sheet1.xml"] = (
        f"<x:worksheet xmlns:x='{main_ns}'><x:sheetData>{cells}</x:sheetData></x:worksheet>").encode()
    members["xl/sharedStrings.xml"] = f"<x:sst xmlns:x='{main_ns}'>{shared}</x:sst>".encode()
    with zipfile.ZipFile(book, "w") as new:
        for name, content in members.items():
            new.writestr(name, content)
    found, report = pairs(book)
    assert found == [("a&b", "x y <京>")]
    assert report.empty == [2]


@settings(deadline=None)  # the disk can be slow
@given(st.lists(st.lists(st.one_of(texts, st.integers(-10**14, 10**14), st.booleans()), min_size=3, max_size=3),
                min_size=1, max_size=8))
def test_what_openpyxl_writes_is_read_back_as_calamine_reads_it(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("table") / "book.xlsx"
    book = Workbook()
    for row, values in enumerate(table, 1):
        for column, value in enumerate(values, 1):
            cell = book.active.cell(row, column, value)
            if isinstance(value, str):
                cell.data_type = "s"  # also "=1" and "#N/A"
    book.save(path)
    ours = {(number, column): text for number, _, texts in xlsx.rows(path, None, ["A", "B", "C"])
            for column, text in texts.items()}
    written = {(row, ascii_uppercase[column]): str(value).upper() if isinstance(value, bool) else str(value)
               for row, values in enumerate(table, 1) for column, value in enumerate(values)}
    assert ours == {place: text for place, text in written.items() if text}
    sheet = load_with_calamine(path).get_sheet_by_index(0)
    for row, values in enumerate(sheet.to_python(skip_empty_area=False), 1):
        for column, value in enumerate(values):
            if isinstance(value, str):
                assert ours.get((row, ascii_uppercase[column]), "") == value
            elif isinstance(value, float):
                assert float(ours[row, ascii_uppercase[column]]) == value


@given(st.floats(-1e12, 1e12))
def test_a_decimal_is_read_back_as_precisely_as_excel_shows_it(number):
    shown = display(number, "General")
    assert float(shown) == pytest.approx(number, rel=1e-5 if abs(number) < 1e-4 else 1e-9, abs=1e-9)


# Other sources


@settings(deadline=None)  # the disk can be slow
@given(st.lists(st.tuples(texts, texts).filter(all), min_size=1, max_size=6), st.sampled_from([",", ";", "\t"]))
def test_what_csv_writes_is_read_back(tmp_path_factory, table, delimiter):
    path = tmp_path_factory.mktemp("table") / "table.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([("问题", "答案"), *table])
    assert [sample.turns[0][1:] for sample in read(path)[1]] == table


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_the_encoding_of_a_csv_is_found(tmp_path, encoding):
    path = tmp_path / "table.csv"
    path.write_text("编号,问题,答案\n1,首都,北京\n2,省会,杭州𬬻\n", encoding=encoding)
    assert pairs(path, Layout("问题", "答案"))[0] == [("首都", "北京"), ("省会", "杭州𬬻")]


def test_one_spoilt_byte_does_not_turn_utf8_into_gibberish(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes("问题,答案\n首都,北京\n省会,杭".encode()[:-1] + "\n河流,长江\n".encode())
    with pytest.raises(Unreadable, match="table.csv 第 3 行的编码"):
        pairs(path)


def test_numbered_questions_of_a_word_file_arrive_with_their_answers(tmp_path):
    document = Document()
    document.add_heading("题选", 0)
    for text in ("1. 首都是（　　）。", "A. 北京", "B. 上海", "答案：A", "解释一行", "2、省会？【答案】杭州",
                 "（3）3.14 是什么", "答：圆周率"):
        document.add_paragraph(text)
    document.add_paragraph("自动编号的题", style="List Number")
    document.add_paragraph("参考答案：有")
    document.save(tmp_path / "exam.docx")
    found, report = pairs(tmp_path / "exam.docx", cleaning=AS_IT_IS)
    assert found == [("首都是（　　）。\nA. 北京\nB. 上海", "A\n解释一行"), ("省会？", "杭州"),
                     ("3.14 是什么", "圆周率"), ("自动编号的题", "有")]
    assert "读到 4 题" in str(report)


def test_a_word_file_can_be_corrected_in_a_workbook_on_the_way(tmp_path):
    document = Document()
    for text in ("1. =1+1 等于几", "答案：3", "2. 没有答案的题"):
        document.add_paragraph(text)
    document.save(tmp_path / "exam.docx")
    assert pairs(tmp_path / "exam.docx")[1].empty == [2]
    word.to_workbook(tmp_path / "exam.docx", tmp_path / "exam.xlsx")
    book = load_workbook(tmp_path / "exam.xlsx")
    assert [[cell.value for cell in row] for row in book.active] == [
        ["问题", "答案"], ["=1+1 等于几", "3"], ["没有答案的题", None]]
    book.active["B2"], book.active["B3"] = "2", "补上"
    book.active["A2"].data_type = "s"
    book.save(tmp_path / "exam.xlsx")
    assert pairs(tmp_path / "exam.xlsx")[0] == [("=1+1 等于几", "2"), ("没有答案的题", "补上")]


def test_what_a_word_file_says_before_its_answer_in_the_same_line_belongs_to_the_question(tmp_path):
    document = Document()
    for text in ("1. 首都是", "A. 上海　B. 北京【答案】B", "2. 省会？"):
        document.add_paragraph(text)
    document.save(tmp_path / "exam.docx")
    assert pairs(tmp_path / "exam.docx", cleaning=AS_IT_IS)[0] == [("首都是\nA. 上海　B. 北京", "B")]


@pytest.mark.parametrize(("record", "expected"), [
    ({"instruction": "翻译", "input": "你好", "output": "hello"}, [("系统", "翻译\n你好", "hello")]),
    ({"instruction": "问", "input": None, "output": 3.50, "system": "自己的", "history": [["早", "早"]]},
     [("自己的", "早", "早"), ("", "问", "3.5")]),
    ({"messages": [{"role": "system", "content": "自己的"}, {"role": "user", "content": "问"},
                   {"role": "assistant", "content": [{"type": "text", "text": "答"}]},
                   {"role": "user", "content": "再问"}, {"role": "assistant", "content": "再答"}]},
     [("自己的", "问", "答"), ("", "再问", "再答")]),
    ({"conversation": [{"system": "自己的", "input": "问", "output": "答"}, {"input": "再问", "output": "再答"}]},
     [("自己的", "问", "答"), ("", "再问", "再答")]),
    ({"textbox_q_instruction": "填空", "textbox_q_context": "", "textbox_question": "问", "textbox_answer": "答",
      "textbox_answer_analysis": "因为"}, [("系统", "填空\n问", "答；解析：因为")]),
    ({"问题": "问", "答案": True}, [("系统", "问", "true")]),
    ({"conversations": [{"from": "system", "value": "自己的"}, {"from": "human", "value": "问"},
                        {"from": "gpt", "value": "答"}, {"from": "human", "value": "再问"},
                        {"from": "gpt", "value": "再答"}]}, [("自己的", "问", "答"), ("", "再问", "再答")]),
    ({"conversations": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}],
      "system": "自己的"}, [("自己的", "问", "答")]),
    ({"id": 1, "question": "问", "answer": 4}, [("系统", "问", "4")]),
    ({"prompt": "问", "response": "答", "system": "自己的"}, [("自己的", "问", "答")]),
    ({"input": "问", "output": "答"}, [("系统", "问", "答")]),
    ({"instruction": "翻译", "output": "no", "问题": "翻译", "答案": "不"}, [("系统", "翻译", "不")]),
])
@pytest.mark.parametrize("form", [{"lines": True}, {"indent": 4}, {}])
def test_every_usual_json_arrives_as_conversations(tmp_path, record, expected, form):
    source, target = write_json(tmp_path / "any.jsonl", [record, record], **form), tmp_path / "out.jsonl"
    convert(source, target, "系统", Layout("问题", "答案"), AS_IT_IS)
    lines = target.read_text(encoding="utf-8").splitlines()
    conversation = [dict(zip(("system", "input", "output"), turn)) for turn in expected]
    assert [json.loads(line) for line in lines] == [{"conversation": conversation}] * 2


def test_a_record_without_its_answer_is_reported_once_the_fields_are_known(tmp_path):
    records = [{"question": "问", "answer": "答"}, {"question": "没有答案"}, {"answer": "没有问题"}]
    assert pairs(write_json(tmp_path / "a.jsonl", records))[1].empty == [2, 3]


@pytest.mark.parametrize("layout", [Layout(), Layout("问题", "答案")])
def test_unknown_fields_are_answered_with_those_there_are_and_those_looked_for(tmp_path, layout):
    source = write_json(tmp_path / "a.jsonl", [{"id": 1, "q\n": "问", "reply": "答"}], lines=True)
    with pytest.raises(Unreadable) as caught:
        convert(source, tmp_path / "out.jsonl", "", layout)
    assert "a.jsonl 第 1 行的字段不认识：它有“id”“q ”“reply”" in str(caught.value)
    assert "conversations、messages" in str(caught.value)
    assert "question 和 answer、prompt 和 response、input 和 output" in str(caught.value)
    assert ("问题 和 答案" in str(caught.value)) == (layout != Layout())


@settings(deadline=None)  # the disk can be slow
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
def test_every_line_written_is_json_of_what_was_read(tmp_path_factory, turns):
    folder = tmp_path_factory.mktemp("lines")
    conversation = [{"system": "", "input": AS_IT_IS(question + "?"), "output": AS_IT_IS(answer + "!")}
                    for question, answer in turns]
    write_json(folder / "in.jsonl", [{"conversation": conversation}], lines=True)
    convert(folder / "in.jsonl", folder / "out.jsonl", "", cleaning=AS_IT_IS)
    assert [json.loads(line) for line in (folder / "out.jsonl").read_text(encoding="utf-8").split("\n")[:-1]] == [
        {"conversation": conversation}]


def test_a_source_is_known_by_its_content(tmp_path):
    save(tmp_path / "really.xlsx", ["问", "答"], ["首都", "北京"]).rename(tmp_path / "book.csv")
    assert pairs(tmp_path / "book.csv")[0] == [("首都", "北京")]


# Cleaning and the report


@pytest.mark.parametrize(("dirty", "clean"), [
    ("  首 都 是 ", "首都是"), ("Windows  系统", "Windows 系统"), ("首\t都", "首都"), ("首\r\n都\n", "首都"),
    ("A. 北京\nB. 上海", "A. 北京 B. 上海"), ("ＨＴＴＰ１２．５％", "HTTP12.5%"), ("　　段首", "段首"),
    ("是（　　）。", "是（　　）。"), ("你好，世界！", "你好，世界！"), ("零\u200b宽\ufeff\x07", "零宽"),
    ("\ud800坏", "坏"), (" \t\n　", ""), ("&ldquo;冰&nbsp;城&rdquo;", "“冰城”"), ("A&#65294;3&lt;4", "A.3<4"),
    ("&amp;nbsp;首都", "首都"), ("&ａｍｐ;", "&"), ("R&D", "R&D"), ("?a=1&copy=2", "?a=1&copy=2"),
])
def test_dirt_goes_and_chinese_typography_stays(dirty, clean):
    assert Cleaning()(dirty) == clean


@pytest.mark.parametrize(("option", "dirty"), [
    ("spaces", "a  b"), ("spaces", "零\u200b宽"), ("tabs", "a\tb"), ("line_breaks", "a\nb"),
    ("full_width", "ａb"), ("entities", "a&lt;b")])
def test_each_kind_of_dirt_can_be_kept(option, dirty):
    assert Cleaning(**{option: False})(dirty) == dirty != Cleaning()(dirty)


CODE = "分两步：\n\n1. 定义\n2. 返回\n\n```\ndef f(x):\n    if x:\n\treturn 1\n```"


@pytest.mark.parametrize("record", [
    {"instruction": CODE, "input": "", "output": CODE}, {"question": CODE, "answer": CODE},
    {"问题": CODE, "答案": CODE},
    {"conversations": [{"from": "human", "value": CODE}, {"from": "gpt", "value": CODE}]},
    {"conversation": [{"input": CODE, "output": CODE}]},
])
def test_lists_and_code_of_instruction_data_keep_their_lines(tmp_path, record):
    source = write_json(tmp_path / "a.json", [record])
    assert pairs(source, Layout("问题", "答案"))[0] == [(CODE, CODE)]
    (short,), _ = pairs(source, Layout("问题", "答案"), cleaning=Cleaning())
    assert "\n" not in "".join(short)


def test_cells_and_the_fields_of_an_exam_are_one_line_each(book):
    assert answers(book, "A. 北京\nB. 上海") == ["A. 北京 B. 上海"]
    exam = {"textbox_q_context": "A. 北\n京", "textbox_question": "首都", "textbox_answer": "北\n京"}
    assert pairs(write_json(book.parent / "exam.jsonl", [exam], lines=True))[0] == [("A. 北京首都", "北京")]


def test_spaces_go_inside_lines_that_are_kept_and_not_before_them():
    assert Cleaning(line_breaks=False)("if  x:\n    首 都  = 1") == "if x:\n    首都 = 1"


def test_nothing_goes_where_all_cleaning_is_off():
    text = " 零\u200b宽\xad\x07\ufeff \n"
    assert AS_IT_IS(text) == text


def test_the_report_counts_what_cleaning_changed(book):
    save(book, ["问", "答"], ["首都", "北京"], ["省 会", "杭州"], ["省会", "杭\n州"], ["空", " "])
    _, report = pairs(book)
    assert report.cleaned == [3, 4]
    assert "清洗改动了问题或答案，照样写出：2 行（第 3、4 行）" in str(report)
    assert pairs(book, cleaning=AS_IT_IS)[1].cleaned == []


@given(st.text() | st.lists(st.sampled_from(["&", "amp", "lt", ";", "#38", "ａ", " ", "\n", "首"])).map("".join),
       st.builds(Cleaning, *[st.booleans()] * 5))
def test_what_is_clean_stays_as_it_is(text, cleaning):
    assert cleaning(cleaning(text)) == cleaning(text)
    cleaning(text).encode()


def test_the_course_s_own_questions_need_no_cleaning():
    questions = exam_questions(read_relations())
    assert all(Cleaning()(question[key]) == question[key] for question in questions for key in ("question", "answer"))


def test_the_report_counts_every_row_and_says_where(book):
    save(book, ["问", "答"], ["首都", "北京"], ["首 都", "北京市"], ["没有答案", None], [None, "没有问题"], [" ", " "],
         ["长", "长" * 3000], [None, None, "备注"])
    _, report = pairs(book)
    assert (report.read, report.written) == (6, 3)
    assert (report.duplicated, report.empty, report.long) == ([3], [4, 5, 6], [7])
    assert "空（缺问题或答案），没有写出：3 行（第 4、5、6 行）" in str(report)
    assert "读到 6 行，写出 3 行" in str(report)


def test_the_raw_data_is_what_its_script_makes_and_cleans_to_the_exam(tmp_path):
    main(tmp_path / "raw")
    exam = {(question["question"], question["answer"]) for question in exam_questions(read_relations())}
    for name in ("exam.xlsx", "exam.docx", "coig_exam.jsonl", "classic.jsonl"):
        made, committed = (list(read(folder / name, Layout("A", "D"))[1]) for folder in (tmp_path / "raw", FOLDER))
        assert made == committed
    for name in ("exam.xlsx", "exam.docx", "classic.jsonl"):
        convert(FOLDER / name, tmp_path / "out.jsonl", EXAM_SYSTEM, Layout("A", "D"))
        for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines():
            (turn,) = json.loads(line)["conversation"]
            assert (turn["input"], turn["output"]) in exam
            assert turn["system"] == EXAM_SYSTEM


# Bad input


def spoil(path, content):
    path.write_bytes(content)
    return path


def a_bomb(path):
    """Seventy megabytes of nothing in a small zip."""
    save(path, ["问", "答"])
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/media/image1.png", bytes(70 * 2**20))
    return path


def a_lie(path):
    """A sheet that unpacks to more than its header says."""
    save(path, ["问", "答"], *[["首都", "北京"]] * 1000)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        size = archive.getinfo("xl/worksheets/sheet1.xml").file_size
    return spoil(path, content.replace(size.to_bytes(4, "little"), (size // 2).to_bytes(4, "little")))


def without_places(path):
    return edit(save(path, ["问", "答"], ["首都", "北京"]), sheet=(r'<c r="\w+"', "<c"))


def with_one_string_too_few(path):
    return edit(save(path, ["问", "答"], ["首都", "北京"]), sheet=('t="inlineStr"><is>.*?</is>', 't="s"><v>7</v>'))


def ole(kind):
    """The beginning of a file of the old Office, or of a new one with a password."""
    return lambda path: spoil(path, OLE + bytes(504) + kind.encode("utf-16-le"))


def of(content):
    """A file with that content."""
    return lambda path: spoil(path, content)


BAD = {
    "renamed .xls": ("a.xlsx", ole("Workbook"), "旧版.*另存为"),
    "with a password": ("a.xlsx", ole("EncryptedPackage"), "有密码.*取消密码"),
    "truncated": ("a.xlsx", lambda path: spoil(path, save(path, ["问"]).read_bytes()[:-700]), "不完整.*重新下载"),
    "a zip bomb": ("a.xlsx", a_bomb, "压缩炸弹"),
    "larger than it says": ("a.xlsx", a_lie, "已损坏或不完整"),
    "cells without places": ("a.xlsx", without_places, "另存"),
    "a string that is not there": ("a.xlsx", with_one_string_too_few, "已损坏或不完整"),
    "a comment": ("a.xlsx", lambda path: edit(save(path, ["问"]), sheet=("<sheetData", "<!-- --><sheetData")), "另存"),
    "not Office": ("a.xlsx", lambda path: zipfile.ZipFile(path, "w").close() or path, "不是 .xlsx 也不是 .docx"),
    "only headers": ("a.xlsx", lambda path: save(path, ["问", "答"]), "没有一条完整的问答"),
    "a web page": ("a.xls", of(b"<html><table>"), "网页.*另存为"),
    "empty": ("a.csv", of(b""), "空的"),
    "a picture": ("a.csv", of(b"\x89PNG\r\n\x1a\n\0\0"), "不是文本"),
    "half a character": ("a.csv", of("问,答\n".encode("utf-16") * 9 + b"x"), "不是完整的 UTF-16"),
    "an open quote": ("a.csv", of(b'q,a\n"x,' + b"y" * 200_000), "a.csv 第 .* 行读不下去.*引号"),
    "a broken line": ("a.jsonl", of(b'{"messages": []}\n{"messages": [}\n'), "第 2 行不是完整的 JSON"),
    "a broken array": ("a.json", of(b'[{"messages": []},\n{'), "不是完整的 JSON，读到第 2 行"),
    "a bottomless array": ("a.json", of(b"[" * 100_000), "套得太深"),
    "unknown fields": ("a.jsonl", of(b'{"q": 1}\n'), "第 1 行的字段不认识.*Layout"),
    "a line that is no record": ("a.jsonl", of(b'{"messages": []}\n3\n'), "第 2 行的字段不认识"),
    "a dialogue out of turn": ("a.jsonl", of(b'{"messages": [{"role": "assistant"}]}'), "assistant 不该"),
    "missing": ("a.xlsx", lambda path: path, "找不到文件"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_explained_in_a_sentence_and_leaves_the_output_as_it_was(tmp_path, kind):
    name, make, message = BAD[kind]
    target = tmp_path / "out.jsonl"
    target.write_text("老的结果", encoding="utf-8")
    with pytest.raises(Unreadable, match=message) as caught:
        convert(make(tmp_path / name), target, EXAM_SYSTEM)
    assert str(caught.value).endswith("。")
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
    assert target.read_text(encoding="utf-8") == "老的结果"
    assert not list(tmp_path.glob("*.partial"))


def test_a_missing_sheet_or_header_is_answered_with_those_there_are(book):
    save(book, ["题目", "解答"], ["首都", "北京"])
    with pytest.raises(Unreadable, match="没有工作表“甲”，只有：题库"):
        pairs(book, Layout(sheet="甲"))
    with pytest.raises(Unreadable, match="没有表头“题目”和“答案”，第一行是：题目、解答"):
        pairs(book, Layout("题目", "答案"))


def test_a_failure_in_the_last_row_leaves_the_output_as_it_was(book):
    save(book, ["问", "答"], *[["首都", "北京"]] * 5000, ["一加一", "=1+1"])
    (book.parent / "out.jsonl").write_text("老的结果", encoding="utf-8")
    with pytest.raises(Unreadable, match="B5002"):
        pairs(book)
    assert (book.parent / "out.jsonl").read_text(encoding="utf-8") == "老的结果"


def test_two_writers_of_one_file_each_write_a_whole_one(tmp_path):
    target = tmp_path / "kept.json"
    with replaced(target) as first:
        first.write("先")
        with replaced(target) as second:
            second.write("后来")
        assert target.read_text(encoding="utf-8") == "后来"
        first.write("开始的")
    assert target.read_text(encoding="utf-8") == "先开始的"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path):
    code = ("import os, sys; from pathlib import Path; from helpers.machine.files import replaced\n"
            "sys.addaudithook(lambda event, args: event == 'os.rename' and print('rename', flush=True))\n"
            "sync = os.fsync; os.fsync = lambda file: (print('fsync', flush=True), sync(file))\n"
            f"with replaced(Path({str(tmp_path / 'kept.json')!r})) as file: file.write('全')")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout.split() == ["fsync", "rename"]


def test_what_a_killed_writer_leaves_is_no_result(tmp_path):
    code = ("import os, sys; from pathlib import Path; from helpers.machine.files import replaced\n"
            "with replaced(Path(sys.argv[1])) as file: file.write('半'); file.flush(); os._exit(9)")
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "kept.json"], cwd=ROOT, check=False).returncode == 9
    (left,) = tmp_path.iterdir()
    assert (left.suffix, left.name[0]) == (".partial", ".")
    with replaced(tmp_path / "kept.json") as file:
        file.write("全")
    assert (tmp_path / "kept.json").read_text(encoding="utf-8") == "全"


def test_a_file_written_can_be_read_by_whoever_could_read_one_written_plainly(tmp_path):
    with replaced(tmp_path / "kept.json"), (tmp_path / "plain.json").open("w"):
        pass
    assert (tmp_path / "kept.json").stat().st_mode == (tmp_path / "plain.json").stat().st_mode


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_workbook_is_read_or_refused_and_never_crashes(tmp_path, seed):
    rng = random.Random(seed)
    path = save(tmp_path / "book.xlsx", ["问", "答"], *[[f"首都{i}", i] for i in range(50)])
    content = bytearray(path.read_bytes())
    for _ in range(rng.randrange(1, 20)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(content[:rng.randrange(len(content) // 2, len(content))] if seed % 2 else content)
    with suppress(Unreadable):
        pairs(path)


# Memory


# Not ru_maxrss: a child's begins with its parent's, and pytest is large.
MEASURE = """
import re, sys
from helpers.data.convert import convert
convert(sys.argv[1], sys.argv[2], "系统")
print(int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) // 1024)
"""


def peak(path, rows):
    """Peak MiB of converting a sheet of that many rows, each with a text of its own, shared as Excel does."""
    save(path, ["问", "答"])
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    head, tail = members.pop("xl/worksheets/sheet1.xml").split(b"</sheetData>")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
        for name, content in members.items():
            new.writestr(name, content)
        with new.open("xl/worksheets/sheet1.xml", "w", force_zip64=True) as sheet:
            sheet.write(head)
            for row in range(rows):
                sheet.write(b'<row r="%d"><c r="A%d" t="s"><v>%d</v></c><c r="B%d"><v>%d</v></c></row>' % (
                    row + 2, row + 2, row, row + 2, row))
            sheet.write(b"</sheetData>" + tail)
        with new.open("xl/sharedStrings.xml", "w", force_zip64=True) as strings:
            strings.write(b"<sst>")
            for row in range(rows):
                strings.write(f"<si><t>第 {row} 个问题，写得和真的一样长，免得内存里看不出来。</t></si>".encode())
            strings.write(b"</sst>")
    done = subprocess.run([sys.executable, "-c", MEASURE, path, path.with_suffix(".jsonl")], cwd=ROOT, check=True,
                          stdout=subprocess.PIPE, text=True)
    return int(done.stdout)


def test_memory_does_not_grow_with_the_sheet(book):
    small, large = peak(book, 20_000), peak(book, 200_000)
    assert large < small + 20


def test_a_date_far_away_is_shown_as_a_number():
    assert display(1e9, "yyyy/m/d") == "1000000000"
    assert display((datetime(9999, 12, 31) - datetime(1899, 12, 30)) / timedelta(days=1), "yyyy/m/d") == "9999/12/31"
