import json

import pytest
from docx import Document

from helpers.data import Unreadable
from helpers.retrieve import handbook, passages
from helpers.retrieve.passages import Passage

NEW, OLD = handbook.DOCUMENTS


@pytest.fixture
def document(tmp_path):
    """Writes a document with a title, a chapter, two paragraphs and a table with a caption."""
    path = tmp_path / "小店.docx"
    written = Document()
    written.add_heading("小店手册", 0)
    written.add_heading("开门", 1)
    written.add_paragraph("早上八点开门。晚上六点关门！中午休息吗？不休息。")
    written.add_paragraph("  ")
    written.add_paragraph("价目", style="Caption")
    table = written.add_table(3, 2)
    for row, texts in zip(table.rows, [("东西", "价钱"), ("笔", "两元"), ("纸", "")]):
        for cell, text in zip(row.cells, texts):
            cell.text = text
    written.save(path)
    return path


def test_a_document_falls_into_its_paragraphs_and_the_rows_of_its_tables(document):
    paragraph, pen, paper = passages.read(document)
    assert paragraph == Passage("早上八点开门。晚上六点关门！中午休息吗？不休息。", "小店", "", "开门")
    assert pen == Passage("价目：东西笔，价钱两元。", "小店", "", "开门", "价目")
    assert paper.text == "价目：东西纸。"


def test_a_paragraph_can_fall_into_its_sentences(document):
    first, second, *rows = passages.read(document, sentences=3)
    assert (first.text, second.text) == ("早上八点开门。晚上六点关门！中午休息吗？", "不休息。")
    assert [row.table for row in rows] == ["价目", "价目"]


def test_pieces_of_a_text_together_are_the_text():
    for text in (passage.text for passage in handbook.everything()):
        assert "".join(passages.split(text, 1)) == "".join(passages.split(text, 2)) == text


def test_a_passage_keeps_its_key_until_its_text_or_its_place_is_another():
    passage = Passage("钟楼高二十六米。", "手册", "2025", "历史")
    assert passage.key == Passage("钟楼高二十六米。", "手册", "2025", "历史").key
    others = [Passage("钟楼高二十七米。", "手册", "2025", "历史"), Passage("钟楼高二十六米。", "手册", "2018", "历史"),
              Passage("钟楼高二十六米。", "手册", "2025", "历史", "高度")]
    assert len({passage.key, *(other.key for other in others)}) == 4


def test_a_source_tells_which_edition_and_which_table():
    assert passages.read(OLD)[-1].source == "《慢钟镇手册》2018年版，图书馆，表“图书馆开放时间”"


def test_a_damaged_document_says_what_to_do(tmp_path):
    path = tmp_path / "手册.docx"
    path.write_bytes(NEW.read_bytes()[:9000])
    with pytest.raises(Unreadable, match="手册.docx 已损坏或不完整"):
        passages.read(path)


def test_every_fact_of_the_handbook_stands_in_a_passage_of_its_chapter_and_edition():
    found = {}
    for passage in handbook.everything():
        found.setdefault((passage.chapter, passage.edition), []).append(passage.text)
    lines = (handbook.FOLDER / "facts.jsonl").read_text(encoding="utf-8").splitlines()
    for fact in map(json.loads, lines):
        assert any(fact["value"] in text for text in found[fact["chapter"], str(fact["edition"])]), fact


def test_every_question_about_the_handbook_comes_with_the_passage_that_answers_it():
    strangers, practice = handbook.strangers(), handbook.practice()
    assert all(asked.value in asked.passage.text for asked in [*strangers, *practice] if asked.value)
    assert sum(asked.value is None for asked in strangers) == 25
    assert {asked.passage.edition for asked in strangers if asked.value} == {"2025"}


def test_no_stranger_asks_for_what_is_learnt():
    def ids(name):
        lines = (handbook.FOLDER / name).read_text(encoding="utf-8").splitlines()
        return {json.loads(line)["id"] for line in lines} - {None}

    assert len(ids("practice.jsonl")) == 289
    assert not ids("questions.jsonl") & ids("practice.jsonl")
