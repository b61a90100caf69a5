"""XTuner's programs in a process forked from one that has imported them: the same program, seconds sooner."""
import multiprocessing
import os
import runpy
import sys

import pytest

from helpers.machine import process, profile

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([*process.XTUNER.values(), "xtuner.model", "bitsandbytes", "datasets"])


def run(name, *arguments, log):
    """What XTuner's train, pth_to_hf or merge prints with these arguments, and its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in profile.environment().items():  # the server, started by the first call, keeps its own
            patch.setenv(variable, value)
        program = SERVER.Process(target=_run, args=(name, list(map(str, arguments)), log), daemon=True)
        program.start()
    program.join()
    return log.read_text(encoding="utf-8", errors="replace"), program.exitcode


def run_xtuner(name, *arguments, log, gpu_bytes=0):
    """helpers.machine.process.run_xtuner, forked."""
    printed, code = run(name, *arguments, log=log)
    assert code == 0, printed


def _run(name, arguments, log):
    """What the forked process does: all its output goes into the log."""
    with log.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    sys.argv = [name, *arguments]
    runpy.run_module(process.XTUNER[name], run_name="__main__")
