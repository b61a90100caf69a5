"""Word files of numbered questions and answers."""
import re

from docx import Document
from docx.oxml.ns import qn
from openpyxl import Workbook

from helpers.workbook import open_archive

NUMBER = re.compile(r"\s*(?:第\s*\d+\s*题|[（(]?(?:\d+|[一二三四五六七八九十百]+)\s*(?:[．、)）]|[.:：](?!\d)))\s*")
ANSWER = re.compile(r"(?:^\s*(?:【(?:参考)?答案】|(?:参考)?答案?\s*[:：])|【(?:参考)?答案】|(?:参考)?答案\s*[:：])\s*")
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")
TEXT = {qn("w:t"): lambda node: node.text or "", qn("w:tab"): lambda _: "\t", qn("w:br"): lambda _: "\n"}


def questions(path):
    """Each numbered question and its answer, which begins with 答案： or 答：; a heading belongs to neither."""
    with open_archive(path):
        document = Document(path)
    numbered = {style.style_id for style in document.styles if style.element.find(f".//{qn('w:numPr')}") is not None}
    headings = {style.style_id for style in document.styles if re.match("Heading|Title|Subtitle", style.name or "")}
    question, answer = None, []
    for paragraph in document.element.body.iter(qn("w:p")):
        text = "".join(TEXT[node.tag](node) for run in paragraph.iter(qn("w:r")) for node in run if node.tag in TEXT)
        if not text.strip() or paragraph.style in headings:
            continue
        asked, mark, answered = _parted(text)
        number = NUMBER.match(asked)
        automatic = paragraph.style in numbered or paragraph.find(f"{qn('w:pPr')}/{qn('w:numPr')}") is not None
        if asked and (number or automatic):
            if question is not None:
                yield "\n".join(question), "\n".join(answer)
            question, answer = [asked[number.end():] if number else asked], [answered] if mark else []
        elif question is not None:
            part = answer if mark or answer else question
            part.append(answered if mark else text)
    if question is not None:
        yield "\n".join(question), "\n".join(answer)


def to_workbook(source, target):
    """Puts the questions into column A of a workbook and the answers into B, to be corrected by hand."""
    book = Workbook()
    for row, pair in enumerate([("问题", "答案"), *questions(source)], 1):
        for column, text in enumerate(pair, 1):
            cell = book.active.cell(row, column, CONTROL.sub("", text))
            cell.data_type = "s"  # also where it begins with "="
    book.save(target)


def _parted(text):
    """What a paragraph asks, the mark before its answer if there is one, and the answer."""
    mark = ANSWER.search(text)
    return (text[:mark.start()], mark[0], text[mark.end():]) if mark else (text, "", "")
