"""Excel workbooks, streamed: the rows of a sheet as a person sees them, in memory that does not grow with the sheet.

A sheet is cut into pieces between its rows, and only the cells asked for are taken out of a piece, because reading
through openpyxl takes ten times as long and ten times the memory (tests/bench_convert.py measures it). It relies on
what every spreadsheet program writes, and refuses the rest aloud.
"""
import posixpath
import re
import zlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryFile
from zipfile import BadZipFile, ZipFile

from lxml import etree

from helpers.data import Unreadable
from helpers.data.number_format import BUILTIN, GENERAL, display

Row = tuple[int, bool, dict[str, str]]  # its number, whether it is hidden, its texts by column

MAX_UNPACKED = 4 * 2**30
MAX_PACKING = 200  # deflate reaches 1000, but only on what says nothing; a sheet reaches 50
MAX_PART = 64 * 2**20
MAX_ROW = 32 * 2**20
CHUNK = 2**18
SHARED = "s"
TEXTS = (SHARED, "inlineStr", "str")

PREFIX = re.compile(rb"<(\w+:)(?:worksheet|sst)\b")
MERGED = re.compile(rb"""\bmergeCell [^>]*?ref=["']([A-Z]+)(\d+):[A-Z]+(\d+)""")
HIDDEN = re.compile(rb"""<row (?=[^>]*\bhidden=["'](?:1|true))[^>]*?\br=["'](\d+)""")
ATTRIBUTE = re.compile(rb"""(\w+)=["'](\w*)["']""")
# A value alone is taken out at once, beside it anything else up to the end tag.
VALUE = rb"<(?:is><)?[tv](?: [^>]*)?>([^<]*)</[tv]>(?:</is>)?"
CONTENT = rb"(?:(?<=/)>|>(?:" + VALUE + rb"|((?:[^<]*<(?!/%(tag)s>))*[^<]*))</%(tag)s>)"
CELL = rb"""<c ([^>]*?)\br=["'](%(columns)s)(\d+)["']([^>]*)""" + CONTENT
CELL_WITHOUT_PLACE = re.compile(rb"<c(?![^>]*\br=)[ />]")
ITEM = re.compile(rb"<si(?: [^>]*)?" + CONTENT % {b"tag": b"si"})
VALUES = re.compile(VALUE)
PHONETIC = re.compile(rb"<rPh\b.*?</rPh>", re.DOTALL)  # how to pronounce the text before it
ESCAPED = re.compile("_x([0-9A-Fa-f]{4})_")
RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"
RELATION_STRICT = "{http://purl.oclc.org/ooxml/officeDocument/relationships}id"


@contextmanager
def open_archive(path: str | Path) -> Iterator[ZipFile]:
    """The zip inside a .xlsx or .docx, once it has proved harmless; whatever is broken in it is Unreadable."""
    name = Path(path).name
    try:
        with ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > min(MAX_UNPACKED, max(MAX_PART, MAX_PACKING * Path(path).stat().st_size)):
                raise Unreadable(f"{name} 解压后有 {unpacked / 2**20:,.0f} MB，像压缩炸弹，没有读：请核实它的来源。")
            yield archive
    except Unreadable:
        raise
    except (BadZipFile, zlib.error, EOFError, etree.XMLSyntaxError, LookupError, ValueError, RuntimeError) as error:
        raise Unreadable(f"{name} 已损坏或不完整（{error}）：请重新下载，或用 Office 打开后另存一份。") from error


def rows(path: str | Path, sheet: str | None, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a sheet with their texts in those columns: what a person sees in Excel.

    The text of merged cells is that of each of their rows, in their first column; a row with no text of its own in
    those columns is left out, and so is part of the row above where cells are merged.
    """
    with open_archive(path) as archive, TemporaryFile() as spool:
        name, part = _find_sheet(archive, Path(path).name, sheet)
        cells = _Cells(archive, _SharedStrings(archive, spool), f"{Path(path).name} 的工作表“{name}”")
        merged = _merged(archive, part, columns)
        spans = {}  # by column, the last row of the merged cells above and their text
        for number, hidden, texts in cells.rows(part, columns):
            for column, last in merged.get(number, {}).items():
                spans[column] = last, texts.get(column, "")
            if texts and spans:
                texts = {column: text for column, (last, text) in spans.items() if number <= last} | texts
            if texts:
                yield number, hidden, texts


def _parse(archive: ZipFile, name: str) -> etree._Element:
    """One of the small parts."""
    if archive.getinfo(name).file_size > MAX_PART:
        raise BadZipFile(f"{name} 太大")
    return etree.fromstring(archive.read(name), etree.XMLParser(resolve_entities=False))


def _find_sheet(archive: ZipFile, file_name: str, wanted: str | None) -> tuple[str, str]:
    """The name and the part of a sheet; of the first one to be seen, if none is named."""
    targets = {}
    for relation in _parse(archive, "xl/_rels/workbook.xml.rels"):
        if relation.get("Type", "").endswith("/worksheet"):
            targets[relation.get("Id")] = relation.get("Target")
    parts, visible = {}, []
    for sheet in _parse(archive, "xl/workbook.xml").iterfind("{*}sheets/{*}sheet"):
        target = targets.get(sheet.get(RELATION) or sheet.get(RELATION_STRICT))
        if target:
            parts[sheet.get("name")] = posixpath.join("/xl", target).lstrip("/")
            if sheet.get("state", "visible") == "visible":
                visible.append(sheet.get("name"))
    name = next(iter(visible), None) if wanted is None else wanted
    if name not in parts:
        raise Unreadable(f"{file_name} 里没有工作表“{wanted or ''}”，只有：{'、'.join(parts)}；请改 sheet。")
    return name, parts[name]


def _pieces(archive: ZipFile, part: str, start: bytes, end: bytes) -> Iterator[bytes]:
    """The XML of a part in pieces that begin with a start tag, without its namespace's prefix."""
    prefix, rest = None, b""
    with archive.open(part) as stream:
        while chunk := stream.read(CHUNK):
            rest += chunk
            if prefix is None:
                prefix = (PREFIX.search(rest) or (b"", b""))[1]
            cut = max(0, rest.rfind(b"<" + prefix + start))
            if len(rest) - cut > MAX_ROW:
                raise BadZipFile(f"{part} 有一行太长")
            yield _plain(rest[:cut], prefix)
            rest = rest[cut:]
    last = _plain(rest, prefix or b"")
    if end not in last:
        raise BadZipFile(f"{part} 没有结尾")
    yield last


def _plain(xml: bytes, prefix: bytes) -> bytes:
    if b"<!" in xml:
        raise BadZipFile("不是电子表格软件存的")
    return xml.replace(b"<" + prefix, b"<").replace(b"</" + prefix, b"</") if prefix else xml


def _value(body: bytes) -> bytes:
    """The stored value of a cell or shared string, still escaped; rich text without its looks."""
    return b"".join(VALUES.findall(PHONETIC.sub(b"", body)))


def _unescaped(values: list[bytes]) -> list[str]:
    """The texts that escaped values stand for."""
    return [element.text or "" for element in etree.fromstring(b"<x><t>" + b"</t><t>".join(values) + b"</t></x>")]


def _merged(archive: ZipFile, part: str, columns: Sequence[str]) -> dict[int, dict[str, int]]:
    """The last rows of the merged ranges that begin in one of the columns, by first row and column."""
    merged, before = {}, b""
    with archive.open(part) as stream:  # they are listed after the rows
        while chunk := stream.read(CHUNK):
            chunk = before + chunk
            for column, first, last in MERGED.findall(chunk) if b"mergeCell " in chunk else ():
                if column.decode() in columns:
                    merged.setdefault(int(first), {})[column.decode()] = int(last)
            before = chunk[-100:]
    return merged


class _SharedStrings:
    """The workbook's table of texts, still escaped, in a temporary file: it can be larger than the sheets."""

    def __init__(self, archive, file):
        self.file, self.offsets = file, array("Q", [0])
        if "xl/sharedStrings.xml" in archive.namelist():
            for piece in _pieces(archive, "xl/sharedStrings.xml", b"si", b"sst"):
                values = [simple or rest and _value(rest) for simple, rest in ITEM.findall(piece)]
                self.file.write(b"".join(values))
                self.offsets.extend(accumulate(map(len, values), initial=self.offsets.pop()))
        self.get = lru_cache(2**14)(self._read)

    def _read(self, index):
        self.file.seek(self.offsets[index])
        return self.file.read(self.offsets[index + 1] - self.offsets[index])


class _Cells:
    """The cells of a workbook as Excel shows them."""

    def __init__(self, archive, strings, place):
        self.archive, self.strings, self.place = archive, strings, place
        properties = _parse(archive, "xl/workbook.xml").find("{*}workbookPr")
        self.epoch_1904 = properties is not None and properties.get("date1904") in ("1", "true")
        self.codes, self.kinds = {None: GENERAL}, {}
        if "xl/styles.xml" in archive.namelist():
            styles = _parse(archive, "xl/styles.xml")
            forms = styles.iterfind("{*}numFmts/{*}numFmt")
            codes = BUILTIN | {int(form.get("numFmtId")): form.get("formatCode") for form in forms}
            for index, style in enumerate(styles.iterfind("{*}cellXfs/{*}xf")):
                self.codes[str(index)] = codes.get(int(style.get("numFmtId", 0)), GENERAL)

    def rows(self, part: str, columns: Sequence[str]) -> Iterator[Row]:
        """The number of each row with cells in those columns, whether it is hidden, and the texts in them."""
        cell = re.compile(CELL % {b"columns": "|".join(columns).encode(), b"tag": b"c"})
        names = {column.encode(): column for column in columns}
        for index, piece in enumerate(_pieces(self.archive, part, b"row", b"</worksheet>")):
            if index == 0 and CELL_WITHOUT_PLACE.search(piece):
                raise BadZipFile("单元格没有写明位置")
            hidden = set(HIDDEN.findall(piece)) if b" hidden=" in piece else ()
            cells = cell.findall(piece)
            row, texts = None, {}
            for (_, column, number, _, _, _), text in zip(cells, self._texts(cells)):
                if number != row:
                    if row:
                        yield int(row), row in hidden, texts
                    row, texts = number, {}
                if text:
                    texts[names[column]] = text
            if row:
                yield int(row), row in hidden, texts

    def _texts(self, cells):
        """The texts of cells, each the groups of CELL: its attributes before and after its place, and its content."""
        kinds, values = [], []
        known_kind, shared_string = self.kinds.get, self.strings.get  # looked up once: there are millions of cells
        for before, _, _, after, simple, rest in cells:
            kind = known_kind(before + after) or self._kind(before + after)
            value = simple or rest and _value(rest)
            kinds.append(kind)
            values.append(shared_string(int(value)) if kind == SHARED and value else value)
        texts = _unescaped(values)
        for index, kind in enumerate(kinds):
            if kind not in TEXTS:
                texts[index] = self._shown(kind, texts[index], cells[index])
            elif "_x" in texts[index]:
                texts[index] = ESCAPED.sub(lambda match: chr(int(match[1], 16)), texts[index])
        return texts

    def _kind(self, attributes):
        """The type of a cell; for a number, its format."""
        stated = {name.decode(): value.decode() for name, value in ATTRIBUTE.findall(attributes)}
        kind = stated.get("t", "n")
        self.kinds[attributes] = kind if kind in TEXTS else (kind, self.codes.get(stated.get("s"), GENERAL))
        return self.kinds[attributes]

    def _shown(self, kind, stored, cell):
        """What Excel shows for a stored value that is no text."""
        (kind, code), (_, column, number, _, _, rest) = kind, cell
        place = f"{self.place}单元格 {column.decode()}{number.decode()}"
        if not stored:
            if b"<f" in rest:
                raise Unreadable(f"{place} 是公式，文件里没有存它的结果：请用 Excel 打开，保存后再试。")
            return ""
        if kind == "b":
            return "TRUE" if stored == "1" else "FALSE"
        if kind == "e":  # "#N/A" is no text to learn
            return ""
        if kind == "d":
            return stored
        try:
            return display(float(stored), code, self.epoch_1904)
        except (ValueError, OverflowError) as error:
            raise Unreadable(f"{place} 的数字 {stored} 读不懂：请在 Excel 里改正。") from error
