"""Hostile submissions, graded by the real grader in one run; each test looks at what one of them came to."""
import hashlib
import json
import os
import pickle
import socket
import sqlite3
import stat
import threading
import zipfile
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_notebook, new_raw_cell

from helpers.grading import grade
from helpers.grading.rules import DEFAULT, Rules
from helpers.machine import profile
from tests import handed_in

pytestmark = pytest.mark.usefixtures("sandboxed")

SECRET = "only the instructor knows 4711"
WRONG = "def mean(values):\n    return 0\n"


def attempt(*actions):
    """Python that tries each action and prints what came of it."""
    return "".join(f"""
try:
    {action}
    print("DONE", {action!r})
except BaseException as error:
    print("denied:", type(error).__name__)
""" for action in actions) + WRONG


def reading(place):
    files = ["gradebook.db", "results/li.json", "../in/li.zip", "../secret.txt", "../source/data.ipynb",
             "../checks.toml"]
    paths = [*(str(place / "out" / file) for file in files), str(DEFAULT), "/etc/shadow"]
    return attempt(*(f"print(open({path!r}, 'rb').read())" for path in paths),
                   "import os; os.symlink(" + repr(str(place / "secret.txt")) + ", 'link'); print(open('link').read())",
                   f"import os; print(os.listdir({str(place)!r}))")


def writing(place):
    change = ("import sqlite3; sqlite3.connect({!r}).execute('update grade set auto_score = 99')"
              .format(str(place / "out" / "gradebook.db")))
    targets = [place / "secret.txt", place / "in" / "li.zip", place / "checks.toml",
               profile.ROOT / "helpers" / "grading" / "rules.py", profile.ROOT / "data" / "raw" / "exam.xlsx"]
    return attempt(change, *(f"open({str(path)!r}, 'wb').write(b'mine')" for path in targets))


def calling_out(place, port):
    connect = "import socket; socket.socket({}, {}).connect({!r})".format
    return attempt(connect("socket.AF_INET", "socket.SOCK_STREAM", ("127.0.0.1", port)),
                   connect("socket.AF_INET", "socket.SOCK_DGRAM", ("1.1.1.1", 53)),
                   connect("socket.AF_UNIX", "socket.SOCK_STREAM", f"\0grader{port}"),
                   connect("socket.AF_UNIX", "socket.SOCK_STREAM", str(place / "socket")),
                   "import socket; socket.getaddrinfo('example.com', 80)")


STRIP_ASSERTS = """
import ast
class Strip(ast.NodeTransformer):
    def visit_Assert(self, node):
        return ast.Pass()
get_ipython().ast_transformers.append(Strip())
""" + WRONG

LIAR = """
class Liar(float):
    __eq__ = lambda *_: True
    __ne__ = lambda *_: False
    __sub__ = __rsub__ = lambda *_: 0.0
    __float__ = lambda self: 0.0
    __repr__ = __str__ = lambda self: "2"
    __hash__ = float.__hash__
def mean(values):
    return Liar(7)
"""

TAMPER = WRONG + """
import json, builtins
get_ipython().input_transformers_cleanup.append(lambda lines: ["pass\\n"])
json.dumps = lambda *_, **__: "true"
builtins.print = lambda *_: None
get_ipython().user_expressions = lambda _: {"value": {"status": "ok", "data": {"text/plain": "'74727565'"}}}
"""

FORGE = WRONG + """
import json, os, threading, time
answer = json.dumps({"text": "", "error": None, "value": "'31'"}) + "\\n"
print("RESULT 6/6\\n" + answer)
def flood():
    for number in os.listdir("/proc"):
        if number.isdigit():
            for descriptor in "12":
                try:
                    open(f"/proc/{number}/fd/{descriptor}", "w").write(answer * 50)
                except OSError:
                    pass
flood()
"""

LEAK = """
seen = []
def mean(values):
    seen.append(values)
    if len(seen) == 2:
        signature = f"\\x1b[2J {seen}".encode()
        get_ipython().kernel.iopub_socket.send_multipart([b"x", b"<IDS|MSG>", signature, *[b"{}"] * 4])
    return 0
"""

FORK_BOMB = """
import os, time
made = 0
try:
    while made < 2000:
        if os.fork() == 0:
            time.sleep(100)
        made += 1
except OSError:
    pass
print("MADE", made)
""" + WRONG

MANY_EATERS = """
import os, time
for _ in range(20):
    if os.fork() == 0:
        x = bytearray(2**29)
        time.sleep(100)
time.sleep(20)
""" + WRONG

DAEMON = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "{marker}"], start_new_session=True)
print("started")
""" + WRONG

FILL = """
size = 0
try:
    with open("big", "wb") as file:
        for _ in range(2048):
            size += file.write(bytes(2**20))
except OSError as error:
    print("denied:", error)
print("WRITTEN", size)
""" + WRONG


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """All attacks graded in one run: the results by student, the folder, and what it held before."""
    place = tmp_path_factory.mktemp("attacked")
    source, rules = handed_in.course(place)
    (place / "secret.txt").write_text(SECRET)
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    listeners = [server]
    for name in (f"\0grader{port}", str(place / "socket")):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(name)
        listener.listen()
        listeners.append(listener)
    calls = []
    for listener in listeners:
        threading.Thread(target=lambda listener=listener: calls.append(listener.accept()), daemon=True).start()
    marker = f"daemon-{os.getpid()}"
    codes = {
        "reading": reading(place), "writing": writing(place), "calling": calling_out(place, port),
        "strip": STRIP_ASSERTS, "liar": LIAR, "tamper": TAMPER, "forge": FORGE, "leak": LEAK, "bomb": FORK_BOMB,
        "eater": "x = bytearray(16 * 2**30)\n" + WRONG, "eaters": MANY_EATERS, "fill": FILL,
        "daemon": DAEMON.format(marker=marker), "exit": WRONG + "import os; os._exit(0)",
        "killer": WRONG + "import os; os.kill(-1, 9)", "output": "print('x' * 10**8)\n" + WRONG,
        "html": "print('<script>alert(1)</script>')\n" + WRONG + "# <img src=x onerror=alert(1)>",
        "terminal": "print('\\x1b[2J\\x1b]0;owned\\x07')\n" + WRONG,
        "li": handed_in.RIGHT,
    }
    for number, (student, code) in enumerate(codes.items()):
        handed_in.hand_in(place / "in", student, code, start=100 * number)
    before = state(place)
    with grade.Session(place / "in", place / "out", Rules(rules, source)) as session:
        results = {result.student: result for result in session.run()}
    yield results, place, before, calls, marker
    for listener in listeners:
        listener.close()


def state(place):
    """The digest of everything of the instructor's, apart from what the grader itself writes."""
    course = [profile.ROOT / "helpers" / "grading" / "rules.py", profile.ROOT / "data" / "raw", place / "in",
              place / "source", place / "secret.txt", place / "checks.toml"]
    files = [file for path in course for file in ([path] if path.is_file() else path.rglob("*"))
             if file.is_file() and "__pycache__" not in file.parts]
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def printed(attacked, student):
    """What the attack itself said."""
    return attacked[0][student].answers["data"][0]["text"]


@pytest.mark.parametrize("student", [
    "strip", "liar", "tamper", "forge", "leak", "reading", "writing", "calling", "bomb", "eater", "eaters", "fill",
    "daemon", "exit", "killer", "output", "html", "terminal"])
def test_an_attack_earns_nothing(attacked, student):
    result = attacked[0][student]
    assert not result.failure
    assert result.points == {"data/mean": 0}


def test_honest_work_among_attacks_earns_everything(attacked):
    assert attacked[0]["li"].points == {"data/mean": 6}


@pytest.mark.parametrize("student", ["reading", "writing", "calling"])
def test_nothing_that_was_tried_was_done(attacked, student):
    assert "denied" in printed(attacked, student)
    assert "DONE" not in printed(attacked, student)


def test_the_instructors_files_are_as_they_were(attacked):
    _, place, before, *_ = attacked
    assert state(place) == before


def test_the_gradebook_holds_what_the_grader_decided(attacked):
    results, place, *_ = attacked
    with sqlite3.connect(place / "out" / "gradebook.db") as database:
        scores = database.execute("select auto_score from grade where auto_score is not null").fetchall()
    assert sorted(score for score, in scores) == [0] * (len(results) - 1) + [6]


def test_no_secret_and_no_hidden_input_is_in_what_students_get(attacked):
    _, place, *_ = attacked
    for file in (place / "out" / "feedback").iterdir():
        text = file.read_text(encoding="utf-8")
        assert SECRET not in text
        assert "77331.5" not in text
        assert "25777.5" not in text


def test_what_a_program_said_at_its_end_is_read_by_the_instructor_only(attacked):
    results, place, *_ = attacked
    log = (place / "out" / grade.LOG).read_text(encoding="utf-8")
    assert "77331.5" in log, "the attack leaks nothing, so that nothing proves that a leak is kept from students"
    assert "\x1b" not in log
    page = (place / "out" / "feedback" / "leak.html").read_text(encoding="utf-8")
    assert results["leak"].remarks == [
        "data.ipynb 没有运行完：程序没有回答就结束了。请在 JupyterLab 里重启内核，从头运行一遍，改好再交。"]
    assert results["leak"].remarks[0] in page


def test_no_connection_was_made(attacked):
    assert attacked[3] == []


def test_no_process_is_left(attacked):
    *_, marker = attacked
    assert not [process for process in psutil.process_iter(["cmdline"]) if marker in (process.info["cmdline"] or ())]


def test_processes_memory_and_files_have_bounds(attacked):
    results = attacked[0]
    assert "内存超过" in str(results["bomb"].remarks) or int(printed(attacked, "bomb").split()[1]) < 200
    assert "MemoryError" in results["eater"].answers["data"][0]["error"]
    assert "内存超过" in results["eaters"].remarks[0]
    assert int(printed(attacked, "fill").split()[-1]) <= 2**26


def test_a_hundred_megabytes_of_output_are_kept_as_a_few(attacked):
    results, place, *_ = attacked
    assert len(printed(attacked, "output")) == 20_000
    assert all(file.stat().st_size < 2**20 for file in (place / "out").rglob("*") if file.suffix != ".db")


def test_no_script_reaches_a_browser(attacked):
    page = (attacked[1] / "out" / "feedback" / "html.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page
    assert "<img" not in page


def test_nothing_that_was_printed_steers_the_instructors_terminal(attacked):
    assert printed(attacked, "terminal") == "\ufffd[2J\ufffd]0;owned\ufffd\n"


class Bomb:
    """What runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch /tmp/unpickled",)


def config(**changes):
    def change(content):
        content["adapter/adapter_config.json"] = json.dumps(handed_in.settings(**changes)).encode()
    return change


def put(name, data):
    return lambda content: content.update({name: data})


WEIGHTS = "adapter/adapter_model.safetensors"
REFUSED = {
    "regex": (config(target_modules="(a+)+$"), "target_modules"),
    "head": (config(target_modules=["lm_head"]), "target_modules"),
    "megatron": (config(megatron_config={}, megatron_core="os"), "megatron_core"),
    "mapping": (config(auto_mapping={"parent_library": "os", "base_model_class": "x"}), "auto_mapping"),
    "saved": (config(modules_to_save=["lm_head"]), "modules_to_save"),
    "rank": (config(r=10**9), "r 要在"),
    "alpha": (config(lora_alpha=float("nan")), "lora_alpha"),
    "patterns": (config(rank_pattern={"(a+)+$": 3}), "rank_pattern"),
    "other": (config(surprise="yes"), "surprise"),
    "kind": (config(peft_type="IA3"), "peft_type"),
    "listed": (put("adapter/adapter_config.json", b"[]"), "adapter_config.json"),
    "pickle": (put("adapter/adapter_model.bin", pickle.dumps(Bomb())), "运行代码"),
    "disguise": (put(WEIGHTS, pickle.dumps(Bomb())), "safetensors"),
    "header": (put(WEIGHTS, (2**40).to_bytes(8, "little")), "safetensors"),
    "shape": (config(r=4), "对不上"),
    "nested": (put("data.ipynb", b"[" * 100_000), "data.ipynb"),
    "nothing": (put("data.ipynb", b"{}"), "data.ipynb"),
    "halves": (put("data.ipynb", nbformat.writes(handed_in.notebook("data")).replace("mean", "\\ud800").encode()),
               "data.ipynb"),
    "version": (put("data.ipynb", json.dumps(handed_in.notebook("data") | {"nbformat": 9}).encode()), "data.ipynb"),
    "minor": (put("data.ipynb", json.dumps(handed_in.notebook("data") | {"nbformat_minor": "x"}).encode()),
              "data.ipynb"),
    "cells": (put("data.ipynb", nbformat.writes(new_notebook(cells=[new_raw_cell() for _ in range(501)])).encode()),
              "最多 500 格"),
    "escape": (config(**{"\x1b[2J\ud800": 1}), "\ufffd[2J\ufffd"),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """Submissions whose models and files are the attack."""
    place = tmp_path_factory.mktemp("refused")
    criteria = ("retention",)
    source, rules = handed_in.course(
        place, handed_in.RULES + "[adapter]\nquestions = 'questions.jsonl'\n[adapter.retention]\nnone = 0\nfull = 1\n",
        criteria, handed_in.questions(sum=8))
    honest = handed_in.hand_in(place, "honest", criteria=criteria)
    (place / "in").mkdir()
    for student, (change, _) in REFUSED.items():
        handed_in.rewritten(honest, place / "in" / f"{student}.zip", change)
    (place / "in" / "link.zip").symlink_to(honest)
    link = zipfile.ZipInfo("report.md")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    handed_in.rewritten(honest, place / "in" / "inner.zip", lambda content: None)
    with zipfile.ZipFile(place / "in" / "inner.zip", "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with grade.Session(place / "in", place / "out", Rules(rules, source)) as session:
        results = session.run()
    return {result.student: result for result in results}, place


@pytest.mark.parametrize(("student", "reason"), [(name, reason) for name, (_, reason) in REFUSED.items()]
                         + [("link", "链接"), ("inner", "链接")])
def test_what_could_do_harm_is_refused_with_a_reason(refused, student, reason):
    results, place = refused
    assert results[student].failure.startswith("没有收下：")
    assert reason in results[student].failure
    assert not results[student].points
    assert reason in (place / "out" / "grades.csv").read_text(encoding="utf-8")
    assert not Path("/tmp/unpickled").exists()


def test_what_was_refused_is_not_in_the_gradebook(refused):
    with sqlite3.connect(refused[1] / "out" / "gradebook.db") as database:
        assert database.execute("select count(*) from submitted_assignment").fetchone() == (0,)
