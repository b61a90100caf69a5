"""C-Eval's layout: our own exam in it is right, and a downloaded one is complete or refused."""
import pytest

from helpers.data.split import question_key
from helpers.judge import ceval
from helpers.knowledge.exam import LETTERS, RELATIONS
from helpers.knowledge.facts import read_relations
from helpers.machine.commands import CourseError

NAMES = list(ceval.SUBJECTS.values())
GEOGRAPHY = "high_school_geography"


@pytest.fixture
def ours(tmp_path):
    ceval.write(tmp_path)
    return tmp_path


@pytest.fixture
def downloaded(tmp_path, monkeypatch):
    """A folder laid out as the archive of the real C-Eval, with all its subjects."""
    for name in ceval.official_subjects():
        for split, columns in ceval.COLUMNS.items():
            file = tmp_path / split / f"{name}_{split}.csv"
            file.parent.mkdir(exist_ok=True)
            row = ",".join("题" for _ in columns)
            file.write_text("\n".join([",".join(columns), *[row] * (5 if split == "dev" else 2)]), encoding="utf-8")
    monkeypatch.setenv("CEVAL_DIR", str(tmp_path))
    return tmp_path


def rows(folder, *splits):
    return [row for name in NAMES for split in splits for row in ceval.read(folder, split, name)]


def test_every_answer_is_a_fact_and_no_other_option_is(ours):
    right = {}
    for relation in read_relations():
        if (relation.table, relation.name) in RELATIONS:
            for subject, answer in relation.facts:
                for form in relation.exam:
                    right.setdefault(form.format(subject=subject), set()).add(answer)
    for row in rows(ours, "dev", "val"):
        assert [letter for letter in LETTERS if row[letter] in right[row["question"]]] == [row["answer"]]
        assert len({row[letter] for letter in LETTERS}) == 4


def test_a_subject_has_five_explained_examples_and_no_question_twice(ours):
    for name in NAMES:
        dev = ceval.read(ours, "dev", name)
        assert len(dev) == ceval.SHOTS
        assert all(row[row["answer"]] in row["explanation"] for row in dev)
    questions = [question_key({"conversation": [{"input": row["question"]}]}) for row in rows(ours, *ceval.ROWS)]
    assert len(set(questions)) == len(questions) == len(NAMES) * sum(ceval.ROWS.values())


def test_the_columns_are_c_evals_and_its_test_has_no_answers(ours):
    for split, columns in {"dev": "id,question,A,B,C,D,answer,explanation", "val": "id,question,A,B,C,D,answer",
                           "test": "id,question,A,B,C,D"}.items():
        file = ours / split / f"{GEOGRAPHY}_{split}.csv"
        assert file.read_text(encoding="utf-8").splitlines()[0] == columns


def test_the_same_exam_is_written_every_time(ours, tmp_path):
    ceval.write(tmp_path / "again")
    assert rows(ours, *ceval.ROWS) == rows(tmp_path / "again", *ceval.ROWS)


def test_our_subjects_are_c_evals_and_there_are_52(ours):
    official = ceval.official_subjects()
    assert len(official) == 52
    assert official["civil_servant"] == ("公务员", "Other")
    assert official.keys() >= set(NAMES)


def test_a_whole_download_is_taken_with_all_subjects(downloaded):
    assert ceval.downloaded() == (downloaded, list(ceval.official_subjects()))


def test_without_a_download_there_is_nothing_to_check(monkeypatch):
    monkeypatch.delenv("CEVAL_DIR", raising=False)
    assert ceval.downloaded() is None


@pytest.mark.parametrize(("split", "name", "content", "fault"), [
    ("val", GEOGRAPHY, None, "缺少 val/high_school_geography_val.csv"),
    ("dev", "law", "id,question,A,B,C,D,answer,explanation" + "\n0,题,甲,乙,丙,丁,A,因为" * 4, "只有 4 题"),
    ("val", "law", "id,question,A,B,C,D\n0,题,甲,乙,丙,丁\n", "val/law_val.csv 缺少列 answer"),
    ("val", "law", "", "val/law_val.csv 只有 0 题"),
    ("test", "logic", "id,question\n0,题".encode("gbk"), "test/logic_test.csv 读不出来"),
], ids=["file", "examples", "column", "empty", "encoding"])
def test_what_is_missing_in_a_download_is_named(downloaded, split, name, content, fault):
    file = downloaded / split / f"{name}_{split}.csv"
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CourseError, match=fault):
        ceval.downloaded()


def test_a_wrong_folder_is_one_short_message(downloaded, monkeypatch):
    monkeypatch.setenv("CEVAL_DIR", str(downloaded / "val"))
    with pytest.raises(CourseError, match="一共 156 处") as caught:
        ceval.downloaded()
    assert len(str(caught.value).splitlines()) < 10
