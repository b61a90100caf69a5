"""Tells in both READMEs what was measured: the table of helpers/machine/measured.py, between two marks.

python -m tools.tell_measured
"""
import re

from helpers.machine import measured
from helpers.machine.files import replaced
from helpers.machine.profile import ROOT

READMES = {"中文": ROOT / "README_zh-CN.md", "English": ROOT / "README.md"}
BETWEEN = re.compile(r"(?<=<!-- measured -->\n).*?(?=<!-- end of measured -->)", re.DOTALL)


def told(text: str, language: str) -> str:
    """A README's text with the table as it is today."""
    return BETWEEN.sub(lambda _: f"{measured.markdown(language)}\n", text)


def write() -> None:
    """Writes both READMEs."""
    for language, path in READMES.items():
        text = told(path.read_text(encoding="utf-8"), language)
        with replaced(path) as file:
            file.write(text)


if __name__ == "__main__":
    write()
