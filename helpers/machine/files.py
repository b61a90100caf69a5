"""Files that appear whole, and what tells one from another."""
import hashlib
import os
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex


@contextmanager
def replaced(target):
    """A file to write that takes the target's place when it is whole and on the disk; each writer has its own."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial_file = target.with_name(f".{target.name}.{token_hex(4)}.partial")
    try:
        with partial_file.open("x", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial_file.replace(target)
    finally:
        partial_file.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, or of all weights in a folder."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        with file.open("rb") as content:
            while piece := content.read(2**20):
                digest.update(piece)
    return digest.hexdigest()
