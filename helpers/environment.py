"""What is installed, against what the course was tested with.

python -m helpers.environment   prints what differs from requirements.lock and exits 1 if anything does.
"""
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LOCK = Path(__file__).parent.parent / "requirements.lock"


def locked(path=LOCK):
    """Package names and the versions that the course was tested with."""
    lines = (line.split(";")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def check(names=None):
    """For each package (default: all) its name, the tested and the installed version, None if absent."""
    wanted = locked()
    return [(name, wanted[name], _installed(name)) for name in names or wanted]


def _installed(name):
    try:
        return version(name).split("+")[0]
    except PackageNotFoundError:
        return None


def line(name, wanted, found):
    """One package's verdict, with the mend when it fails."""
    if found == wanted:
        return f"[OK]   {name} {found}"
    state = f"装的是 {found}" if found else "没有安装"
    return f"[FAIL] {name} {state}，课程用 {wanted}。修复：pip install --no-deps {name}=={wanted}"


if __name__ == "__main__":
    failures = [row for row in check() if row[1] != row[2]]
    print("\n".join(line(*row) for row in failures) or f"[OK] {len(locked())} 个包都和 requirements.lock 一致")
    sys.exit(bool(failures))
