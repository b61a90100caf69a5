"""The homework: the notebooks that students get, made from the instructor's by nbgrader, solutions removed.

python -m helpers.homework [FOLDER]   puts into the folder what is not there yet.
"""
import argparse
import ast
import tempfile
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbgrader.converters import GenerateAssignment
from nbgrader.coursedir import CourseDirectory
from traitlets.config import Config

from helpers import profile
from helpers.convert import replaced
from helpers.process import shown

COURSE = profile.ROOT / "notebooks" / "homework"
FOLDER = profile.ROOT / "workspace" / "homework"
ASSIGNMENT = "homework"
SOURCE = COURSE / "source" / ASSIGNMENT
CODE_STUB = "# 在这里写你的代码\nraise NotImplementedError(\"这一格还没有写\")"
TEXT_STUB = "在这里写你的回答"
OWN = ("STUDENT", "NAME", "OWNER")


class HomeworkError(RuntimeError):
    """Homework that cannot go on: what is wrong, where, and what to do."""


@dataclass(frozen=True)
class Author:
    """Who did the homework: the student's number, the assistant's name, and whose assistant it is."""

    student: str
    assistant: str
    owner: str


def generate(folder):
    """Writes the released notebooks, and what lies beside them, into a new folder inside `folder`; gives its path."""
    config = Config()
    config.CourseDirectory.update(root=str(COURSE), release_directory=str(folder), assignment_id=ASSIGNMENT)
    config.ClearSolutions.update(code_stub={"python": CODE_STUB}, text_stub=TEXT_STUB)
    config.SaveCells.enabled = False  # the gradebook is the grader's business
    config.GenerateAssignment.no_database = True
    GenerateAssignment(coursedir=CourseDirectory(config=config), config=config).start()
    return Path(folder) / ASSIGNMENT


def release(folder=FOLDER):
    """Puts into the folder what is not there yet, never touching a student's work; the names of what is new."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh = [path for path in sorted(generate(scratch).iterdir()) if not (Path(folder) / path.name).exists()]
        for path in fresh:
            with replaced(Path(folder) / path.name) as file:
                file.write(path.read_text(encoding="utf-8"))
    return [path.name for path in fresh]


def cells(notebook):
    """The cells of a notebook that nbgrader knows, by their id."""
    found = nbformat.read(notebook, as_version=4).cells
    return {cell.metadata.nbgrader.grade_id: cell for cell in found if "nbgrader" in cell.metadata}


def author(notebook=FOLDER / "basic.ipynb"):
    """Who did the homework, read from the first cell of the basic notebook without running it."""
    if not Path(notebook).is_file():
        raise HomeworkError(f"缺少 {shown(notebook)}。修复：运行 make homework。")
    try:
        tree = ast.parse(cells(notebook)["author"].source)
        told = {statement.targets[0].id: ast.literal_eval(statement.value) for statement in tree.body
                if isinstance(statement, ast.Assign)}
        return Author(*("".join(told[name]) for name in OWN))
    except (KeyError, ValueError, TypeError, SyntaxError, AttributeError) as error:
        raise HomeworkError(f"{shown(notebook)} 的第一格里要有三行：STUDENT = \"学号\"、NAME = \"助手的名字\"、"
                            "OWNER = \"你的名字\"，都用引号。修复：补上，再保存。") from error


def main():
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m helpers.homework", description="放好作业的笔记本，做过的不动")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="放到哪里（默认：workspace/homework）")
    folder = parser.parse_args().folder
    fresh = release(folder)
    print(f"{shown(folder)}：" + (f"新放了 {'、'.join(fresh)}" if fresh else "都已经有了，没有动"))


if __name__ == "__main__":
    main()
