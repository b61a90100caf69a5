"""What every command line has in common: how it is called, and how it ends when something is wrong."""
import argparse
import sys
from collections.abc import Callable
from functools import wraps


class CourseError(RuntimeError):
    """Something that a student or an instructor can mend: what is wrong, where, and what to do."""


def parser(description: str) -> argparse.ArgumentParser:
    """A parser for the arguments of the module that runs as a command."""
    return argparse.ArgumentParser(prog=f"python -m {sys.modules['__main__'].__spec__.name}", description=description)


def command(main: Callable) -> Callable:
    """The command, ended by one line instead of a traceback when what is wrong can be mended."""
    @wraps(main)
    def ended_in_a_line(*arguments):
        try:
            return main(*arguments)
        except (CourseError, OSError) as error:
            sys.exit(f"[FAIL] {error}")
    return ended_in_a_line
