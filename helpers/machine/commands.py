"""What every command line has in common: how it is called, and how it ends when something is wrong."""
import argparse
import sys
from collections.abc import Callable
from functools import wraps
from importlib.machinery import ModuleSpec


class CourseError(RuntimeError):
    """Something that a student or an instructor can mend: what is wrong, where, and what to do."""


def parser(module: ModuleSpec, description: str) -> argparse.ArgumentParser:
    """A parser for the arguments of a module that runs as a command, which gives its __spec__."""
    return argparse.ArgumentParser(prog=f"python -m {module.name}", description=description)


def command(main: Callable) -> Callable:
    """The command, ended by one line instead of a traceback when what is wrong can be mended."""
    @wraps(main)
    def ended_in_a_line(*arguments):
        try:
            return main(*arguments)
        except (CourseError, OSError) as error:
            sys.exit(f"[FAIL] {error}")
    return ended_in_a_line
