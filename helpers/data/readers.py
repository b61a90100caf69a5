"""The samples of a source, whatever its format: a workbook, a Word file, CSV, or any usual JSON."""
import csv
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from string import ascii_uppercase
from typing import NamedTuple

from helpers.data import Unreadable, xlsx
from helpers.data.cleaning import BREAKS

OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
LETTERS = re.compile("[A-Z]{1,3}")
FIRST_COLUMNS = [first + second for first in ("", "A", "B", "C") for second in ascii_uppercase]
HEADER_ROWS = 20


@dataclass(frozen=True)
class Layout:
    """Where a table keeps its questions and answers: columns by letter or by header, the sheet by name."""

    question: str = "A"
    answer: str = "B"
    sheet: str | None = None
    header_row: int = 1  # for columns by letter; headers are found where they are


USUAL_LAYOUT = Layout()


class Turn(NamedTuple):
    """A question and its answer, and the system prompt that the source gives them, if it gives one."""

    system: str | None
    question: str
    answer: str


class Sample(NamedTuple):
    """Where a sample is in its source (which row, question or record), and its turns."""

    place: int
    turns: list[Turn]
    hidden: bool = False  # a row that nobody sees in Excel
    prose: bool = False  # instruction data, where line breaks and tabs mean something


def read(source: str | Path, layout: Layout = USUAL_LAYOUT) -> tuple[str, Iterator[Sample]]:
    """The unit that a source is counted in, and its samples; the format is known by the content, not by the name."""
    path = Path(source)
    if not path.is_file():
        raise Unreadable(f"找不到文件 {path}：请检查路径。")
    with path.open("rb") as file:
        head = file.read(len(OLD_OFFICE))
    if head.startswith(b"PK"):
        return _read_office(path, layout)
    if head == OLD_OFFICE:
        if "EncryptedPackage".encode("utf-16-le") in path.read_bytes():
            raise Unreadable(f"{path.name} 有密码：请在 Excel 里打开，取消密码后另存。")
        raise Unreadable(f"{path.name} 其实是旧版的 .xls 或 .doc，改名没有用：请打开后另存为 .xlsx 或 .docx。")
    return _read_text(path, _encoding(path, head), layout)


def _read_office(path: Path, layout: Layout) -> tuple[str, Iterator[Sample]]:
    with xlsx.open_archive(path) as archive:
        parts = archive.namelist()
    if "xl/workbook.xml" in parts:
        return "行", _table_samples(partial(xlsx.rows, path, layout.sheet), layout, path.name)
    if "word/document.xml" in parts:
        return "题", _word_samples(path)
    raise Unreadable(f"{path.name} 既不是 .xlsx 也不是 .docx：请用 Excel 或 WPS 打开，另存为 .xlsx。")


def _read_text(path: Path, encoding: str, layout: Layout) -> tuple[str, Iterator[Sample]]:
    with path.open(encoding=encoding) as file:
        first = next((line.lstrip()[0] for line in file if line.strip()), "")
    if first == "[":
        return "条", _json_samples(_json_array(path, encoding), layout)
    if first == "{":
        return "行", _json_samples(_json_lines(path, encoding), layout)
    if first in ("", "<"):
        raise Unreadable(f"{path.name} {'是网页' if first else '是空的'}，不是表格：请打开后另存为 .xlsx。")
    return "行", _table_samples(partial(_csv_rows, path, encoding), layout, path.name)


# Word


def _word_samples(path: Path) -> Iterator[Sample]:
    from helpers.data import word  # slow to import, and seldom needed

    for number, (question, answer) in enumerate(word.questions(path), 1):
        yield Sample(number, [Turn(None, question, answer)])


# Tables


def _table_samples(rows: Callable[[Sequence[str]], Iterator[xlsx.Row]], layout: Layout, name: str) -> Iterator[Sample]:
    """The samples of a table, of which a function gives the rows with the texts of some columns."""
    question, answer, header_row = _columns(rows, layout, name)
    for number, hidden, texts in rows((question, answer)):
        if number > header_row and texts:
            yield Sample(number, [Turn(None, texts.get(question, ""), texts.get(answer, ""))], hidden)


def _columns(rows: Callable[[Sequence[str]], Iterator[xlsx.Row]], layout: Layout, name: str) -> tuple[str, str, int]:
    """The letters of the two columns, and the row of their headers."""
    if LETTERS.fullmatch(layout.question) and LETTERS.fullmatch(layout.answer):
        return layout.question, layout.answer, layout.header_row
    first_rows = list(islice(rows(FIRST_COLUMNS), HEADER_ROWS))
    for number, _, texts in first_rows:
        columns = {text.strip(): column for column, text in reversed(texts.items())}  # of equal headers the first
        if layout.question in columns and layout.answer in columns:
            return columns[layout.question], columns[layout.answer], number
    first_row = "、".join(first_rows[0][2].values()) if first_rows else ""
    raise Unreadable(f"{name} 的前 {HEADER_ROWS} 行里没有表头“{layout.question}”和“{layout.answer}”，"
                     f"第一行是：{first_row}；请改列名。")


def _csv_rows(path: Path, encoding: str, columns: Sequence[str]) -> Iterator[xlsx.Row]:
    with path.open(encoding=encoding, newline="") as file:
        delimiter = max(",\t;", key=file.readline().count)
        file.seek(0)
        reader = csv.reader(file, delimiter=delimiter)
        try:
            for number, cells in enumerate(reader, 1):
                by_column = zip(FIRST_COLUMNS, cells)
                yield number, False, {column: text for column, text in by_column if text and column in columns}
        except csv.Error as error:
            place = f"{path.name} 第 {reader.line_num} 行"
            raise Unreadable(f"{place}读不下去（{error}）：多半是引号没有成对，请改正。") from error


# Text


def _encoding(path: Path, head: bytes) -> str:
    """UTF-8 or, where most lines with Chinese in them are not, GB18030; UTF-16 says so itself."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            with path.open(encoding="utf-16") as file:
                deque(file, maxlen=0)
            return "utf-16"
        except UnicodeError as error:
            raise Unreadable(f"{path.name} 不是完整的 UTF-16（{error}）：请用编辑器打开，改正后存成 UTF-8。") from error
    chinese_lines = 0
    not_utf8 = []
    all_gb18030 = True
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if b"\0" in line:
                raise Unreadable(f"{path.name} 不是文本，也不是认识的文件：请另存为 .xlsx、.csv 或 .docx。")
            if line.isascii():
                continue
            chinese_lines += 1
            if not _decodes(line, "utf-8"):
                not_utf8.append(number)
            all_gb18030 = all_gb18030 and _decodes(line, "gb18030")
    if not not_utf8:
        return "utf-8-sig"
    if all_gb18030 and len(not_utf8) * 2 > chinese_lines:
        return "gb18030"
    raise Unreadable(f"{path.name} 第 {not_utf8[0]} 行的编码既不是 UTF-8 也不是 GB18030：请改正后存成 UTF-8。")


def _decodes(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


# JSON


def _json_lines(path: Path, encoding: str) -> Iterator[tuple[int, str, object]]:
    """The number, the place and the content of each line."""
    with path.open(encoding=encoding) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                place = f"{path.name} 第 {number} 行"
                yield number, place, _json(line, place)


def _json_array(path: Path, encoding: str) -> Iterator[tuple[int, str, object]]:
    """The number, the place and the content of each element."""
    for number, record in enumerate(_json(path.read_text(encoding=encoding), path.name), 1):
        yield number, f"{path.name} 第 {number} 条", record


def _json(text: str, place: str) -> object:
    try:
        return json.loads(text, parse_int=str, parse_float=str)
    except json.JSONDecodeError as error:
        at = f"{error.lineno} 行第 {error.colno} 个字"
        raise Unreadable(f"{place}不是完整的 JSON，读到第 {at}出错（{error.msg}）：请改正或重新导出。") from error
    except RecursionError as error:
        raise Unreadable(f"{place}的 JSON 套得太深：请改正。") from error


def _json_samples(records: Iterable[tuple[int, str, object]], layout: Layout) -> Iterator[Sample]:
    """The samples of numbered records; a field that one of them had may be missing in the next, as an empty cell is."""
    layout_fields = {(layout.question, layout.answer): _pair}
    if layout == USUAL_LAYOUT:
        forms, looked_for = FORMS | layout_fields, FORMS
    else:
        forms = looked_for = layout_fields | FORMS
    fields = ()
    for number, place, record in records:
        names = record.keys() if isinstance(record, dict) else set()
        as_before = fields if names & set(fields) else ()
        fields = next((fields for fields in forms if names >= set(fields)), as_before)
        if not fields:
            raise Unreadable(_unknown(place, names, looked_for))
        try:
            turns = forms[fields](record, *fields)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise Unreadable(f"{place}的 {'、'.join(fields)} 读不懂（{error}）：请改正这一处，或删掉它。") from error
        yield Sample(number, turns, prose=fields != COIG_EXAM)


def _unknown(place: str, names: Iterable[str], looked_for: Iterable[tuple[str, ...]]) -> str:
    """What to say of a record that has none of the forms."""
    there = BREAKS.sub(" ", "".join(f"“{name}”" for name in names))
    there = f"它有{there}" if there else "它没有字段名"
    wanted = "、".join(" 和 ".join(fields) for fields in looked_for)
    return f"{place}的字段不认识：{there}；依次找过 {wanted}，都没有。请改字段名，或在 Layout 里写明它们。"


def _conversation(record: dict, conversation: str) -> list[Turn]:
    """The turns of XTuner."""
    return [Turn(_text(turn.get("system")), _text(turn.get("input")), _text(turn.get("output")))
            for turn in record[conversation]]


def _dialogue(record: dict, messages: str) -> list[Turn]:
    """The turns of OpenAI's messages (role, content) or ShareGPT's conversations (from, value)."""
    turns = []
    system, question = _text(record.get("system")), None
    for message in record[messages]:
        role = message.get("from") or message.get("role")
        role = SHAREGPT_ROLES.get(role, role)
        content = _text(message.get("value") or message.get("content"))
        if role == "system" and question is None:
            system = content
        elif role == "user" and question is None:
            question = content
        elif role == "assistant" and question is not None:
            turns.append(Turn(system, question, content))
            system = question = None
        else:
            raise ValueError(f"{role} 不该出现在这里")
    if question is not None:
        turns.append(Turn(system, question, ""))
    return turns


def _exam(record: dict, question: str) -> list[Turn]:
    """The turn of COIG's exam: instruction, context and question, answer and analysis."""
    asked = [_text(record.get(name)) for name in ("textbox_q_instruction", "textbox_q_context", question)]
    answered = [_text(record.get(name)) for name in ("textbox_answer", "textbox_answer_analysis")]
    return [Turn(None, "\n".join(filter(None, asked)), "；解析：".join(filter(None, answered)))]


def _instruction(record: dict, question: str, answer: str) -> list[Turn]:
    """The turns of Alpaca: a system prompt, the history, an input below the question."""
    turns = [Turn(None, _text(earlier), _text(reply)) for earlier, reply in record.get("history") or ()]
    asked = [_text(record.get(name)) for name in dict.fromkeys((question, "input"))]
    turns.append(Turn(None, "\n".join(filter(None, asked)), _text(record.get(answer))))
    turns[0] = turns[0]._replace(system=_text(record.get("system")))
    return turns


def _pair(record: dict, question: str, answer: str) -> list[Turn]:
    """The turn in the fields that the layout names."""
    return [Turn(None, _text(record.get(question)), _text(record.get(answer)))]


COIG_EXAM = ("textbox_question",)
# A record is read by the first of these of which it has all fields.
FORMS: dict[tuple[str, ...], Callable[..., list[Turn]]] = {
    ("conversation",): _conversation,
    ("conversations",): _dialogue,
    ("messages",): _dialogue,
    COIG_EXAM: _exam,
    ("instruction", "output"): _instruction,
    ("question", "answer"): _instruction,
    ("prompt", "response"): _instruction,
    ("input", "output"): _instruction,
}


def _text(value: object) -> str:
    """A field as text; OpenAI's content can be a list of parts."""
    if value is None:
        return ""
    if isinstance(value, list):
        return "".join(part["text"] for part in value)
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} 不是文字")
    return value
