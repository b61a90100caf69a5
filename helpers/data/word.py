"""Word files of numbered questions and answers."""
import re
from collections.abc import Iterator
from pathlib import Path

from docx import Document
from docx.document import Document as WordDocument
from docx.oxml.ns import qn
from openpyxl import Workbook

from helpers.data.xlsx import open_archive

NUMBER = re.compile(r"\s*(?:第\s*\d+\s*题|[（(]?(?:\d+|[一二三四五六七八九十百]+)\s*(?:[．、)）]|[.:：](?!\d)))\s*")
ANSWER = re.compile(r"(?:^\s*(?:【(?:参考)?答案】|(?:参考)?答案?\s*[:：])|【(?:参考)?答案】|(?:参考)?答案\s*[:：])\s*")
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")


def questions(path: str | Path) -> Iterator[tuple[str, str]]:
    """Each numbered question and its answer, which begins with 答案： or 答：; a heading belongs to neither."""
    with open_archive(path):
        document = Document(path)
    question, answer = [], []
    for text, numbered_by_word in _paragraphs(document):
        asked, answered = _parted(text)
        number = NUMBER.match(asked)
        if asked and (number or numbered_by_word):
            if question:
                yield "\n".join(question), "\n".join(answer)
            question = [asked[number.end():] if number else asked]
            answer = []
        elif question and asked:
            (answer or question).append(asked)
        if question and answered is not None:
            answer.append(answered)
    if question:
        yield "\n".join(question), "\n".join(answer)


def to_workbook(source: str | Path, target: str | Path) -> None:
    """Puts the questions into column A of a workbook and the answers into B, to be corrected by hand."""
    book = Workbook()
    for row, pair in enumerate([("问题", "答案"), *questions(source)], 1):
        for column, text in enumerate(pair, 1):
            cell = book.active.cell(row, column, CONTROL.sub("", text))
            cell.data_type = "s"  # also where it begins with "="
    book.save(target)


def _paragraphs(document: WordDocument) -> Iterator[tuple[str, bool]]:
    """The text of each paragraph that is no heading, and whether Word numbers it."""
    styles = {style.style_id: style for style in document.styles}
    numbering = {key for key, style in styles.items() if style.element.find(f".//{qn('w:numPr')}") is not None}
    headings = {key for key, style in styles.items() if re.match("Heading|Title|Subtitle", style.name or "")}
    for paragraph in document.element.body.iter(qn("w:p")):
        text = "".join(run.text for run in paragraph.iter(qn("w:r")))
        if text.strip() and paragraph.style not in headings:
            numbered = paragraph.find(f"{qn('w:pPr')}/{qn('w:numPr')}") is not None
            yield text, numbered or paragraph.style in numbering


def _parted(text: str) -> tuple[str, str | None]:
    """What a paragraph asks, and what it answers, if it says where its answer begins."""
    mark = ANSWER.search(text)
    return (text[:mark.start()], text[mark.end():]) if mark else (text, None)
