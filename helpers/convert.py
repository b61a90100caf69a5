"""Lesson 01: from a spreadsheet, a Word file or any usual JSON to XTuner's conversations, one line of JSON each."""
import csv
import html
import json
import os
import re
from array import array
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from secrets import token_hex
from string import ascii_letters, ascii_uppercase, digits

from helpers import workbook
from helpers.workbook import Unreadable, open_archive

OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
ROLES = {"human": "user", "gpt": "assistant"}  # as ShareGPT calls them
LETTERS = re.compile("[A-Z]{1,3}")
FIRST_COLUMNS = [first + second for first in ("", "A", "B", "C") for second in ascii_uppercase]
HEADER_ROWS = 20
QUOTE = json.JSONEncoder(ensure_ascii=False).encode

CHINESE = "[\u2e80-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff]"
SPACE = "[ \xa0\u2000-\u200a\u202f\u205f]"
BREAKS = re.compile("(?:\r\n|[\n\r\x0b\x0c\x85\u2028\u2029])+")
SPACE_IN_CHINESE = re.compile(f"(?<={CHINESE}){SPACE}+(?={CHINESE})")
SPACES = re.compile(f"(?<!^)(?<!{SPACE}){SPACE}+", re.MULTILINE)  # not those that begin a line: they indent it
INVISIBLE = re.compile("[\x00-\x08\x0e-\x1f\x7f\xad\u200b\u2060\ufeff\ufffe\uffff]")
UNWRITABLE = re.compile("[\ud800-\udfff]")
HALF_WIDTH = {ord(char) + 0xFEE0: char for char in digits + ascii_letters + "%&+-./=@#*<>_"}
ENTITY = re.compile("&(?:[A-Za-z][A-Za-z0-9]*|#[0-9]+|#[Xx][0-9A-Fa-f]+);")  # with its end: not &copy in an address
SUSPECT = re.compile("[\x00- &\x7f-\xa0\xad\u2000-\u200b\u2028-\u202f\u205f\u2060\ufeff\ud800-\udfff\ufffe\uffff"
                     "０-９Ａ-Ｚａ-ｚ％＆＋－．／＝＠＃＊＜＞＿]")


@dataclass(frozen=True)
class Layout:
    """Where a table keeps its questions and answers: columns by letter or by header, the sheet by name."""

    question: str = "A"
    answer: str = "B"
    sheet: str | None = None
    header_row: int = 1  # for columns by letter; headers are found where they are


@dataclass(frozen=True)
class Cleaning:
    """Which dirt goes. Chinese punctuation stays, and so does the wide space inside: the exam's blank to fill."""

    spaces: bool = True  # and characters that nobody can see
    tabs: bool = True
    line_breaks: bool = True
    full_width: bool = True
    entities: bool = True

    def __call__(self, text):
        """The text without that dirt, and without what no file in UTF-8 can hold."""
        if not SUSPECT.search(text) and text == text.strip():
            return text
        text = UNWRITABLE.sub("", text)
        if self.spaces:
            text = INVISIBLE.sub("", text)
        if self.full_width:
            text = text.translate(HALF_WIDTH)
        if self.entities and (unescaped := ENTITY.sub(lambda found: html.unescape(found[0]), text)) != text:
            return self(unescaped)  # it may hold any dirt, another entity too
        if self.line_breaks:
            text = BREAKS.sub(" ", text)
        if self.tabs:
            text = text.replace("\t", " ")
        if self.spaces:
            text = SPACES.sub(" ", SPACE_IN_CHINESE.sub("", text)).strip()
        return text if text.strip() else ""


PROSE = Cleaning(tabs=False, line_breaks=False)  # lists, paragraphs and code live by them


class Prose(list):
    """The turns of instruction data, where lines mean something; those of an exam's cells are a plain list."""


@dataclass
class Report:
    """What became of each row: how many were read and written, and where the others and the doubtful ones are."""

    source: str
    unit: str
    max_chars: int
    read: int = 0
    written: int = 0
    empty: list = field(default_factory=list)
    hidden: list = field(default_factory=list)
    duplicated: list = field(default_factory=list)
    long: list = field(default_factory=list)
    cleaned: list = field(default_factory=list)

    def __str__(self):
        parts = {
            "空（缺问题或答案），没有写出": self.empty,
            "隐藏（在 Excel 里看不见），没有写出": self.hidden,
            "重复（问题前面出现过），照样写出": self.duplicated,
            f"过长（超过 {self.max_chars} 字，训练时会被截断），照样写出": self.long,
            "清洗改动了问题或答案，照样写出": self.cleaned,
        }
        lines = [f"{self.source}：读到 {self.read} {self.unit}，写出 {self.written} {self.unit}"]
        return "\n".join(lines + [f"  {name}：{len(places)} {self.unit}{self._where(places)}"
                                  for name, places in parts.items()])

    def _where(self, places):
        shown = "、".join(map(str, places[:10])) + ("……" if len(places) > 10 else "")
        return f"（第 {shown} {self.unit}）" if places else ""


def convert(source, target, system, layout=Layout(), cleaning=None, max_chars=2048):
    """Writes a source's conversations to a JSON Lines file, and reports; a failure leaves the file as it was.

    Unless a cleaning is given, an exam's cells become one line each, and instruction data keeps its lines.
    """
    unit, samples = read(source, layout)
    report = Report(Path(source).name, unit, max_chars)
    clean_cell, clean_prose = (lru_cache(2**12)(cleaning or usual) for usual in (Cleaning(), PROSE))
    keys, places = array("q"), array("Q")
    with replaced(Path(target)) as file:
        for place, dirty in samples:
            report.read += 1
            if dirty is None:
                report.hidden.append(place)
                continue
            clean = clean_prose if isinstance(dirty, Prose) else clean_cell
            turns = [(own, clean(question), clean(answer)) for own, question, answer in dirty]
            questions, answers = [turn[1] for turn in turns], [turn[2] for turn in turns]
            if not turns or "" in questions or "" in answers:
                report.empty.append(place)
                continue
            if len("".join(questions + answers)) > max_chars:
                report.long.append(place)
            if turns != dirty:
                report.cleaned.append(place)
            keys.append(hash("\n".join(questions)))
            places.append(place)
            file.write(_line(turns, system))
        report.written = len(places)
        report.duplicated = [places[index] for index in _repeated(keys)]
        if not report.written:
            raise Unreadable(f"{report.source} 里没有一条完整的问答（读到 {report.read} {unit}）："
                             "请检查工作表、列名或字段名。")
    return report


def read(source, layout=Layout()):
    """What a source counts in, and its samples: where each is and its turns of system prompt, question and answer.

    The source is known by its content, not by its name. Of a hidden row there is only the place.
    """
    path = Path(source)
    if not path.is_file():
        raise Unreadable(f"找不到文件 {path}：请检查路径。")
    with path.open("rb") as file:
        head = file.read(len(OLE))
    if head.startswith(b"PK"):
        with open_archive(path) as archive:
            parts = set(archive.namelist())
        if "xl/workbook.xml" in parts:
            return "行", _table(partial(workbook.rows, path, layout.sheet), layout, path.name)
        if "word/document.xml" in parts:
            from helpers import word  # slow to import, and seldom needed

            return "题", ((number, [(None, *pair)]) for number, pair in enumerate(word.questions(path), 1))
        raise Unreadable(f"{path.name} 既不是 .xlsx 也不是 .docx：请用 Excel 或 WPS 打开，另存为 .xlsx。")
    if head == OLE:
        if "EncryptedPackage".encode("utf-16-le") in path.read_bytes():
            raise Unreadable(f"{path.name} 有密码：请在 Excel 里打开，取消密码后另存。")
        raise Unreadable(f"{path.name} 其实是旧版的 .xls 或 .doc，改名没有用：请打开后另存为 .xlsx 或 .docx。")
    encoding = _encoding(path, head)
    with path.open(encoding=encoding) as file:
        first = next((line.lstrip()[0] for line in file if line.strip()), "")
    if first == "[":
        return "条", _json_array(path, encoding, layout)
    if first == "{":
        return "行", _json_lines(path, encoding, layout)
    if first in ("", "<"):
        raise Unreadable(f"{path.name} {'是网页' if first else '是空的'}，不是表格：请打开后另存为 .xlsx。")
    return "行", _table(partial(_csv_rows, path, encoding), layout, path.name)


@contextmanager
def replaced(target):
    """A file to write that takes the target's place when it is whole and on the disk; each writer has its own."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial_file = target.with_name(f".{target.name}.{token_hex(4)}.partial")
    try:
        with partial_file.open("x", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial_file.replace(target)
    finally:
        partial_file.unlink(missing_ok=True)


def _line(turns, system):
    parts = []
    for own, question, answer in turns:
        parts.append(f'{{"system": {QUOTE(own or system)}, "input": {QUOTE(question)}, "output": {QUOTE(answer)}}}')
        system = ""  # it comes before the first turn only
    return '{"conversation": [' + ", ".join(parts) + "]}\n"


def _repeated(keys):
    """The indexes of keys met before; a share of the keys at a time, so that a million of them take little memory."""
    shares, repeated = len(keys) // 2**17 + 1, []
    for share in range(shares):
        seen = set()
        for index, key in enumerate(keys):
            if key % shares == share:
                if key in seen:
                    repeated.append(index)
                seen.add(key)
    return sorted(repeated)


def _table(rows, layout, name):
    """The samples of a table, from its function that gives the rows of some columns."""
    (question, answer), header = _columns(rows, layout, name)
    for number, hidden, texts in rows((question, answer)):
        if number > header and texts:
            yield number, None if hidden else [(None, texts.get(question, ""), texts.get(answer, ""))]


def _columns(rows, layout, name):
    """The letters of the two columns, and the row of their headers."""
    wanted = layout.question, layout.answer
    if all(map(LETTERS.fullmatch, wanted)):
        return wanted, layout.header_row
    seen = list(islice(rows(FIRST_COLUMNS), HEADER_ROWS))
    for number, _, texts in seen:
        columns = {text.strip(): column for column, text in reversed(texts.items())}
        if all(header in columns for header in wanted):
            return [columns[header] for header in wanted], number
    first = "、".join(seen[0][2].values()) if seen else ""
    raise Unreadable(f"{name} 的前 {HEADER_ROWS} 行里没有表头“{'”和“'.join(wanted)}”，第一行是：{first}；请改列名。")


def _encoding(path, head):
    """UTF-8 or, where most lines with Chinese in them are not, GB18030; UTF-16 says so itself."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            with path.open(encoding="utf-16") as file:
                deque(file, maxlen=0)
            return "utf-16"
        except UnicodeError as error:
            raise Unreadable(f"{path.name} 不是完整的 UTF-16（{error}）：请用编辑器打开，改正后存成 UTF-8。") from error
    chinese, failed, also_gb18030 = 0, [], True
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if b"\0" in line:
                raise Unreadable(f"{path.name} 不是文本，也不是认识的文件：请另存为 .xlsx、.csv 或 .docx。")
            if not line.isascii():
                chinese += 1
                failed += [] if _decodes(line, "utf-8") else [number]
                also_gb18030 = also_gb18030 and _decodes(line, "gb18030")
    if not failed:
        return "utf-8-sig"
    if also_gb18030 and len(failed) * 2 > chinese:
        return "gb18030"
    raise Unreadable(f"{path.name} 第 {failed[0]} 行的编码既不是 UTF-8 也不是 GB18030：请改正后存成 UTF-8。")


def _decodes(line, encoding):
    try:
        return bool(line.decode(encoding))
    except UnicodeDecodeError:
        return False


def _csv_rows(path, encoding, columns):
    with path.open(encoding=encoding, newline="") as file:
        delimiter = max(",\t;", key=file.readline().count)
        file.seek(0)
        reader = csv.reader(file, delimiter=delimiter)
        try:
            for number, fields in enumerate(reader, 1):
                yield number, False, {name: text for name, text in zip(FIRST_COLUMNS, fields)
                                       if name in columns and text}
        except csv.Error as error:
            place = f"{path.name} 第 {reader.line_num} 行"
            raise Unreadable(f"{place}读不下去（{error}）：多半是引号没有成对，请改正。") from error


def _json_lines(path, encoding, layout):
    with path.open(encoding=encoding) as file:
        places = ((number, f"{path.name} 第 {number} 行", line) for number, line in enumerate(file, 1) if line.strip())
        yield from _json_samples(((number, place, _json(line, place)) for number, place, line in places), layout)


def _json_array(path, encoding, layout):
    records = enumerate(_json(path.read_text(encoding=encoding), path.name), 1)
    yield from _json_samples(((number, f"{path.name} 第 {number} 条", record) for number, record in records), layout)


def _json(text, place):
    try:
        return json.loads(text, parse_int=str, parse_float=str)
    except json.JSONDecodeError as error:
        at = f"{error.lineno} 行第 {error.colno} 个字"
        raise Unreadable(f"{place}不是完整的 JSON，读到第 {at}出错（{error.msg}）：请改正或重新导出。") from error
    except RecursionError as error:
        raise Unreadable(f"{place}的 JSON 套得太深：请改正。") from error


def _json_samples(records, layout):
    """The samples of numbered records; a field that one of them had may be missing in the next, as an empty cell is."""
    own = {(layout.question, layout.answer): _pair}
    forms = FORMS | own if layout == Layout() else own | FORMS
    known = ()
    for number, place, record in records:
        names = record.keys() if isinstance(record, dict) else set()
        known = next((form for form in forms if names >= set(form)), known if names & set(known) else ())
        if not known:
            raise Unreadable(_unknown(place, names, FORMS if layout == Layout() else forms))
        try:
            yield number, forms[known](record, *known)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise Unreadable(f"{place}的 {'、'.join(known)} 读不懂（{error}）：请改正这一处，或删掉它。") from error


def _unknown(place, names, forms):
    """What to say of a record that has none of the forms."""
    there = BREAKS.sub(" ", "".join(f"“{name}”" for name in names))
    there = f"它有{there}" if there else "它没有字段名"
    wanted = "、".join(" 和 ".join(form) for form in forms)
    return f"{place}的字段不认识：{there}；依次找过 {wanted}，都没有。请改字段名，或在 Layout 里写明它们。"


def _conversation(record, conversation):
    """The turns of XTuner."""
    return Prose(tuple(_text(turn.get(key)) for key in ("system", "input", "output")) for turn in record[conversation])


def _dialogue(record, messages):
    """The turns of OpenAI's messages (role, content) or ShareGPT's conversations (from, value)."""
    turns, system, question = Prose(), _text(record.get("system")), None
    for message in record[messages]:
        role, content = message.get("from") or message.get("role"), message.get("value") or message.get("content")
        role, content = ROLES.get(role, role), _text(content)
        if role == "system" and question is None:
            system = content
        elif role == "user" and question is None:
            question = content
        elif role == "assistant" and question is not None:
            turns.append((system, question, content))
            system = question = None
        else:
            raise ValueError(f"{role} 不该出现在这里")
    return turns if question is None else Prose([*turns, (system, question, "")])


def _exam(record, question):
    """The turn of COIG's exam."""
    asked = map(_text, map(record.get, ("textbox_q_instruction", "textbox_q_context", question)))
    answer, analysis = _text(record.get("textbox_answer")), _text(record.get("textbox_answer_analysis"))
    return [(None, "\n".join(filter(None, asked)), "；解析：".join(filter(None, (answer, analysis))))]


def _instruction(record, question, answer):
    """The turns of Alpaca: a system prompt, the history, an input below the question."""
    asked = [_text(record.get(name)) for name in dict.fromkeys((question, "input"))]
    system, *earlier = _text(record.get("system")), *(record.get("history") or ())
    pairs = [*earlier, ("\n".join(filter(None, asked)), record.get(answer))]
    return Prose((system if index == 0 else None, _text(q), _text(a)) for index, (q, a) in enumerate(pairs))


def _pair(record, question, answer):
    """The turn in the fields that the layout names."""
    return Prose([(None, _text(record.get(question)), _text(record.get(answer)))])


# A record is read by the first of these of which it has all fields.
FORMS = {
    ("conversation",): _conversation,
    ("conversations",): _dialogue,
    ("messages",): _dialogue,
    ("textbox_question",): _exam,
    ("instruction", "output"): _instruction,
    ("question", "answer"): _instruction,
    ("prompt", "response"): _instruction,
    ("input", "output"): _instruction,
}


def _text(value):
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
