import shutil
import zipfile

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from helpers.data.split import write_samples
from helpers.homework import package, release, submit
from helpers.homework.submit import Homework
from helpers.knowledge.self_talk import samples
from helpers.machine import profile
from helpers.machine.commands import CourseError

STUDENT = "example"  # who did the solutions


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A solved homework, with a small adapter in place of the trained one."""
    folder = tmp_path_factory.mktemp("homework")
    for path in release.SOURCE.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    base = AutoModelForCausalLM.from_pretrained(profile.TINY_BASE)
    small = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    small.save_pretrained(folder / STUDENT / "adapter")
    write_samples(samples("阿福", "小红", 20), folder / STUDENT / "train.jsonl")
    return folder


@pytest.fixture
def work(whole, tmp_path):
    return Homework(shutil.copytree(whole, tmp_path / "homework"))


def edit(notebook, grade_id, source):
    """Puts other source into a cell, as a student does; None takes the cell away."""
    content = nbformat.read(notebook, as_version=4)
    [cell] = [cell for cell in content.cells if cell.metadata.get("nbgrader", {}).get("grade_id") == grade_id]
    if source is None:
        content.cells.remove(cell)
    else:
        cell.source = source
    nbformat.write(content, notebook)


def test_a_solved_homework_is_packed_so_that_the_collector_takes_it(work, tmp_path):
    assert work.missing() == []
    assert work.unfinished() == {}
    target = work.pack()
    assert target.name == "example.zip"
    manifest = package.unpack(target, tmp_path / "unpacked")
    assert (manifest.student, manifest.assistant, manifest.owner) == (STUDENT, "阿福", "小红")
    assert manifest.files.keys() == package.FILES.keys() - package.OPTIONAL - {package.MANIFEST}


def test_nothing_but_what_is_asked_for_goes_into_the_zip(work):
    (work.folder / STUDENT / "adapter" / "extra.bin").write_bytes(b"pickle")
    (work.folder / "notes.txt").write_text("mine")
    with zipfile.ZipFile(work.pack()) as archive:
        assert set(archive.namelist()) <= package.FILES.keys()


def test_a_report_goes_along_once_it_is_more_than_the_template(work):
    assert (work.folder / package.REPORT).is_file()
    assert package.REPORT not in work.files
    (work.folder / package.REPORT).write_text("# 小组项目报告：掺多少才够\n", encoding="utf-8")
    with zipfile.ZipFile(work.pack()) as archive:
        assert "掺多少才够" in archive.read(package.REPORT).decode()


@pytest.mark.parametrize(("gone", "words"), [
    ("basic.ipynb", "运行 make homework"),
    ("advanced.ipynb", "运行 make homework，再做它"),
    (f"{STUDENT}/train.jsonl", "运行作业一的第 3 节"),
    (f"{STUDENT}/adapter/adapter_model.safetensors", "运行作业一的第 4 节"),
    (f"{STUDENT}/adapter/adapter_config.json", "运行作业一的第 4 节"),
])
def test_a_missing_file_is_named_with_what_makes_it(work, gone, words):
    (work.folder / gone).unlink()
    [problem] = work.missing()
    assert gone in problem
    assert words in problem
    with pytest.raises(CourseError, match="还不能交"):
        work.pack()


@pytest.mark.parametrize(("source", "words"), [
    ('STUDENT, NAME = "example"', "三行"),
    ('STUDENT = "example"\nNAME = input()\nOWNER = "小红"', "三行"),
    ('STUDENT = example\nNAME = "阿福"\nOWNER = "小红"', "三行"),
    ('STUDENT = 2024\nNAME = "阿福"\nOWNER = "小红"', "三行"),
    (release.CODE_STUB, "三行"),
    ('STUDENT = "../example"\nNAME = "阿福"\nOWNER = "小红"', "学号“../example”不行"),
    ('STUDENT = "example"\nNAME = "福"\nOWNER = "小红"', "助手的名字“福”不行"),
    ('STUDENT = "example"\nNAME = "阿福"\nOWNER = "小红\\n"', "你的名字"),
    ('STUDENT = "example"\nNAME = "阿贵"\nOWNER = "小红"', "没有“阿贵”"),
])
def test_what_is_wrong_with_the_names_is_said(work, source, words):
    edit(work.folder / "basic.ipynb", "author", source)
    assert words in "\n".join(work.missing())


def test_a_lost_cell_and_a_broken_file_are_named(work):
    edit(work.folder / "data.ipynb", "clean_text", None)
    (work.folder / "advanced.ipynb").write_text("{", encoding="utf-8")
    (work.folder / STUDENT / "adapter" / "adapter_model.safetensors").write_bytes(b"cut off")
    lost, broken, adapter = work.missing()
    assert "data.ipynb 少了要评分的格子（clean_text）" in lost
    assert "advanced.ipynb 不是完整的笔记本" in broken
    assert "adapter_model.safetensors 不完整" in adapter


def test_more_cells_than_the_grader_takes_are_told_before_packing(work):
    notebook = nbformat.read(work.folder / "data.ipynb", as_version=4)
    notebook.cells += [new_markdown_cell() for _ in range(package.MOST_CELLS)]
    nbformat.write(notebook, work.folder / "data.ipynb")
    with pytest.raises(CourseError, match=f"data.ipynb 有 {len(notebook.cells)} 格，最多 500 格"):
        work.pack()
    assert not list(work.folder.glob("*.zip"))


def test_a_student_without_the_solutions_can_submit_too(work, monkeypatch, tmp_path):
    monkeypatch.setattr(submit, "SOURCE", tmp_path / "kept back")
    assert work.pack().is_file()


def test_what_is_not_written_yet_is_told_and_does_not_keep_from_submitting(work, tmp_path):
    shutil.copy(release.generate(tmp_path / "released") / "understanding.ipynb", work.folder)
    [(name, empty)] = work.unfinished().items()
    assert name == "understanding"
    assert empty == [f"answer_{number}" for number in range(1, 12)]
    assert work.pack().is_file()


def test_an_adapter_that_is_too_large_leaves_the_last_zip_as_it_was(work, monkeypatch):
    before = work.pack().read_bytes()
    monkeypatch.setattr(package, "max_zip", lambda: 1000)
    with pytest.raises(CourseError, match="压缩包有"):
        work.pack()
    assert (work.folder / "example.zip").read_bytes() == before
    assert not list(work.folder.glob("*.partial"))


def test_the_command_line_says_it_all(work, monkeypatch, capsys):
    monkeypatch.setattr(submit, "Homework", lambda: work)
    edit(work.folder / "data.ipynb", "split_answer", f"def split(pairs):\n    {release.CODE_STUB.splitlines()[-1]}")
    submit.main()
    printed = capsys.readouterr().out
    assert "data.ipynb 还有 1 处没有写，交了没有分：split" in printed
    assert "report.md 还是模板" in printed
    assert "example.zip" in printed
    (work.folder / "data.ipynb").unlink()
    with pytest.raises(SystemExit, match="缺少 .*data.ipynb"):
        submit.main()
