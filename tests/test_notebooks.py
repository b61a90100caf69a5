import re

import nbformat
import pytest

from helpers.machine.profile import ROOT

LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
HOMEWORK = sorted((ROOT / "notebooks" / "homework").rglob("*.ipynb"))
ABSOLUTE_PATH = re.compile(r"""["'](/(?!v1|api|tmp\b)[a-z]+/[^"'\s]*)""")
LINK = re.compile(r"\]\((?!http)([^)#]+)\)")
GLOSSARY = ROOT / "notebooks" / "glossary.md"
TERM = re.compile(r"^\| (.+?) \| (.+?) \| (.+) \| \[(?:附录 )?(.+)\]\((.+)\) \|$", re.M)


@pytest.fixture(params=LESSONS + HOMEWORK, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


@pytest.fixture(params=LESSONS, ids=lambda path: path.stem)
def lesson(request):
    return nbformat.read(request.param, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook):
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def test_a_notebook_is_committed_as_it_ran_from_top_to_bottom(notebook):
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert not [output for cell in code(notebook) for output in cell.outputs if output.output_type == "error"]


def test_a_lesson_has_one_title_a_goal_a_time_and_exercises(lesson):
    text = prose(lesson)
    assert len(re.findall(r"^# ", text, re.M)) == 1
    for part in ("**这一课你会**", "**时间**", "## 练习", "<details>", "## 常见错误", "## 接下来"):
        assert part in text


def test_cells_are_short_and_introduced(notebook):
    lengths = sorted(len(cell.source.splitlines()) for cell in code(notebook))
    assert lengths[len(lengths) // 2] <= 7
    assert lengths[-1] <= 25
    assert notebook.cells[0].cell_type == "markdown"


def test_self_tests_print_one_stable_line(lesson):
    self_tests = [cell for cell in code(lesson) if "自测 " in cell.source]
    assert self_tests
    for cell in self_tests:
        assert "assert" in cell.source
        assert "nbval-ignore-output" not in cell.metadata.get("tags", [])
        assert len(cell.outputs) == 1
        assert re.fullmatch(r"自测 [\dA-Z]+\.\d+：.+\n", cell.outputs[0].text)


def test_no_notebook_knows_a_path_that_exists_only_here(notebook):
    for cell in code(notebook):
        assert not ABSOLUTE_PATH.search(cell.source)
        assert str(ROOT) not in str(cell.outputs)


@pytest.mark.parametrize("path", LESSONS + HOMEWORK, ids=lambda path: path.stem)
def test_every_link_leads_somewhere(path):
    for target in LINK.findall(prose(nbformat.read(path, as_version=4))):
        assert (path.parent / target).exists(), target


def test_every_term_of_the_glossary_is_in_the_lesson_that_it_names():
    terms = TERM.findall(GLOSSARY.read_text(encoding="utf-8"))
    assert len(terms) == GLOSSARY.read_text(encoding="utf-8").count("\n|") - 2
    assert [file for *_, file in terms] == sorted(file for *_, file in terms)
    for term, english, _, number, file in terms:
        text = prose(nbformat.read(GLOSSARY.parent / file, as_version=4)).casefold()
        assert file.startswith((number, f"appendix_{number.lower()}"))
        for word in [*term.split("、"), *english.split(", ")]:
            assert word.casefold() in text, (term, english, file)
