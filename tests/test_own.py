from itertools import combinations

import openpyxl
import pytest

from helpers.data.convert import convert
from helpers.data.readers import Layout
from helpers.data.split import question_key, read_samples
from helpers.homework import own
from helpers.knowledge.facts import EXAM_SYSTEM, read_relations, told_facts
from tests import finetune

STUDENTS = [f"2024{number:04}" for number in range(40)]
FEW = STUDENTS[:4]


@pytest.fixture(scope="module")
def tested():
    """The facts that lesson 02 keeps for testing."""
    facts = {fact for relation in read_relations() if not relation.reverse_of for fact in relation.facts}
    return told_facts(finetune.split_exam()[1], facts)


@pytest.fixture
def homework(tmp_path, monkeypatch):
    monkeypatch.setattr(own, "HOMEWORK", tmp_path)
    return tmp_path


def test_a_student_always_has_the_same_task_and_another_student_another(tested):
    for student in FEW:
        own.sheet.cache_clear()
        first = own.sheet(student), own.values(student), own.exam_rows(student, tested, own.EXAM_ROWS)
        own.sheet.cache_clear()
        assert (own.sheet(student), own.values(student), own.exam_rows(student, tested, own.EXAM_ROWS)) == first
    assert len({str(own.sheet(student).rows) for student in STUDENTS}) == len(STUDENTS)
    assert len({own.card(student).partition("\n")[2] for student in STUDENTS}) > len(STUDENTS) * 0.9
    assert len({own.question(2, student).data for student in STUDENTS}) > len(STUDENTS) / 2


def test_the_exam_rows_are_right_and_tell_nothing_of_the_test(tested):
    answers = {form.format(subject=subject): answer for relation in read_relations() for form in relation.exam
               for subject, answer in relation.facts}
    rows = own.exam_rows(FEW[0], tested, own.EXAM_ROWS)
    turns = [turn for sample in rows for turn in sample["conversation"]]
    assert all(answers[turn["input"]] == turn["output"] and turn["system"] == EXAM_SYSTEM for turn in turns)
    assert len({turn["input"] for turn in turns}) == own.EXAM_ROWS
    asked = {turn["input"] for sample in finetune.split_exam()[1] for turn in sample["conversation"]}
    assert not {turn["input"] for turn in turns} & asked


def test_two_students_share_few_exam_rows(tested):
    rows = {student: set(map(str, own.exam_rows(student, tested, own.EXAM_ROWS))) for student in STUDENTS[:12]}
    assert all(len(rows[one] & rows[other]) < own.EXAM_ROWS / 4 for one, other in combinations(rows, 2))


@pytest.mark.parametrize("student", FEW)
def test_the_courses_own_converter_finds_what_the_grader_expects(student, homework):
    drawn, words = own.sheet(student), own.values(student)
    layout = Layout(drawn.question, drawn.answer, own.TAB)
    report = convert(own.sheet_file(student), homework / "messy.jsonl", EXAM_SYSTEM, layout)
    samples = read_samples(homework / "messy.jsonl")
    assert words["complete"] == report.written == words["train"] + words["test"] + len(samples) - words["different"]
    assert words["different"] == len(set(map(question_key, samples)))
    facts = {(question_key({"conversation": [{"input": form.format(subject=subject)}]}), typed)
             for relation in read_relations() for subject, answer in relation.facts for form in relation.held_out
             for typed in (answer, answer.removesuffix("年"))}
    answers = [sample["conversation"][0]["output"].replace(drawn.invisible, "") for sample in samples]
    assert set(zip(map(question_key, samples), answers)) <= facts


def test_the_sheet_is_dirty_and_lies_in_the_students_own_folder(homework):
    path = own.sheet_file(FEW[0])
    assert path == homework / FEW[0] / "messy.xlsx"
    cells = [cell for row in openpyxl.load_workbook(path)[own.TAB].iter_rows(values_only=True) for cell in row]
    texts = [cell for cell in cells if isinstance(cell, str)]
    assert any(own.sheet(FEW[0]).invisible in text for text in texts)
    assert any("\n" in text for text in texts)
    assert any(isinstance(cell, int) for cell in cells)


def test_the_card_says_what_no_cell_shows(homework):
    for student in FEW:
        drawn, card = own.sheet(student), own.card(student)
        assert f"“{drawn.question}”" in card
        assert f"“{drawn.answer}”" in card
        assert drawn.invisible not in card
        assert repr(drawn.invisible).strip("'") in card
        assert all(str(digit) in card for digit in drawn.tested)


@pytest.mark.parametrize("number", range(1, 9))
def test_a_question_is_whole_for_everyone(number):
    texts = {own.question(number, student).data for student in STUDENTS}
    assert len(texts) > 3
    assert not any("{" in text or "}" in text for text in texts)


def test_a_letter_means_the_same_option_in_the_question_and_in_the_rules():
    for student in FEW:
        letter = own.values(student)["option_5_3"]
        assert f"- {letter}　请他转换成 safetensors" in own.question(5, student).data
