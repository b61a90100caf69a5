"""Run the core lessons in order, as a student would, into workspace/executed/.

python -m helpers.machine.lessons [NAME ...]   all core lessons, or the ones whose names begin so.
"""
import json
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from helpers.machine import commands
from helpers.machine.files import replaced
from helpers.machine.profile import ROOT, current

NOTEBOOKS = ROOT / "notebooks"
EXECUTED = ROOT / "workspace" / "executed"


def core_lessons(beginnings: Iterable[str] = (), notebooks: Path = NOTEBOOKS) -> list[Path]:
    """The numbered lessons in order, or those whose names begin so."""
    return [path for path in sorted(notebooks.glob("[0-9][0-9]_*.ipynb"))
            if path.name.startswith(tuple(beginnings) or "")]


def title(path: Path) -> str:
    """The title of a notebook, which its first cell begins with."""
    return re.search(r"^# (.+)$", _opening(path), re.M)[1]


def times(notebooks: Path = NOTEBOOKS) -> dict[str, str]:
    """The title of every core lesson and how long it takes, as its first cell says."""
    return {title(path): re.search(r"^\*\*时间\*\*：(.+?)。?$", _opening(path), re.M)[1]
            for path in core_lessons(notebooks=notebooks)}


def _opening(path: Path) -> str:
    """The text of a notebook's first cell."""
    return "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])


def execute(path: Path, folder: Path) -> None:
    """Runs one notebook and keeps it with its outputs, also when a cell fails."""
    import nbformat
    from nbclient import NotebookClient  # slow to import, and whoever asks for a title does not need it

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=None, coalesce_streams=True, record_timing=False,
                            resources={"metadata": {"path": path.parent}},
                            extra_arguments=["--log-level=ERROR"])  # no word about transport encryption
    try:
        client.execute()
    finally:
        with replaced(folder / path.name) as file:
            nbformat.write(notebook, file)


@commands.command
def main(beginnings: Iterable[str], notebooks: Path = NOTEBOOKS, executed: Path = EXECUTED) -> None:
    """The command line."""
    from nbclient.exceptions import CellExecutionError

    profile = current()
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
