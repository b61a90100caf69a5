"""Grade the homework of strangers: make grade SUBMISSIONS=folder

Every zip in the folder is unpacked, run and asked in the sandbox; points are decided out here. What was graded once is
kept, and graded again only when the zip or the rules have changed. Everything is written to workspace/grading/.
"""
import argparse
import fcntl
import hashlib
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

from helpers import feedback, mark, profile, rerun, sandbox, similar, submission
from helpers.convert import replaced
from helpers.gradebook import HEADER, Grades, summary, write_table
from helpers.homework import ASSIGNMENT
from helpers.process import shown
from helpers.rules import DEFAULT, Rules, RulesError

OUT = profile.ROOT / "workspace" / "grading"
LOG = "sandbox.log"
AT_ONCE = 2


class Busy(RuntimeError):
    """Another grader is at work in the same place."""


class Session:
    """One run over a folder of submissions, with what earlier runs have left in `out`."""

    def __init__(self, folder, out, rules, protected=True):
        self._folder, self._out, self._rules, self._protected = Path(folder), Path(out), rules, protected
        (self._out / "results").mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self._out / "lock")
        shutil.rmtree(self._out / mark.SCRATCH, ignore_errors=True)  # of a run that was killed
        (self._out / mark.SCRATCH).mkdir()
        sandbox.sweep()
        shutil.copytree(rules.source, self._out / "source" / ASSIGNMENT, dirs_exist_ok=True)  # formgrader wants it
        self._grades = Grades(self._out, rules)

    def run(self):
        """Grades what is new, and writes the tables and the feedback; gives all results."""
        zips = sorted(self._folder.glob("*.zip"))
        for path in sorted({*self._folder.iterdir()} - {*zips}):
            print(f"没有看 {path.name!r}：作业要是 .zip")
        results = {path: self._read(rerun.printable(path.stem)) for path in zips}
        for result in filter(None, results.values()):
            self._grades.record(result)  # the last run may have been cut off before it could
        todo = [path for path, result in results.items() if not self._holds(path, result)]
        if todo:
            print(f"{len(zips)} 份作业，其中 {len(todo)} 份要评", flush=True)
            for path, result in self._graded(todo):
                results[path] = result
        self._write(list(results.values()))
        self._grades.close()
        self._lock.close()
        return list(results.values())

    def _graded(self, todo):
        """Each path with its result, kept and recorded, as they come."""
        examiner = mark.Examiner(self._rules, self._protected) if self._rules.criteria else None
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            running = {pool.submit(mark.mark, path, self._rules, examiner, self._out, self._protected): path
                       for path in todo}
            for number, done in enumerate(as_completed(running), 1):
                result = done.result()
                before = self._read(result.student)
                result.new_work = before is not None and before.work != result.work
                self._keep(result)
                self._grades.record(result)
                print(f"[{number:3}/{len(todo)}] {_line(result)}", flush=True)
                yield running[done], result
        finally:
            pool.shutdown(cancel_futures=True)

    def _file(self, student):
        return self._out / "results" / f"{_file_name(student)}.json"

    def _read(self, student):
        file = self._file(student)
        try:
            return mark.Result(**json.loads(file.read_text(encoding="utf-8")))
        except (FileNotFoundError, TypeError):  # or by another version of the course
            return None
        except (ValueError, RecursionError):
            aside = file.replace(file.with_name(f"{file.name}.broken"))
            print(f"{shown(file)} 读不出来，已经改名为 {aside.name}：{student} 的作业重新评，"
                  "你给过的分数不动；如果他换过作业，请再看一遍这些分数。")
            return None

    def _holds(self, path, result):
        """Whether a result that was kept is that of this zip and of these rules, and no failure."""
        return (result and not result.failure
                and (result.work, result.rules) == (mark.digest(path), self._rules.fingerprint))

    def _keep(self, result):
        with replaced(self._file(result.student)) as file:
            json.dump(asdict(result), file)

    def _write(self, results):
        for result in results:
            feedback.write(self._out / "feedback" / f"{_file_name(result.student)}.html", result, self._rules,
                           self._grades.by_hand(result.student))
        with replaced(self._out / LOG) as file:
            file.writelines(f"{result.student}\n{said}\n\n" for result in results for said in result.said)
        write_table(self._out / "grades.csv", HEADER, [summary(self._grades, result) for result in results])
        alike = similar.pairs({result.student: result.traits for result in results if not result.failure})
        write_table(self._out / "similar.csv", ["学生", "另一个学生", "相像的是", "有多少"],
                    [[pair.first, pair.second, pair.what, f"{pair.share:.0%}"] for pair in alike])


def _locked(path):
    """The open file that keeps other graders away until it is closed."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise Busy(f"{shown(path.parent)} 里已经有一个评分在运行，在另一个终端里。先等它结束。") from None
    return file


def _file_name(student):
    """The student's number, or what stands for a file name that is none."""
    return student if submission.STUDENT.fullmatch(student) else hashlib.sha256(student.encode()).hexdigest()[:12]


def _line(result):
    if result.failure:
        return f"{result.student}　失败：{result.failure}"
    return f"{result.student}　自动评分 {sum(result.points.values()):g} 分　{result.seconds:.0f} 秒"


def main():
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m helpers.grade", description="在沙箱里给作业评分")
    parser.add_argument("submissions", type=Path, nargs="?", help="放着学生的 zip 的文件夹")
    parser.add_argument("--rules", type=Path, default=DEFAULT, help="评分规则（默认：课程自带的）")
    parser.add_argument("--out", type=Path, default=OUT, help="结果写到哪里（默认：workspace/grading）")
    parser.add_argument("--run-code-of-strangers-without-sandbox", action="store_true", dest="unprotected",
                        help="不用沙箱：学生的代码能读、能改、能删你能读、能改、能删的一切")
    options = parser.parse_args()
    os.environ.update(profile.environment())  # nbgrader starts alembic by name
    if not (options.submissions and options.submissions.is_dir()):
        sys.exit(f"[FAIL] 找不到作业的文件夹（{options.submissions}）：请用 make grade SUBMISSIONS=文件夹。")
    if not options.unprotected and (why_not := sandbox.problem()):
        sys.exit(f"[FAIL] 没有沙箱，不能运行学生的代码。{why_not}")
    try:
        results = Session(options.submissions, options.out, Rules(options.rules), not options.unprotected).run()
    except (RulesError, Busy, sandbox.Ended, profile.ProfileError) as error:
        sys.exit(f"[FAIL] {error}")
    failed = [result for result in results if result.failure]
    print(f"一共 {len(results)} 份，评了 {len(results) - len(failed)} 份，失败 {len(failed)} 份。"
          f"成绩表、反馈、相像的作业：{shown(options.out)}")
    for result in failed:
        print(f"失败：{result.student}　{result.failure}")


if __name__ == "__main__":
    main()
