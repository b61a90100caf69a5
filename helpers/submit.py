"""Submit the homework: what is still missing, in plain words, and the zip that the instructor collects.

python -m helpers.submit
"""
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError, safe_open

from helpers import homework, submission
from helpers.homework import CODE_STUB, FOLDER, SOURCE, TEXT_STUB, HomeworkError, cells
from helpers.process import shown
from helpers.submission import DATA, NAME, NOTEBOOKS, REPORT, SETTINGS, STUDENT, WEIGHTS, Refused

MADE_BY = {DATA: "作业一的第 3 节", SETTINGS: "作业一的第 4 节", WEIGHTS: "作业一的第 4 节"}
UNTITLED = "# 小组项目报告：题目"  # how the template begins


@dataclass(frozen=True)
class Homework:
    """What a student has made in a folder: notebooks, a report, and under the student's number everything else."""

    folder: Path = FOLDER

    @cached_property
    def author(self):
        """Who did it."""
        return homework.author(self.folder / "basic.ipynb")

    @property
    def files(self):
        """What goes into the zip: {path in it: file on disk}; a report only if it is more than the template."""
        notebooks = {f"{name}.ipynb": self.folder / f"{name}.ipynb" for name in NOTEBOOKS}
        made = {path: self.folder / self.author.student / path for path in MADE_BY}
        return notebooks | made | ({REPORT: self.folder / REPORT} if self.has_report() else {})

    def has_report(self):
        """Whether there is a report that is not the template any more."""
        report = self.folder / REPORT
        return report.is_file() and not report.read_text(encoding="utf-8", errors="replace").startswith(UNTITLED)

    def missing(self):
        """What cannot be done without, in plain words; an empty list if the homework can be packed."""
        try:
            who = self.author
        except HomeworkError as error:
            return [str(error)]
        found = [f"缺少 {shown(file)}：运行{MADE_BY.get(path, ' make homework，再做它')}。"
                 for path, file in self.files.items() if not file.is_file()]
        if not STUDENT.fullmatch(who.student):
            found.append(f"学号“{who.student}”不行：只用字母、数字、横线和下划线，最多 32 个字符。")
        found += [f"{whose}的名字“{name}”不行：2 到 32 个字，只用文字、数字、空格和 · . -。"
                  for whose, name in {"助手": who.assistant, "你": who.owner}.items() if not NAME.fullmatch(name)]
        return found or self._broken()

    def _broken(self):
        """What is there and is not what it should be."""
        found = [problem for name in NOTEBOOKS for problem in self._notebook_problems(f"{name}.ipynb")]
        files, name = self.files, self.author.assistant
        try:
            with safe_open(files[WEIGHTS], "pt"):
                pass
        except SafetensorError:
            found.append(f"{shown(files[WEIGHTS])} 不完整：再运行一次{MADE_BY[WEIGHTS]}。")
        if name not in files[DATA].read_text(encoding="utf-8"):
            found.append(f"{shown(files[DATA])} 里没有“{name}”：改过名字以后，要把作业一从头运行一遍。")
        return found

    def _notebook_problems(self, name):
        """Whether a notebook can be read and still has all the cells that are graded."""
        notebook = self.folder / name
        wanted = cells(SOURCE / name) if (SOURCE / name).is_file() else {}  # an instructor may keep the solutions back
        try:
            gone = wanted.keys() - cells(notebook).keys()
        except ValueError:
            return [f"{shown(notebook)} 不是完整的笔记本：在 JupyterLab 里打开，重新保存。"]
        return [f"{shown(notebook)} 少了要评分的格子（{'、'.join(sorted(gone))}）：把文件改个名，运行 make homework "
                "放一份新的，再把做过的复制过去。"] if gone else []

    def unfinished(self):
        """What may be submitted as it is, but earns no points: {notebook: cells without an answer}."""
        found = {name: [grade_id.removesuffix("_answer")
                        for grade_id, cell in cells(self.folder / f"{name}.ipynb").items() if _is_empty(cell)]
                 for name in NOTEBOOKS}
        return {name: empty for name, empty in found.items() if empty}

    def pack(self):
        """Packs the zip, if nothing is missing, and gives its path."""
        if found := self.missing():
            raise HomeworkError("\n".join(["还不能交：", *found]))
        who = self.author
        target = self.folder / f"{who.student}.zip"
        try:
            submission.pack(target, self.files, who.student, who.assistant, who.owner)
        except Refused as error:
            raise HomeworkError(f"还不能交：{error}") from error
        return target


def _is_empty(cell):
    """Whether an answer's cell is as it was released."""
    return cell.metadata.nbgrader.solution and (CODE_STUB.splitlines()[-1] in cell.source
                                                or cell.source.strip() == TEXT_STUB)


def main():
    """The command line."""
    work = Homework()
    try:
        target = work.pack()
    except (HomeworkError, OSError) as error:
        sys.exit(f"[FAIL] {error}")
    for name, empty in work.unfinished().items():
        print(f"{name}.ipynb 还有 {len(empty)} 处没有写，交了没有分：{'、'.join(empty)}")
    if not work.has_report():
        print(f"{REPORT} 还是模板，没有放进去；不做小组项目，就不用管它。")
    print(f"打包好了：{shown(target)}（{target.stat().st_size / submission.MB:.1f} MB）。把它交给老师，不要改文件名。")


if __name__ == "__main__":
    main()
