"""XTuner's training in a process forked from one that has imported it: the same program, seconds sooner."""
import multiprocessing
import os
import runpy
import sys

import pytest

from helpers.machine import process, profile

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([process.XTUNER["train"], "xtuner.model", "bitsandbytes", "datasets"])


def train(*arguments, log):
    """What `xtuner train` with these arguments prints, and its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in profile.environment().items():  # the server, started by the first call, keeps its own
            patch.setenv(name, value)
        training = SERVER.Process(target=_train, args=(list(map(str, arguments)), log), daemon=True)
        training.start()
    training.join()
    return log.read_text(encoding="utf-8", errors="replace"), training.exitcode


def _train(arguments, log):
    """What the forked process does: all its output goes into the log."""
    with log.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    sys.argv = ["train", *arguments]
    runpy.run_module(process.XTUNER["train"], run_name="__main__")
