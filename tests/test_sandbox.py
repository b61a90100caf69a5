import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from helpers.grading import sandbox
from helpers.grading.sandbox import GB, MB, Ended, Limits, Sandbox
from helpers.machine import profile

pytestmark = pytest.mark.usefixtures("sandboxed")


def tell(expression, prelude="pass", **options):
    """What an expression is worth in the sandbox."""
    code = f"import json, os, pathlib, socket, subprocess, sys, time\n{prelude}\nprint(json.dumps({expression}))"
    with Sandbox([sys.executable, "-c", code], **options) as box:
        return box.ask(None)


def test_the_command_line_says_that_it_works():
    done = subprocess.run([sys.executable, "-m", "helpers.grading.sandbox"], capture_output=True, text=True,
                          check=False)
    assert (done.returncode, done.stdout) == (0, "[OK]   沙箱可以用\n")


def test_without_bubblewrap_the_command_line_says_how_to_install_it():
    done = subprocess.run([sys.executable, "-m", "helpers.grading.sandbox"], capture_output=True, text=True,
                          check=False, env={"PATH": "/nowhere"})
    assert done.returncode == 1
    assert "apt install bubblewrap" in done.stderr


def test_nobody_is_root_in_it_and_no_namespace_can_be_made():
    assert tell("os.getuid()") == (int(sandbox.USER) if os.geteuid() == 0 else os.geteuid())
    assert tell("[line.split()[1] for line in open('/proc/self/status') if line.startswith('Cap')]") == ["0" * 16] * 5
    assert tell("subprocess.run(['unshare', '--user', 'true'], stderr=-3).returncode") != 0


def test_it_sees_its_own_processes_only():
    assert len(tell("[name for name in os.listdir('/proc') if name.isdigit()]")) <= 3


def test_it_sees_only_what_it_needs():
    assert set(tell("os.listdir('/etc')")) <= {"ld.so.cache", "localtime"}
    assert set(tell("os.listdir('/tmp')")) <= {*profile.ROOT.parts}  # the course itself may lie there
    inside = tell(f"os.listdir({str(profile.ROOT)!r})")
    assert set(inside) <= {"helpers", "assets", "data", "workspace", Path(sys.prefix).name}
    assert "homework" not in tell(f"os.listdir({str(profile.ROOT / 'data')!r})")


def test_it_knows_nothing_of_the_instructors_environment(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    assert "SECRET_TOKEN" not in str(tell("[dict(os.environ), open('/proc/1/environ').read()]"))


def test_a_file_given_to_it_can_be_read_and_not_written(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text("here")
    assert tell("open('train.jsonl').read()", files={"train.jsonl": file}) == "here"
    with pytest.raises(Ended, match="Read-only|Permission"):
        tell("open('train.jsonl', 'a').write('x')", files={"train.jsonl": file})
    with pytest.raises(Ended, match="Read-only|Permission"):
        tell(f"open({str(profile.ROOT / 'helpers' / 'new.py')!r}, 'w').write('x')")


def test_it_has_no_network():
    assert tell("[name for _, name in socket.if_nameindex()]") == ["lo"]
    with pytest.raises(Ended, match="unreachable"):
        tell("socket.create_connection(('1.1.1.1', 53), 5) and 1")


@pytest.mark.parametrize(("code", "reason"), [
    ("time.sleep(60)", "超过 3 秒"),
    ("[os.fork() for _ in range(3)]; x = bytearray(200 * 2**20); time.sleep(60)", "内存超过 0.5 GB"),
    ("x = bytearray(9 * 2**30)", "MemoryError"),
    ("open('big', 'w').close(); os.truncate('big', 2**31)", "File too large|没有回答"),
    ("[os.fork() or time.sleep(60) for _ in range(200)]", "Resource temporarily unavailable|超过 3 秒"),
    ("os._exit(0)", "没有回答"),
    ("print('[' * 100_000)", "没有回答"),
])
def test_what_takes_too_much_or_says_nothing_is_ended(code, reason):
    started = time.monotonic()
    with pytest.raises(Ended, match=reason):
        tell("1", code, limits=Limits(seconds=3, memory=GB // 2))
    assert time.monotonic() - started < 30


def test_its_disk_is_small():
    full = tell("size", """
size = 0
for place in ('/tmp', '/home/student', '/dev/shm'):
    try:
        for number in range(40):
            size += pathlib.Path(place, str(number)).write_bytes(bytes(2**24))
    except OSError:
        pass
""")
    assert full < 600 * MB


def test_nothing_is_left_of_it():
    marker = f"left-over-{os.getpid()}"
    code = f"""
import os, sys, subprocess, json
subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)', {marker!r}], start_new_session=True)
print(json.dumps(1), flush=True)
sys.stdin.read()
"""
    with Sandbox([sys.executable, "-c", code]) as box:
        assert box.ask(None) == 1
        folder = box._folder
        assert running(marker)
    assert not folder.exists()
    end = time.monotonic() + 10
    while running(marker) and time.monotonic() < end:
        time.sleep(0.1)
    assert not running(marker)


def test_it_ends_with_the_grader_even_if_that_is_killed():
    marker = f"orphan-{os.getpid()}"
    code = f"""
import sys, time
from helpers.grading.sandbox import Sandbox
with Sandbox([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(300)", {marker!r}]) as box:
    box.ask(None)
    print(box._folder, flush=True)
    time.sleep(300)
"""
    grader = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    folder = grader.stdout.readline().strip()
    assert running(marker)
    grader.kill()
    grader.wait()
    end = time.monotonic() + 10
    while running(marker) and time.monotonic() < end:
        time.sleep(0.1)
    assert not running(marker)
    sandbox.sweep()
    assert not Path(folder).exists()


def test_what_others_left_in_the_temporary_folder_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    dead = subprocess.Popen(["true"])
    dead.wait()
    ours, others, foreign = (tmp_path / name for name in (
        f"{sandbox.PREFIX}{dead.pid}-ours", f"sandbox-{dead.pid}-others", f"{sandbox.PREFIX}{dead.pid}-foreign"))
    for folder in (ours, others, foreign):
        folder.mkdir()
    if os.geteuid() == 0:  # nobody else can give a folder away
        os.chown(foreign, int(sandbox.USER), -1)
    sandbox.sweep()
    assert not ours.exists()
    assert others.exists()
    assert foreign.exists() or os.geteuid() != 0


def test_its_memory_is_measured():
    with Sandbox([sys.executable, "-c",
                  "import time; x = bytes(range(256)) * 2**20; time.sleep(1); print(len(x))"]) as box:
        assert box.ask(None) == 256 * MB
    assert 256 * MB < box.peak < 400 * MB


def running(marker):
    """The processes with an argument in their command line."""
    return [process.pid for process in psutil.process_iter(["cmdline"]) if marker in (process.info["cmdline"] or ())]
