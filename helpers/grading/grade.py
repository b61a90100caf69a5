"""Grade the homework of strangers: make grade SUBMISSIONS=folder

Every zip in the folder is unpacked, run and asked in the sandbox; points are decided out here. What was graded once is
kept, and graded again only when the zip or the rules have changed. Everything is written to workspace/grading/.
"""
import hashlib
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path

from helpers.grading import board, feedback, mark, rerun, sandbox, similar, similar_page, traits
from helpers.grading.gradebook import HEADER, Grades, summary, write_table
from helpers.grading.mark import Result
from helpers.grading.rules import DEFAULT, OUT, OWN, Rules, of_the_class
from helpers.homework import package
from helpers.homework.release import ASSIGNMENT
from helpers.machine import commands, profile
from helpers.machine.files import locked, replaced
from helpers.machine.process import shown

LOG = "sandbox.log"


class Session:
    """One run over a folder of submissions, with what earlier runs have left in `out`; to be used in a `with` block.

    While the block lasts no other grader works in `out`.
    """

    def __init__(self, folder: str | Path, out: str | Path, rules: Rules, protected: bool = True):
        self._folder = Path(folder)
        self._out = Path(out)
        self._rules = rules
        self._protected = protected

    def __enter__(self):
        with ExitStack() as opened:
            busy = f"{shown(self._out)} 里已经有一个评分在运行，在另一个终端里。先等它结束。"
            opened.enter_context(locked(self._out / "lock", busy))
            (self._out / "results").mkdir(exist_ok=True)
            self._clear_scratch()
            sandbox.sweep()
            self._copy_source()
            self._grades = opened.enter_context(closing(Grades(self._out, self._rules)))
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_):
        self._opened.close()

    def _clear_scratch(self):
        """Removes what a run that was killed has left."""
        shutil.rmtree(self._out / mark.SCRATCH, ignore_errors=True)
        (self._out / mark.SCRATCH).mkdir()

    def _copy_source(self):
        """Puts the homework where nbgrader's formgrader looks for it."""
        shutil.copytree(self._rules.source, self._out / "source" / ASSIGNMENT, dirs_exist_ok=True)

    def run(self) -> list[Result]:
        """Grades what is new, and writes the tables and the feedback; gives all results."""
        zips = self._submissions()
        results = self._kept_results(zips)
        to_grade = [path for path in zips if not self._is_up_to_date(path, results[path])]
        if to_grade:
            print(f"{len(zips)} 份作业，其中 {len(to_grade)} 份要评", flush=True)
            results |= self._grade(to_grade)
        self._write(list(results.values()))
        return list(results.values())

    def _submissions(self):
        """The zips in the folder; whatever else lies there is told."""
        zips = sorted(self._folder.glob("*.zip"))
        for path in sorted({*self._folder.iterdir()} - {*zips}):
            print(f"没有看 {path.name!r}：作业要是 .zip")
        return zips

    def _kept_results(self, zips):
        """The result that earlier runs have kept for each zip, None where there is none."""
        results = {path: self._read(rerun.printable(path.stem)) for path in zips}
        for result in results.values():
            if result:
                self._grades.record(result)  # the last run may have been cut off before it could
        return results

    def _is_up_to_date(self, path, result):
        """Whether a result is that of this zip and of these rules, and no failure."""
        if not result or result.failure:
            return False
        return (result.work, result.rules) == (mark.digest(path), self._rules.fingerprint)

    def _grade(self, paths):
        """The result of each zip, some at the same time, each kept as soon as it is there."""
        results = {}
        examiner = self._examiner()
        pool = ThreadPoolExecutor(profile.current().trainings_at_once)  # as many models as the machine holds
        try:
            running = {pool.submit(mark.mark, path, self._rules, examiner, self._out, self._protected): path
                       for path in paths}
            for done in as_completed(running):
                result = done.result()
                self._keep(result)
                results[running[done]] = result
                print(f"[{len(results):3}/{len(paths)}] {_line(result)}", flush=True)
        finally:
            pool.shutdown(cancel_futures=True)
        return results

    def _examiner(self):
        """Who asks the adapters, where the rules want them asked."""
        if not self._rules.criteria:
            return None
        from helpers.grading.examiner import Examiner  # slow: whoever has nothing to grade does not wait for it

        return Examiner(self._rules, self._protected)

    def _file(self, student):
        return self._out / "results" / f"{_file_name(student)}.json"

    def _read(self, student):
        """The result that was kept for a student, None if there is none; one that cannot be read is set aside."""
        file = self._file(student)
        try:
            return Result(**json.loads(file.read_text(encoding="utf-8")))
        except (FileNotFoundError, TypeError):  # or by another version of the course
            return None
        except (ValueError, RecursionError):
            aside = file.replace(file.with_name(f"{file.name}.broken"))
            print(f"{shown(file)} 读不出来，已经改名为 {aside.name}：{student} 的作业重新评，"
                  "你给过的分数不动；如果他换过作业，请再看一遍这些分数。")
            return None

    def _keep(self, result):
        """Puts a new result in the place of the one before, and its points into the gradebook."""
        before = self._read(result.student)
        result.new_work = before is not None and before.work != result.work
        if before:
            result.earlier = before.counts if result.new_work else before.earlier
        with replaced(self._file(result.student)) as file:
            json.dump(asdict(result), file)
        self._grades.record(result)

    def _write(self, results):
        self._write_feedback(results)
        self._write_log(results)
        write_table(HEADER, [summary(self._grades, result) for result in results], self._out / "grades.csv")
        self._write_similar(results)

    def _write_feedback(self, results):
        aliases = board.known_aliases(self._out, [result.student for result in results if result.counts])
        for result in results:
            by_hand = self._grades.by_hand(result.student)
            page = self._out / "feedback" / f"{_file_name(result.student)}.html"
            feedback.write(result, self._rules, by_hand, page, aliases.get(result.student))

    def _write_log(self, results):
        """What programs in the sandbox said at their end, for the instructor only."""
        with replaced(self._out / LOG) as file:
            for result in results:
                for said in result.said:
                    file.write(f"{result.student}\n{said}\n\n")

    def _write_similar(self, results):
        """What is alike, in a table and with the evidence on a page."""
        graded = [result for result in results if not result.failure]
        known = {result.student: result.traits for result in graded}
        known[similar.PUBLISHED] = traits.published(self._rules.course)
        pairs = similar.pairs(known)
        for result in graded:
            pairs += similar.with_the_exam(result.student, *result.in_the_data)
        groups = similar.groups(pairs)
        rows = [[number, pair.first, pair.second, pair.what, f"{pair.share:.0%}"]
                for number, group in enumerate(groups, 1) for pair in group.pairs]
        write_table(["组", "学生", "另一个学生", "相像的是", "有多少"], rows, self._out / "similar.csv")
        answers = {result.student: result.sources() for result in graded}
        answers[similar.PUBLISHED] = self._rules.solutions
        similar_page.write(groups, answers, known, self._out / "similar.html")


def _file_name(student):
    """The student's number, or what stands for one that is no file name."""
    return student if package.STUDENT.fullmatch(student) else hashlib.sha256(student.encode()).hexdigest()[:12]


def _line(result):
    if result.failure:
        return f"{result.student}　失败：{result.failure}"
    return f"{result.student}　自动评分 {sum(result.points.values()):g} 分　{result.seconds:.0f} 秒"


def _warn(path):
    """Says aloud that the rules are those that everybody can read."""
    if path.resolve() == DEFAULT:
        print(f"[WARN] 没有 {shown(OWN)}，用的是仓库里公开的考卷和测试：谁都能看到题目和答案，这样的分数不能当成绩。"
              "修复：make exam 抽一份只有你知道的，再评一次。", flush=True)


def _tell(results, out):
    """Prints how many were graded, and who was not."""
    failed = [result for result in results if result.failure]
    print(f"一共 {len(results)} 份，评了 {len(results) - len(failed)} 份，失败 {len(failed)} 份。"
          f"成绩表、反馈、相像的作业：{shown(out)}")
    for result in failed:
        print(f"失败：{result.student}　{result.failure}")


@commands.command
def main() -> None:
    """The command line."""
    parser = commands.parser("在沙箱里给作业评分")
    parser.add_argument("submissions", type=Path, nargs="?", help="放着学生的 zip 的文件夹")
    parser.add_argument("--rules", type=Path, default=of_the_class(),
                        help="评分规则（默认：make exam 抽的，没有才用公开的）")
    parser.add_argument("--out", type=Path, default=OUT, help="结果写到哪里（默认：workspace/grading）")
    parser.add_argument("--run-code-of-strangers-without-sandbox", action="store_true", dest="unprotected",
                        help="不用沙箱：学生的代码能读、能改、能删你能读、能改、能删的一切")
    options = parser.parse_args()
    os.environ.update(profile.environment())  # nbgrader starts alembic by name
    if not (options.submissions and options.submissions.is_dir()):
        sys.exit(f"[FAIL] 找不到作业的文件夹（{options.submissions}）：请用 make grade SUBMISSIONS=文件夹。")
    if not options.unprotected and (why_not := sandbox.problem()):
        sys.exit(f"[FAIL] 没有沙箱，不能运行学生的代码。{why_not}")
    _warn(options.rules)
    with Session(options.submissions, options.out, Rules(options.rules), not options.unprotected) as session:
        _tell(session.run(), options.out)
    _warn(options.rules)  # once more, where it is the last line


if __name__ == "__main__":
    main()
