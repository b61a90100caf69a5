"""Makes the documents that lesson 12 retrieves from, of the invented town in data/handbook: data/raw/handbook*.docx.

python -m tools.make_handbook [FOLDER]   handbook.docx and handbook_older.docx, the same on every run
"""
import io
import sys
import tomllib
from datetime import datetime
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from docx import Document

HANDBOOK = Path(__file__).parent.parent / "data" / "handbook"
FOLDER = HANDBOOK.parent / "raw"
DOCUMENTS = {"handbook.toml": "handbook.docx", "older.toml": "handbook_older.docx"}


def add_table(document, rows):
    """A table with lines around its cells; its header is bold."""
    table = document.add_table(len(rows), len(rows[0]), style="Table Grid")
    for cells, row in zip(table.rows, rows):
        for cell, text in zip(cells.cells, row):
            cell.paragraphs[0].add_run(text).bold = row is rows[0] or None


def document_of(handbook):
    """The title with its edition; for every chapter a heading, its paragraphs, and its tables below their captions."""
    edition = handbook["chapter"][0]["edition"]
    document = Document()
    document.core_properties.title = handbook["title"]
    document.core_properties.version = str(edition)
    document.core_properties.author = ""
    document.core_properties.comments = ""
    document.core_properties.created = document.core_properties.modified = datetime(edition, 1, 1)
    document.add_heading(f"{handbook['title']}（{edition}年版）", 0)
    for chapter in handbook["chapter"]:
        document.add_heading(chapter["title"], 1)
        for paragraph in chapter["paragraph"]:
            document.add_paragraph(paragraph["text"])
        for table in chapter.get("table", []):
            document.add_paragraph(table["caption"], style="Caption")
            add_table(document, table["rows"])
    return document


def save(document, path):
    """Saves the document without the time at which that was done, which python-docx notes for every part."""
    saved = io.BytesIO()
    document.save(saved)
    with ZipFile(saved) as parts, ZipFile(path, "w") as out:
        for name in parts.namelist():
            out.writestr(ZipInfo(name), parts.read(name), ZIP_DEFLATED)


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for source, name in DOCUMENTS.items():
        save(document_of(tomllib.loads((HANDBOOK / source).read_text(encoding="utf-8"))), folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else FOLDER)
