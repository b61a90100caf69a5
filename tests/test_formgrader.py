import copy
from types import SimpleNamespace

import nbformat
import pytest
from lxml import html
from nbconvert import HTMLExporter
from nbgrader.server_extensions.formgrader import handlers

from helpers.grading import formgrader
from helpers.homework import release

COURSE = nbformat.read(release.SOURCE / "understanding.ipynb", as_version=4)
HOSTILE = ["<script>HOSTILE()</script>", "<img src=x onerror=HOSTILE()>", "[x](javascript:HOSTILE())",
           "<svg/onload=HOSTILE()>", "![x](javascript:HOSTILE())", "<javascript:HOSTILE()>",
           "[x]\n\n[x]: javascript:HOSTILE()",
           "$\\href{javascript:HOSTILE()}{x}$", "\u2028<script>HOSTILE()</script>", "```\n<script>HOSTILE()</script>",
           "![x](attachment:none)"]


def seen_by_the_instructor(notebook):
    """The page that the formgrader shows."""
    exporter = HTMLExporter(template_name="formgrade", extra_template_basedirs=[handlers.template_path])
    student = SimpleNamespace(first_name=None, last_name=None, id="s1")
    page, _ = exporter.from_notebook_node(notebook, resources={
        "notebook_id": "understanding", "assignment_id": "homework", "submission_id": "1", "index": 0, "total": 1,
        "student": student, "base_url": "/", "mathjax_url": "", "last_name": "", "first_name": ""})
    return html.fromstring(page)


def harm(page):
    """What on the page would run the student's code: scripts, handlers, links, and formulas, which may hold links."""
    attributes = [value for element in page.iter() if isinstance(element.tag, str) for name, value in element.items()
                  if name.startswith("on") or name in ("href", "src", "id", "class")]
    typeset = page.xpath("//text()[not(ancestor::pre) and not(ancestor::code)]")
    return [text for text in [*attributes, *typeset] if "HOSTILE" in text]


def answered(text, **nbgrader):
    notebook = copy.deepcopy(COURSE)
    [cell] = [cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("grade_id") == "answer_9"]
    cell.source = text
    cell.metadata.nbgrader |= nbgrader
    return notebook


@pytest.mark.parametrize("text", HOSTILE)
def test_no_answer_runs_in_the_instructors_browser(text):
    page = seen_by_the_instructor(formgrader.plain(answered(text), COURSE))
    assert harm(page) == []
    assert ("HOSTILE" in text) == ("HOSTILE" in page.text_content())


def test_the_formgrader_alone_would_run_it():
    assert harm(seen_by_the_instructor(answered(HOSTILE[0])))


def test_what_stands_in_a_cells_metadata_comes_from_the_course():
    notebook = answered("好", grade_id="\"><script>HOSTILE()</script>", points="<script>HOSTILE()</script>")
    assert harm(seen_by_the_instructor(formgrader.plain(notebook, COURSE))) == []


def test_an_answer_can_be_read_word_for_word_beside_the_courses_own_text():
    text = "一是训练数据，" * 20 + "\n\n二是 <b>测试</b> 数据。"
    page = seen_by_the_instructor(formgrader.plain(answered(text), COURSE))
    seen = page.text_content().replace("\n", "")
    assert text.replace("\n", "") in seen
    assert "为什么要掺普通对话" in [heading.text for heading in page.iter("h2")][8]
