"""The rooms of helpers/ and the arrows between them, as helpers/README.md draws them."""
import ast
import json
import re

import pytest
from IPython.core.inputtransformer2 import TransformerManager

from helpers.machine.profile import ROOT

HELPERS = ROOT / "helpers"
PAGE = (HELPERS / "README.md").read_text(encoding="utf-8")
ROOMS = dict(re.findall(r"^\| `(\w+)` \| .*? \| ?(.*?) ?\|$", PAGE, re.M))  # in order: their lessons


def rooms_in(source):
    """The rooms that a piece of code imports from."""
    modules = [node.module for node in ast.walk(ast.parse(source))
               if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("helpers.")]
    return {module.split(".")[1] for module in modules}


def code_of(notebook):
    """The Python of a notebook's cells, IPython's own lines translated into it."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    translate = TransformerManager().transform_cell
    return "\n".join(translate("".join(cell["source"])) for cell in cells if cell["cell_type"] == "code")


def short_name(notebook):
    """The lesson as the page calls it: its number, A or B for an appendix, H for the homework."""
    if "homework" in notebook.parts:
        return "H"
    if notebook.name.startswith("appendix_"):
        return notebook.name.split("_")[1].upper()
    return notebook.name[:2]


def test_the_page_tells_of_every_room_and_of_no_other():
    assert set(ROOMS) == {folder.name for folder in HELPERS.iterdir() if (folder / "__init__.py").exists()}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_needs_only_what_stands_above_it(room):
    above = list(ROOMS)[:list(ROOMS).index(room) + 1]
    needed = {path.name: rooms_in(path.read_text(encoding="utf-8")) - {*above, "cpu"}
              for path in (HELPERS / room).glob("*.py")}
    assert not {name: below for name, below in needed.items() if below}


def test_the_page_names_the_lessons_that_use_a_room():
    used = {room: set() for room in ROOMS}
    for notebook in [*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "notebooks/homework/source").rglob("*.ipynb")]:
        for room in rooms_in(code_of(notebook)):
            used[room].add(short_name(notebook))
    assert {room: set(lessons.split()) for room, lessons in ROOMS.items()} == used


def test_every_room_says_in_one_line_what_it_is_for():
    for room in ROOMS:
        assert ast.get_docstring(ast.parse((HELPERS / room / "__init__.py").read_text(encoding="utf-8")))
