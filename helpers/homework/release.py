"""The homework: the notebooks that students get, made from the instructor's by nbgrader, solutions removed.

python -m helpers.homework.release [FOLDER]   puts into the folder what is not there yet.
"""
import ast
import tempfile
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbgrader.converters import GenerateAssignment
from nbgrader.coursedir import CourseDirectory
from traitlets.config import Config

from helpers.machine import commands, profile
from helpers.machine.commands import CourseError
from helpers.machine.files import replaced
from helpers.machine.process import shown

COURSE = profile.ROOT / "notebooks" / "homework"
HOMEWORK = profile.ROOT / "workspace" / "homework"
ASSIGNMENT = "homework"
SOURCE = COURSE / "source" / ASSIGNMENT
CODE_STUB = "# 在这里写你的代码\nraise NotImplementedError(\"这一格还没有写\")"
TEXT_STUB = "在这里写你的回答"


@dataclass(frozen=True)
class Author:
    """Who did the homework: the student's number, the assistant's name, and whose assistant it is."""

    student: str
    assistant: str
    owner: str


def generate(folder: str | Path) -> Path:
    """Writes the released notebooks, and what lies beside them, into a new folder inside `folder`; gives its path."""
    config = Config()
    config.CourseDirectory.update(root=str(COURSE), release_directory=str(folder), assignment_id=ASSIGNMENT)
    config.ClearSolutions.update(code_stub={"python": CODE_STUB}, text_stub=TEXT_STUB)
    config.SaveCells.enabled = False  # the gradebook is the grader's business
    config.GenerateAssignment.no_database = True
    GenerateAssignment(coursedir=CourseDirectory(config=config), config=config).start()
    return Path(folder) / ASSIGNMENT


def release(folder: str | Path = HOMEWORK) -> list[str]:
    """Puts into the folder what is not there yet, never touching a student's work; gives the names of what is new."""
    new_files = []
    with tempfile.TemporaryDirectory() as scratch:
        for path in sorted(generate(scratch).iterdir()):
            target = Path(folder) / path.name
            if not target.exists():
                with replaced(target) as file:
                    file.write(path.read_text(encoding="utf-8"))
                new_files.append(path.name)
    return new_files


def cells(notebook: str | Path) -> dict[str, NotebookNode]:
    """The cells of a notebook's file that nbgrader knows, by their id."""
    return known_cells(nbformat.read(notebook, as_version=4))


def known_cells(notebook: NotebookNode) -> dict[str, NotebookNode]:
    """The cells that nbgrader knows, by their id."""
    return {cell.metadata.nbgrader.grade_id: cell for cell in notebook.cells if "nbgrader" in cell.metadata}


def author(notebook: str | Path = HOMEWORK / "basic.ipynb") -> Author:
    """Who did the homework, read from the first cell of the basic notebook without running it."""
    if not Path(notebook).is_file():
        raise CourseError(f"缺少 {shown(notebook)}。修复：运行 make homework。")
    try:
        texts = _assigned_texts(cells(notebook)["author"].source)
        return Author(texts["STUDENT"], texts["NAME"], texts["OWNER"])
    except (KeyError, ValueError, TypeError, SyntaxError, AttributeError) as error:
        raise CourseError(f"{shown(notebook)} 的第一格里要有三行：STUDENT = \"学号\"、NAME = \"助手的名字\"、"
                          "OWNER = \"你的名字\"，都用引号。修复：补上，再保存。") from error


def _assigned_texts(source):
    """The texts that a piece of Python assigns to names, word for word."""
    texts = {}
    for statement in ast.parse(source).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(text))):
                texts[name] = text
    return texts


@commands.command
def main() -> None:
    """The command line."""
    parser = commands.parser(__spec__, "放好作业的笔记本，做过的不动")
    parser.add_argument("folder", nargs="?", type=Path, default=HOMEWORK, help="放到哪里（默认：workspace/homework）")
    folder = parser.parse_args().folder
    new_files = release(folder)
    print(f"{shown(folder)}：" + (f"新放了 {'、'.join(new_files)}" if new_files else "都已经有了，没有动"))


if __name__ == "__main__":
    main()
