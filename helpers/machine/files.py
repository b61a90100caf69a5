"""Files that appear whole, and what tells one from another."""
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import TextIO


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


def sha256(path: Path) -> str:
    """The SHA-256 of a file, or of all weights in a folder."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        with file.open("rb") as content:
            while piece := content.read(2**20):
                digest.update(piece)
    return digest.hexdigest()
