"""200 submissions graded in one run that is killed on the way.

python -m tests.bench_grade
"""
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests import handed_in

SUBMISSIONS, KILLED_AFTER = 200, 80
RUN = """
import sys
from helpers.grading import grade, rules
with grade.Session(*sys.argv[1:3], rules.Rules(*sys.argv[3:])) as session:
    session.run()
"""


def run(place, source, rules, killed_after=None):
    """Grades the folder in a process of its own; gives the seconds, and the most memory that the process took."""
    started, peak = time.monotonic(), 0
    with subprocess.Popen([sys.executable, "-c", RUN, place / "in", place / "out", rules, source],
                          stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            peak = max(peak, psutil.Process(process.pid).memory_info().rss)
            if killed_after and line.startswith(f"[{killed_after:3}/"):
                os.kill(process.pid, signal.SIGKILL)
    return time.monotonic() - started, peak


def results(place):
    """What was kept, by student."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (place / "out/results").glob("*.json")}


def main():
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        source, rules = handed_in.course(place)
        for number in range(SUBMISSIONS):
            handed_in.hand_in(place / "in", f"s{number:03}", start=50 * number)
        first, _ = run(place, source, rules, KILLED_AFTER)
        before = results(place)
        second, peak = run(place, source, rules)
        after = results(place)
        again = sum(after[student] != before[student] for student in before)
        right = sum(result["points"] == {"data/mean": 6} for result in after.values())
        inside = max(result["peak"] for result in after.values())
        print(f"killed with {len(before)} of {SUBMISSIONS} graded; graded twice: {again}; right in the end: {right}")
        print(f"seconds per submission {(first + second) / SUBMISSIONS:.2f}; "
              f"peak memory: grader {peak / 2**20:.0f} MB, in a sandbox {inside / 2**20:.0f} MB")
        assert (len(after), again, right) == (SUBMISSIONS, 0, SUBMISSIONS)


if __name__ == "__main__":
    main()
