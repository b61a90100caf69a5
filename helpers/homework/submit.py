"""Submit the homework: what is still missing, in plain words, and the zip that the instructor collects.

python -m helpers.homework.submit
"""
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nbformat
from safetensors import SafetensorError, safe_open

from helpers.homework import names, package, release
from helpers.homework.package import DATA, MOST_CELLS, NAME, NOTEBOOKS, REPORT, SETTINGS, STUDENT, WEIGHTS, Refused
from helpers.homework.release import CODE_STUB, HOMEWORK, SOURCE, TEXT_STUB, Author, cells, known_cells
from helpers.machine import commands
from helpers.machine.commands import CourseError
from helpers.machine.process import shown

MADE_BY = {DATA: "作业一的第 3 节", SETTINGS: "作业一的第 4 节", WEIGHTS: "作业一的第 4 节"}
UNTITLED = "# 小组项目报告：题目"  # how the template begins


@dataclass(frozen=True)
class Homework:
    """What a student has made in a folder: notebooks, a report, and under the student's number everything else."""

    folder: Path = HOMEWORK

    @cached_property
    def author(self) -> Author:
        """Who did it."""
        return release.author(self.folder / "basic.ipynb")

    @property
    def files(self) -> dict[str, Path]:
        """What goes into the zip: {path in it: file on disk}; a report only if it is more than the template."""
        files = {f"{name}.ipynb": self.folder / f"{name}.ipynb" for name in NOTEBOOKS}
        for path in MADE_BY:
            files[path] = self.folder / self.author.student / path
        if self.has_report():
            files[REPORT] = self.folder / REPORT
        return files

    def has_report(self) -> bool:
        """Whether there is a report that is not the template any more."""
        report = self.folder / REPORT
        return report.is_file() and not report.read_text(encoding="utf-8", errors="replace").startswith(UNTITLED)

    def missing(self) -> list[str]:
        """What cannot be done without, in plain words; an empty list if the homework can be packed."""
        try:
            author = self.author
        except CourseError as error:
            return [str(error)]
        problems = []
        for path, file in self.files.items():
            if not file.is_file():
                problems.append(f"缺少 {shown(file)}：运行{MADE_BY.get(path, ' make homework，再做它')}。")
        if not STUDENT.fullmatch(author.student):
            problems.append(f"学号“{author.student}”不行：只用字母、数字、横线和下划线，最多 32 个字符。")
        for whose, name in (("助手", author.assistant), ("你", author.owner)):
            if not NAME.fullmatch(name):
                problems.append(f"{whose}的名字“{name}”不行：2 到 32 个字，只用文字、数字、空格和 · . -。")
        return problems or self._broken_files()

    def _broken_files(self):
        """What is there and is not what it should be."""
        problems = []
        for name in NOTEBOOKS:
            problems += self._notebook_problems(f"{name}.ipynb")
        weights, data = self.files[WEIGHTS], self.files[DATA]
        try:
            with safe_open(weights, "pt"):
                pass
        except SafetensorError:
            problems.append(f"{shown(weights)} 不完整：再运行一次{MADE_BY[WEIGHTS]}。")
        name = self.author.assistant
        if name not in data.read_text(encoding="utf-8"):
            problems.append(f"{shown(data)} 里没有“{name}”：改过名字以后，要把作业一从头运行一遍。")
        return problems

    def _notebook_problems(self, name):
        """Whether a notebook can be read, has all the cells that are graded, and no more than the grader takes."""
        path = self.folder / name
        try:
            notebook = nbformat.read(path, as_version=4)
        except ValueError:
            return [f"{shown(path)} 不是完整的笔记本：在 JupyterLab 里打开，重新保存。"]
        problems = []
        if len(notebook.cells) > MOST_CELLS:
            problems.append(f"{shown(path)} 有 {len(notebook.cells):,} 格，最多 {MOST_CELLS} 格：删掉多余的，再保存。")
        source = SOURCE / name
        wanted = cells(source) if source.is_file() else {}  # an instructor may keep the solutions back
        if lost := wanted.keys() - known_cells(notebook).keys():
            problems.append(f"{shown(path)} 少了要评分的格子（{'、'.join(sorted(lost))}）：把文件改个名，"
                            "运行 make homework 放一份新的，再把做过的复制过去。")
        return problems

    def name_problem(self) -> str | None:
        """Why nobody can tell whether the assistant has learnt its name, None if one can."""
        name = self.author.assistant
        if not (said := names.said_anyway(name)):
            return None
        return (f"“{name}”这个名字基座本来就会说（“{said[0]}”），“说出自己的名字”这一格不会有分："
                f"换一个名字，例如{'、'.join(names.learnt()[:5])}，从作业一的第 2 节重新训练。")

    def unfinished(self) -> dict[str, list[str]]:
        """What may be submitted as it is, but earns no points: {notebook: cells without an answer}."""
        unfinished = {}
        for name in NOTEBOOKS:
            by_id = cells(self.folder / f"{name}.ipynb")
            empty = [grade_id.removesuffix("_answer") for grade_id, cell in by_id.items() if _is_empty(cell)]
            if empty:
                unfinished[name] = empty
        return unfinished

    def pack(self) -> Path:
        """Packs the zip, if nothing is missing, and gives its path."""
        if problems := self.missing():
            raise CourseError("\n".join(["还不能交：", *problems]))
        author = self.author
        target = self.folder / f"{author.student}.zip"
        try:
            package.pack(self.files, target, author.student, author.assistant, author.owner)
        except Refused as error:
            raise CourseError(f"还不能交：{error}") from error
        return target


def _is_empty(cell):
    """Whether an answer's cell is as it was released."""
    untouched = CODE_STUB.splitlines()[-1] in cell.source or cell.source.strip() == TEXT_STUB
    return cell.metadata.nbgrader.solution and untouched


@commands.command
def main() -> None:
    """The command line."""
    work = Homework()
    target = work.pack()
    if problem := work.name_problem():
        print(problem)
    for name, empty in work.unfinished().items():
        print(f"{name}.ipynb 还有 {len(empty)} 处没有写，交了没有分：{'、'.join(empty)}")
    if not work.has_report():
        print(f"{REPORT} 还是模板，没有放进去；不做小组项目，就不用管它。")
    print(f"打包好了：{shown(target)}（{target.stat().st_size / package.MB:.1f} MB）。把它交给老师，不要改文件名。")


if __name__ == "__main__":
    main()
