"""Files that appear whole, what tells one from another, and locks."""
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import TextIO

from helpers.machine.commands import CourseError


@contextmanager
def replacement(target: Path) -> Iterator[Path]:
    """A path to write to that takes the target's place when it is whole and on the disk; each writer has its own."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial_file = target.with_name(f".{target.name}.{token_hex(4)}.partial")
    try:
        yield partial_file
        with partial_file.open("rb") as written:
            os.fsync(written.fileno())
        partial_file.replace(target)
    finally:
        partial_file.unlink(missing_ok=True)


@contextmanager
def replaced(target: Path) -> Iterator[TextIO]:
    """A text file to write that takes the target's place when it is whole and on the disk."""
    with replacement(target) as path, path.open("x", encoding="utf-8", newline="\n") as file:
        yield file


@contextmanager
def replaced_folder(folder: str | Path) -> Iterator[Path]:
    """An empty folder beside `folder`, which takes its place if all goes well; if not, the former one stays."""
    folder = Path(folder)
    new, former = folder.with_name(f"{folder.name}.partial"), folder.with_name(f"{folder.name}.former")
    _tidy_up(folder, new, former)
    new.mkdir(parents=True)
    try:
        yield new
        if folder.exists():
            folder.rename(former)
        new.rename(folder)
    finally:
        _tidy_up(folder, new, former)


def _tidy_up(folder, new, former):
    """Puts the former folder back if none has taken its place; takes away what is left over."""
    if former.exists() and not folder.exists():
        former.rename(folder)
    for left_over in (new, former):
        shutil.rmtree(left_over, ignore_errors=True)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, or of all weights in a folder."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        with file.open("rb") as content:
            hashlib.file_digest(content, lambda: digest)
    return digest.hexdigest()


@contextmanager
def locked(path: Path, busy: str) -> Iterator[TextIO]:
    """Holds the lock in a file until the block ends, and as long as a program lives that was given the file.

    Whoever comes meanwhile gets a CourseError: `busy`. The lock is the operating system's: no crash leaves it behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CourseError(busy) from None
        yield file
