"""What is installed, against what the course was tested with.

python -m helpers.machine.environment   prints what differs from requirements.lock and exits 1 if anything does.
"""
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LOCK = Path(__file__).parents[2] / "requirements.lock"


def locked(path: Path = LOCK) -> dict[str, str]:
    """Package names and the versions that the course was tested with."""
    tested = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        requirement = line.split(";")[0].strip()
        if "==" in requirement and not requirement.startswith("#"):
            name, tested_version = requirement.split("==")
            tested[name] = tested_version
    return tested


def versions(names: Iterable[str] | None = None) -> list[tuple[str, str, str | None]]:
    """For each package (default: all) its name, the tested and the installed version, None if absent."""
    wanted = locked()
    return [(name, wanted[name], _installed(name)) for name in names or wanted]


def _installed(name: str) -> str | None:
    try:
        return version(name).split("+")[0]
    except PackageNotFoundError:
        return None


def line(name: str, wanted: str, installed: str | None) -> str:
    """One package's verdict, with the mend when it fails."""
    if installed == wanted:
        return f"[OK]   {name} {installed}"
    state = f"装的是 {installed}" if installed else "没有安装"
    return f"[FAIL] {name} {state}，课程用 {wanted}。修复：pip install --no-deps {name}=={wanted}"


if __name__ == "__main__":
    failures = [(name, wanted, installed) for name, wanted, installed in versions() if installed != wanted]
    print("\n".join(line(*row) for row in failures) or f"[OK] {len(locked())} 个包都和 requirements.lock 一致")
    sys.exit(bool(failures))
