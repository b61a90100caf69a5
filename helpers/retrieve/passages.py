"""A Word document as passages: what can be looked up, and where it stands."""
import hashlib
import re
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from docx import Document
from docx.table import Table

from helpers.data.xlsx import open_archive

SENTENCE = re.compile("[^。！？]+[。！？]*”?")


@dataclass(frozen=True)
class Passage:
    """A piece of a document's text, and where it stands."""

    text: str
    document: str
    edition: str
    chapter: str
    table: str = ""  # its caption, if the passage is one of its rows

    @property
    def key(self) -> str:
        """The same for the same text in the same place, on every machine; another for any other."""
        return hashlib.sha256("\0".join(astuple(self)).encode()).hexdigest()[:32]

    @property
    def place(self) -> dict[str, str]:
        """Where it stands."""
        place = asdict(self)
        del place["text"]
        return place

    @property
    def source(self) -> str:
        """Where it stands, in words."""
        table = f"，表“{self.table}”" if self.table else ""
        return f"《{self.document}》{self.edition}年版，{self.chapter}{table}"


def read(path: str | Path, sentences: int | None = None) -> list[Passage]:
    """The passages of a Word document: its paragraphs, or so many sentences of one, and the rows of its tables.

    A row repeats what stands above it, caption and header, so that it can be understood alone.
    """
    with open_archive(path):
        document = Document(path)
    about = document.core_properties
    title = about.title or Path(path).stem
    return [Passage(text, title, about.version, chapter, table) for chapter, table, text in _texts(document, sentences)]


def split(text: str, sentences: int) -> list[str]:
    """A text in pieces of so many sentences; the last may have fewer."""
    single = SENTENCE.findall(text)
    return ["".join(single[start:start + sentences]) for start in range(0, len(single), sentences)]


def _texts(document, sentences):
    """Every passage's chapter, table and text."""
    chapter = caption = ""
    for part in document.iter_inner_content():
        if isinstance(part, Table):
            for row in _rows(part):
                yield chapter, caption, f"{caption}：{row}"
            continue
        text, style = part.text.strip(), part.style.name
        if style.startswith("Heading"):
            chapter = text
        elif style == "Caption":
            caption = text
        elif text and style != "Title":
            for piece in split(text, sentences) if sentences else [text]:
                yield chapter, "", piece


def _rows(table):
    """Every row below the header, each of its cells behind its column's name."""
    header, *rows = [[cell.text.strip() for cell in row.cells] for row in table.rows]
    for row in rows:
        yield "，".join(name + value for name, value in zip(header, row) if value) + "。"
