"""Run a program so that its end is the truth: its whole log kept, its exit code believed."""
import os
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event, Timer
from typing import IO

from helpers.machine import gpu_memory, profile
from helpers.machine.commands import CourseError

XTUNER = {
    "train": "xtuner.tools.train",
    "pth_to_hf": "xtuner.tools.model_converters.pth_to_hf",
    "merge": "xtuner.tools.model_converters.merge",
}
LINES_REMEMBERED = 400
SECONDS_TO_STOP = 10
# A traceback through the reading of data, up to its error: only there does a missing value tell of a bad sample.
IN_DATA = r'File "\S+/(xtuner/dataset|datasets)/\S+", line [\s\S]*?\n\w+Error: .*'
# The first that matches the end of a log is what happened: what is wrong, and what to do.
FAILURES = {
    r"out of memory|can't allocate memory|Cannot allocate memory":
        "内存或显存不够。修复：减小 max_length 或 batch_size，关掉别的程序；第 3 课的检查会先估算要多少。",
    r"No space left on device|Disk quota exceeded":
        "磁盘满了。修复：腾出空间（workspace/ 里旧的训练可以删），再运行一次，会从上一个完整的检查点接着来。",
    r"Permission denied: (?P<what>\S+)":
        "没有写入 {what} 的权限。修复：把课程放到你自己的文件夹里。",
    r"(No such file or directory|Unable to find|Cannot find)\D*?'?(?P<what>[^\s']+\.jsonl?)":
        "找不到数据 {what}。修复：改正配置里的路径；没有数据就先做第 1、2 课。",
    r"FileNotFoundError: Cannot find (?P<what>\S+)|No such file or directory: '(?P<config>[^']+\.py)'":
        "找不到配置 {what}。修复：先做第 3 课，或者改正路径。",
    r"has no attribute '(?P<what>\w*(chat|template|sft)\w*)'":
        "没有叫 {what} 的对话模板。修复：prompt_template 改成 PROMPT_TEMPLATE.internlm2_chat，第 3 课的检查会告诉你。",
    r"(?P<what>\S+) is not a local folder|Can't load the (?:configuration|model|tokenizer) of '(?P<x>[^']+)'"
    r"|couldn't connect to|Repo id must|outgoing traffic has been disabled":
        "模型文件夹不对，XTuner 想去联网下载。修复：pretrained_model_name_or_path 改成本机的模型文件夹。",
    r"end should be larger than begin":
        "步数太少，预热连一步也分不到。修复：加数据、加大 max_epochs，或者加大 warmup_ratio。",
    r"PytorchStreamReader|not a ZIP archive|unexpected EOF|invalid load key":
        "检查点不完整，多半是写到一半被中断了。修复：删掉它，再运行第 4 课，会从上一个完整的接着来。",
    r"size mismatch for|Trying to set a tensor of shape":
        "检查点和配置里的模型对不上（换过 r 或基座）。修复：换回原来的配置，或者换一个文件夹重新训练。",
    r"DatasetGenerationError|JSON parse error|process_hf_dataset[^$]*AssertionError|Couldn't cast"
    rf"|{IN_DATA}(NoneType|unsupported operand type|not iterable)":
        "数据里有坏样本：缺字段、不是字符串，或者不是一行一条 JSON。"
        "修复：python -m helpers.train.check 配置，会说是哪一行。",
    r"same dtype|not implemented for 'Half'|is_bf16_supported|expected scalar type|must have the same dtype":
        "数值类型不适合这台机器。修复：用 profile.current().config_edits（第 3 课第 4 节）。",
    r"SyntaxError|NameError|IndentationError|ConfigParsingError":
        "配置不是正确的 Python。修复：从第 3 课的模板重新改一份。",
}


class Failed(CourseError):
    """A program that did not do its work: why in one sentence, and where its whole log is."""


def run_xtuner(name: str, *arguments: object, log: str | Path, **options) -> None:
    """Runs XTuner's train, pth_to_hf or merge to its end; raises Failed. The options are those of `lines`."""
    for _ in xtuner_lines(name, *arguments, log=log, **options):
        pass


def xtuner_lines(name: str, *arguments: object, log: str | Path, **options) -> Iterator[str]:
    """The output of XTuner's train, pth_to_hf or merge, line by line as it comes; the options are those of `lines`."""
    return lines([sys.executable, "-m", XTUNER[name], *map(str, arguments)], log=log, **options)


def lines(command: Iterable, *, log: str | Path, cwd: str | Path | None = None, typed: str = "",
          hold: Iterable[int] = (), gpu_bytes: float = 0, patience: float | None = None,
          **variables: str) -> Iterator[str]:
    """The output of a program, line by line as it comes; raises Failed unless it exits 0.

    The whole output is appended to `log`; what is `typed` is its input. The program has a process group of its own,
    which ends when we stop listening, however we end. The file descriptors in `hold` stay open as long as it lives;
    the `variables` are set in its environment. It starts when so many bytes of the GPU's memory are free, and is ended
    if it says nothing for more than `patience` seconds.
    """
    gpu_memory.wait_for(gpu_bytes)
    log = Path(log)
    log.parent.mkdir(parents=True, exist_ok=True)
    end, given_up = deque(maxlen=LINES_REMEMBERED), Event()
    with log.open("a", encoding="utf-8") as kept:
        process = start(command, env=profile.environment() | variables, cwd=cwd, stdin=subprocess.PIPE,
                        stderr=subprocess.STDOUT, errors="replace", pass_fds=hold)
        try:
            with suppress(BrokenPipeError), process.stdin:  # it may end without reading
                process.stdin.write(typed)
            for line in _said(process, patience, given_up):
                kept.write(line)
                kept.flush()
                end.append(line)
                yield line.rstrip("\n")
            process.wait()
        finally:
            stop(process)
    if given_up.is_set():
        raise Failed(f"{patience:g} 秒里什么也没有说，停掉了它。修复：看日志里最后停在哪里。\n完整的日志：{shown(log)}")
    if process.returncode:
        raise Failed(f"{explain(''.join(end), process.returncode)}\n完整的日志：{shown(log)}")


def _said(process, patience, given_up):
    """What a program says, line by line; one that is silent for too long is ended."""
    def give_up():
        given_up.set()
        os.killpg(process.pid, signal.SIGKILL)

    def read():
        clock = Timer(patience, give_up)
        clock.start()
        try:
            return process.stdout.readline()
        finally:
            clock.cancel()

    return iter(read, "") if patience else process.stdout


def start(command: Iterable, stdout: int | IO = subprocess.PIPE, **options) -> subprocess.Popen:
    """Starts a program in a process group of its own, which ends with us, its output as text, to be read or to a file.

    For Linux "us" is the thread that calls this: start from one that lives as long as the program is needed.
    """
    return subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *map(str, command)], stdout=stdout, text=True,
                            start_new_session=True, **options)


def stop(process: subprocess.Popen) -> None:
    """Ends a process group: politely, then not."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_STOP)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout:
        process.stdout.close()


def explain(output: str, code: int) -> str:
    """What went wrong, in one sentence with the mend."""
    _, header, traceback = output.partition("Traceback (most recent call last)")
    output = traceback if header else output  # before it may stand anything, such as the student's own data
    for pattern, sentence in FAILURES.items():
        if matches := list(re.finditer(pattern, output)):
            named = [text for text in matches[-1].groupdict().values() if text]
            return sentence.format(what=named[0] if named else "")
    if code < 0:
        return (f"进程被系统结束（{signal.Signals(-code).name}），多半是内存不够。"
                "修复：关掉别的程序，或者减小 max_length、batch_size。")
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "什么也没有输出")
    return f"没有见过的错误：{last.strip()[:300]}"


def shown(path: str | Path) -> Path:
    """A path as a student sees it: from the course's folder on, where it lies in it."""
    path = Path(path).resolve()
    return path.relative_to(profile.ROOT) if path.is_relative_to(profile.ROOT) else path
