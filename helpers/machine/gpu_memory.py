"""How much of the GPU's memory is free and who holds the rest: what needs much of it waits, or says for whom."""
import os
import subprocess
import time
from pathlib import Path

import psutil

from helpers.machine.commands import CourseError

GB, MIB = 10**9, 2**20
PATIENCE = 30  # seconds: a program that has ended takes a moment to give its memory back


def wait_for(size: float) -> None:
    """Returns when so many bytes are free on the GPU; if they do not become free, the error names who holds them.

    Where NVIDIA's own nvidia-smi is not there to be asked, nobody waits.
    """
    end = time.monotonic() + PATIENCE
    while size and (memory := _memory()):
        free, total = memory
        if free >= size:
            return
        if total < size:
            raise CourseError(f"显存不够：要 {size / GB:.1f} GB，这块显卡一共只有 {total / GB:.1f} GB。"
                              "修复：换更小的模型，或者更大的显卡。")
        if time.monotonic() > end:
            raise CourseError(f"显存不够：要 {size / GB:.1f} GB，只空着 {free / GB:.1f} GB，占着的是{_holders()}。"
                              "修复：运行那个笔记本的最后一格，或者关闭它的内核（Kernel → Shut Down）；"
                              "别的程序，等它结束。然后再运行一次。")
        time.sleep(1)


def used() -> float:
    """The bytes that are taken on the GPU, by whomever; 0 where nobody can be asked."""
    if memory := _memory():
        free, total = memory
        return total - free
    return 0


def _memory():
    """The bytes that are free on the GPU, and all; None if they cannot be known."""
    rows = _ask("--query-gpu=memory.free,memory.total")
    return [int(mebibytes) * MIB for mebibytes in rows[0]] if rows else None


def _holders():
    """Every program that holds memory of the GPU, in words, the largest first."""
    rows = [(int(used), int(pid)) for pid, used in _ask("--query-compute-apps=pid,used_memory")]
    held = [f"{_name(pid)}（进程 {pid}，{used * MIB / GB:.1f} GB）" for used, pid in sorted(rows, reverse=True)]
    return "、".join(held) or "看不见的程序，也许在同一块显卡的另一台开发机里"


def _name(pid):
    """A process as a student knows it: a notebook's by the notebook's name."""
    if pid == os.getpid():
        return "这个笔记本自己"
    try:
        process = psutil.Process(pid)
        notebook = process.environ().get("JPY_SESSION_NAME")  # Jupyter tells its kernels, and they whom they start
        return f"笔记本 {Path(notebook).name}" if notebook else process.name()
    except psutil.Error:
        return "别人的程序"


def _ask(query):
    """The rows of numbers that nvidia-smi answers for our GPU; none if it cannot be asked."""
    card = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    try:
        table = subprocess.run(["nvidia-smi", "-i", card, query, "--format=csv,noheader,nounits"],
                               capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    rows = [line.split(", ") for line in table.splitlines()]
    return [row for row in rows if all(cell.strip().isdecimal() for cell in row)]
