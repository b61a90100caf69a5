"""Tells in both READMEs what was measured: the table of helpers/machine/measured.py, between two marks.

python -m tools.tell_measured
"""
from helpers.machine import measured
from helpers.machine.files import replaced
from helpers.machine.profile import ROOT

READMES = {"中文": ROOT / "README_zh-CN.md", "English": ROOT / "README.md"}
BEGIN, END = "<!-- what tools/tell_measured.py writes -->\n", "\n<!-- end of it -->"


def told(text: str, language: str) -> str:
    """A README's text with the table as it is today."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{measured.markdown(language)}{END}{after}"


def write() -> None:
    """Writes both READMEs."""
    for language, path in READMES.items():
        text = path.read_text(encoding="utf-8")
        with replaced(path) as file:
            file.write(told(text, language))


if __name__ == "__main__":
    write()
