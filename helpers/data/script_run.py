"""A script run apart: in a process and a folder of its own, without what lies in the workspace, within bounds.

The bounds hold its mistakes, not its malice: it may read and delete whatever its user may.
"""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from helpers.machine import process
from helpers.machine.commands import CourseError

CPU_SECONDS, SECONDS = 30, 300
LONGEST = 200  # characters of what a script says
BOUNDED = ("prlimit", f"--cpu={CPU_SECONDS}:{2 * CPU_SECONDS}", f"--as={4 * 2**30}", f"--fsize={64 * 2**20}",
           "--core=0", "--")
ENVIRONMENT = {"PATH": os.defpath, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
FORM = '{"conversation": [{"system": …, "input": …, "output": …}]}'
OTHER_ENCODING = '脚本第 {lines} 行打开文件时没有写 encoding="utf-8"：到了 Windows 上，汉字会变成另一种编码'


class Broke(CourseError):
    """A script that left nothing to be judged: why, in one sentence."""


def run(script: Path, source: Path, outputs: Sequence[str]) -> tuple[list[bytes], list[str]]:
    """What a script called as `python SCRIPT SOURCE OUTPUT…` writes, and what is wrong with it on other machines."""
    command = [script.name, source.name, *outputs]
    with TemporaryDirectory() as folder, TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        home = Path(folder)
        for path in (script, source):
            shutil.copy(path, home)
        running = process.start([*BOUNDED, sys.executable, "-X", "warn_default_encoding", *command], cwd=home,
                                env=ENVIRONMENT | {"HOME": folder}, stdin=subprocess.DEVNULL, stdout=said,
                                stderr=subprocess.STDOUT)
        try:
            code = running.wait(SECONDS)
        except subprocess.TimeoutExpired:
            raise Broke(f"等了 {SECONDS} 秒还没有结束，被停了下来") from None
        finally:
            process.stop(running)
        said.seek(0)
        log = said.read()
        if code:
            raise Broke(_why(log, script.name, code))
        if missing := [name for name in outputs if not (home / name).is_file()]:
            others = sorted({path.name for path in home.iterdir()} - {script.name, source.name})
            instead = f"，却写出了 {'、'.join(others)}" if others else ""
            raise Broke(f"没有写出 {'、'.join(missing)}{instead}：文件名要从命令行取（python {' '.join(command)}）")
        contents = [(home / name).read_bytes() for name in outputs]
    lines = re.findall(rf"{re.escape(script.name)}:(\d+): EncodingWarning", log)
    return contents, [OTHER_ENCODING.format(lines="、".join(lines))] if lines else []


def _why(log: str, script: str, code: int) -> str:
    """Why a script ended with that code, in one sentence."""
    if code == -signal.SIGXCPU:
        return f"算了 {CPU_SECONDS} 秒还没有结束，被停了下来"
    if code < 0:
        return f"脚本被系统结束（{signal.Signals(-code).name}）"
    at = re.findall(rf'File "[^"]*{re.escape(script)}", line (\d+)', log)
    last = next((text.strip()[:LONGEST] for text in reversed(log.splitlines()) if text.strip()), "什么也没有说")
    return f"脚本第 {at[-1]} 行出错：{last}" if at else f"脚本以退出码 {code} 结束：{last}"


def read_json_lines(contents: dict[str, bytes]) -> tuple[list[list[dict]], list[str]]:
    """The samples in files by name, and which of them are no JSON Lines; Broke where they cannot be read at all."""
    parts, faults = [], []
    for name, content in contents.items():
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            raise Broke(f"{name} 不是 UTF-8：打开文件时要写 encoding=\"utf-8\"") from None
        if text.lstrip().startswith("["):
            faults.append(f"{name} 整个是一个 JSON 数组，不是 JSON Lines（一行一个样本）")
            parts.append(_parsed(text, name))
        else:
            lines = text.removesuffix("\n").split("\n") if text else []
            parts.append([_parsed(text, f"{name} 第 {number} 行") for number, text in enumerate(lines, 1)])
        for number, sample in enumerate(parts[-1], 1):
            if not _has_the_form(sample):
                raise Broke(f"{name} 的第 {number} 个样本不是 {FORM}，而是 {line(sample)[:LONGEST]}")
    return parts, faults


def _parsed(text: str, place: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Broke(f"{place}不是完整的 JSON（{error}）") from None


def _has_the_form(sample: object) -> bool:
    """Whether a sample is a conversation of one turn."""
    match sample:
        case {"conversation": [{"system": _, "input": _, "output": _}]}:
            return True
    return False


def line(sample: object) -> str:
    """A sample as JSON, equal for equal samples."""
    return json.dumps(sample, ensure_ascii=False, sort_keys=True)
