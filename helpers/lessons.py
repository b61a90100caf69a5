"""Run the core lessons in order, as a student would, into workspace/executed/.

python -m helpers.lessons [NAME ...]   all core lessons, or the ones whose names begin so.
"""
import re
import sys
import time

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from helpers.profile import ROOT, ProfileError, current

NOTEBOOKS = ROOT / "notebooks"
EXECUTED = ROOT / "workspace" / "executed"


def core_lessons(beginnings, notebooks=NOTEBOOKS):
    """The numbered lessons in order, or those whose names begin so."""
    return [path for path in sorted(notebooks.glob("[0-9][0-9]_*.ipynb"))
            if path.name.startswith(tuple(beginnings) or "")]


def times(notebooks=NOTEBOOKS):
    """The title of every core lesson and how long it takes, as its first cell says."""
    opening = {path: nbformat.read(path, as_version=4).cells[0].source for path in core_lessons([], notebooks)}
    return {re.search(r"^# (.+)$", text, re.M)[1]: re.search(r"^\*\*时间\*\*：(.+?)。?$", text, re.M)[1]
            for text in opening.values()}


def execute(path, folder):
    """Runs one notebook and keeps it with its outputs, also when a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=None, coalesce_streams=True,
                            resources={"metadata": {"path": path.parent}},
                            extra_arguments=["--log-level=ERROR"])  # no word about transport encryption
    folder.mkdir(parents=True, exist_ok=True)
    try:
        client.execute()
    finally:
        beside = folder / f"{path.name}.partial"
        nbformat.write(notebook, beside)
        beside.replace(folder / path.name)


def main(beginnings, notebooks=NOTEBOOKS, executed=EXECUTED):
    try:
        profile = current()
    except ProfileError as error:
        sys.exit(f"[FAIL] {error}")
    lessons = core_lessons(beginnings, notebooks)
    if not lessons:
        sys.exit(f"[FAIL] 没有这样开头的课：{' '.join(beginnings)}。课程在 {notebooks}。")
    print(f"profile: {profile.name}    base model: {profile.base_model}")
    for number, path in enumerate(lessons, 1):
        print(f"[{number}/{len(lessons)}] {path.stem} …", end=" ", flush=True)
        started = time.time()
        try:
            execute(path, executed)
        except CellExecutionError as error:
            print("[FAIL]")
            sys.exit(f"       {error.ename}: {error.evalue}\n       运行到出错处的笔记本：{executed / path.name}")
        print(f"[OK] {time.time() - started:.0f} s", flush=True)
    print(f"运行过的笔记本：{executed}\n你做出来的一切：{ROOT / 'workspace'}")


if __name__ == "__main__":
    main(sys.argv[1:])
