"""A stranger's program in a sandbox of bubblewrap's, where it finds no network, no other process and no file but those
that it needs, and has bounds on its time, memory, processes and files.

python -m helpers.grading.sandbox   tells whether that works on this machine, and what to do if it does not.
"""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from helpers.machine import profile
from helpers.machine.commands import CourseError

MB, GB = 2**20, 2**30
HOME = Path("/home/student")
USER = "64321"  # instead of root, whom no limit holds: nobody's number
BIND_AND_RUN = 'while [ "$1" != -- ]; do mount --bind "$1" "$2"; shift 2; done; shift; exec "$@"'
PREFIX = "spreadsheet-to-assistant-sandbox-"
LOOK_EVERY = 0.25  # seconds
LONGEST_ANSWER = 8 * MB
HOW_TO_INSTALL = ("安装 0.8 或更新的 bubblewrap（Debian 12、Ubuntu 24.04 起：apt install bubblewrap），"
                  "再运行 python -m helpers.grading.sandbox 检查。")
HOW_TO_ALLOW = ("容器要允许用户命名空间；Ubuntu 24.04 还要运行 "
                "sysctl kernel.apparmor_restrict_unprivileged_userns=0。")


class Ended(CourseError):
    """The program in the sandbox ended without an answer: why, in our own words.

    What it `said` on standard error may hold anything, also what nobody but the instructor may read.
    """

    def __init__(self, why: str, said: str = ""):
        super().__init__(why)
        self.said = said
        self.add_note(said)


@dataclass(frozen=True)
class Limits:
    """The most that a sandboxed program may take."""

    seconds: int = 300
    memory: int = 3 * GB  # resident, of all its processes together
    address_space: int | None = 8 * GB  # of each process; torch alone asks for several
    processes: int = 128
    file: int = 64 * MB


class Sandbox:
    """A program that takes a line of JSON and gives a line of JSON, and that ends at the latest with the `with` block.

    `stopped` says why it was ended before its time, `peak` how many bytes of memory it had at most.
    """

    def __init__(self, command: Sequence[str], files: dict[str, Path] | None = None,
                 readable: Sequence[str | Path] = (), devices: Sequence[Path] = (),
                 variables: dict[str, str] | None = None, limits: Limits | None = None, protected: bool = True):
        self._command = command
        self._files = files or {}  # {name in the program's home: file or folder outside}
        self._readable = readable  # seen inside where it is outside
        self._devices = devices
        self._variables = variables or {}
        self._limits = limits or Limits()
        self._protected = protected
        self.stopped, self.peak = None, 0

    def __enter__(self):
        self._folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        self._folder.chmod(0o711)
        self._log = self._folder / "errors"
        self._stage = self._folder / "stage"
        self._home = self._folder / "home"
        self._stage.mkdir()
        self._home.mkdir()
        with self._log.open("wb") as errors:
            self._process = subprocess.Popen(
                self._confined() if self._protected else self._unprotected(), cwd=self._home, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                env={"PATH": os.defpath} if self._protected else self._environment(self._home))
        self._end = time.monotonic() + self._limits.seconds
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._watcher.join()
        self._kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):
                pipe.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def ask(self, request: object) -> object:
        """The program's answer to a request, each a line of JSON; Ended if there comes none."""
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline(LONGEST_ANSWER)
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            said = self._log.read_bytes()[-1000:].decode(errors="replace").strip()
            raise Ended(self.stopped or "程序没有回答就结束了", said) from error

    def _environment(self, home):
        return profile.ENVIRONMENT | {
            "PATH": f"{sys.prefix}/bin:/usr/bin:/bin", "HOME": str(home), "LANG": "C.UTF-8", "OMP_NUM_THREADS": "2",
        } | self._variables

    def _unprotected(self):
        for name, path in self._files.items():
            (self._home / name).symlink_to(path)
        return self._limited()

    def _limited(self):
        limits = {"as": self._limits.address_space, "nproc": self._limits.processes, "fsize": self._limits.file,
                  "nofile": 512, "core": 0}
        options = [f"--{name}={value}" for name, value in limits.items() if value is not None]
        return ["prlimit", *options, "--", *map(str, self._command)]

    def _confined(self):
        inside = {path: path for path in map(Path, [*always_readable(), *self._readable])}
        inside |= {path: HOME / name for name, path in self._files.items()}
        outside = dict(zip(inside, inside))
        prefix = ["choom", "-n", "1000", "--"]  # if memory runs out all the same, the kernel ends this program first
        if os.geteuid() == 0:
            outside = {path: self._stage / str(number) for number, path in enumerate(inside)}
            prefix += _as_ordinary_user(outside)
        variables, devices, links, binds = [], [], [], []
        for name, value in self._environment(HOME).items():
            variables += ["--setenv", name, value]
        for path in self._devices:
            devices += ["--dev-bind", str(path), str(path)]
        for name in ("bin", "lib", "lib64"):
            links += ["--symlink", f"usr/{name}", f"/{name}"]
        for path, place in inside.items():
            binds += ["--ro-bind", str(outside[path]), str(place)]
        return [*prefix, "bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent",
                "--new-session", "--cap-drop", "ALL", "--hostname", "sandbox", *variables,
                "--ro-bind", "/usr", "/usr", *links,
                "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache",
                "--ro-bind-try", "/etc/localtime", "/etc/localtime",
                "--proc", "/proc", "--dev", "/dev", *devices, *_tmpfs("/dev/shm", 64 * MB), *_tmpfs("/tmp", 256 * MB),
                *_tmpfs(HOME, 256 * MB), *_tmpfs(profile.ROOT / "workspace", 256 * MB), *binds,
                "--remount-ro", "/", "--chdir", str(HOME), "--", *self._limited()]

    def _watch(self):
        while not self.stopped and not self._ended.wait(LOOK_EVERY):
            self.stopped = self._excess()
            if self.stopped:
                self._kill()

    def _excess(self):
        """What the program takes too much of, None if nothing."""
        memory = _resident(self._process.pid)
        self.peak = max(self.peak, memory)
        if time.monotonic() > self._end:
            return f"超过 {self._limits.seconds} 秒，被停止"
        if memory > self._limits.memory:
            return f"内存超过 {self._limits.memory / GB:g} GB，被停止"
        return None

    def _kill(self):
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def always_readable() -> list[str | Path]:
    """What every program in the sandbox needs: Python, the course's helpers and data, but not what decides points."""
    python = {path for path in (sys.base_prefix, sys.prefix) if not Path(path).is_relative_to("/usr")}
    data = profile.ROOT / "data"
    course_data = [path for path in data.iterdir() if path.name != "homework"]
    return [*sorted(python), profile.ROOT / "helpers", profile.ROOT / "assets", *course_data]


def _as_ordinary_user(outside):
    """Goes from root to an ordinary user, who sees the paths where they are put, wherever root keeps them.

    No process stays in between: the sandbox ends with its parent only if that may kill it.
    """
    for path, place in outside.items():
        place.mkdir() if path.is_dir() else place.touch()
    pairs = []
    for path, place in outside.items():
        pairs += [str(path), str(place)]
    return ["unshare", "--mount", "--", "sh", "-ec", BIND_AND_RUN, "sh", *pairs, "--",
            "setpriv", "--reuid", USER, "--regid", USER, "--clear-groups", "--inh-caps=-all", "--bounding-set=-all",
            "--no-new-privs"]


def _tmpfs(place, size):
    return "--size", str(size), "--tmpfs", str(place)


def _resident(pid):
    """The memory of all processes under one, without what they share with files."""
    total = 0
    with suppress(psutil.Error):
        for process in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):
                memory = process.memory_info()
                total += memory.rss - memory.shared
    return total


def sweep() -> None:
    """Removes what the sandboxes of a killed process have left in the temporary folder."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        process = folder.name.removeprefix(PREFIX).partition("-")[0]
        with suppress(FileNotFoundError):  # another grader may be sweeping too
            ours = folder.lstat().st_uid == os.geteuid()
            if ours and process.isdecimal() and not psutil.pid_exists(int(process)):
                shutil.rmtree(folder, ignore_errors=True)


def problem() -> str | None:
    """Why no sandbox can be had on this machine and what to do, or None if it works."""
    if not shutil.which("bwrap"):
        return f"这台机器没有 bubblewrap。怎么办：{HOW_TO_INSTALL}"
    try:
        with Sandbox([sys.executable, "-c", "print(1)"], limits=Limits(seconds=30)) as sandbox:
            sandbox.ask(None)
    except (Ended, OSError) as error:
        reason = getattr(error, "said", "") or error
        return f"bubblewrap 在这里运行不了：{reason}。怎么办：{HOW_TO_INSTALL}{HOW_TO_ALLOW}"
    return None


if __name__ == "__main__":
    if why_not := problem():
        sys.exit(f"[FAIL] {why_not}")
    print("[OK]   沙箱可以用")
