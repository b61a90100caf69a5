import re

import pytest

from helpers.machine.profile import ROOT

READMES = [ROOT / "README.md", ROOT / "README_zh-CN.md"]
CONTRIBUTING = ROOT / "CONTRIBUTING.md"


def structure(path):
    """Headings, tables, code blocks and pictures, in order."""
    text = path.read_text(encoding="utf-8")
    shapes = []
    for line in text.splitlines():
        if line.startswith("|"):
            shapes.append("|" * line.count("|"))
        elif match := re.match(r"(#+) |(```)|!\[.*\](\(.+\))|(\d+\.) ", line):
            shapes.append(match[match.lastindex])
    return shapes


def test_both_languages_tell_the_same_story():
    english, chinese = map(structure, READMES)
    assert english == chinese


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.name)
def test_every_command_exists(path):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    told = set(re.findall(r"\bmake (\w+)", path.read_text(encoding="utf-8")))
    assert {"run", "test", "lab", "bench", "clean"} <= told <= targets


@pytest.mark.parametrize("path", [*READMES, CONTRIBUTING], ids=lambda path: path.name)
def test_every_link_and_picture_is_there(path):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.name)
def test_the_lesson_table_knows_every_notebook(path):
    text = path.read_text(encoding="utf-8")
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"notebooks/{notebook.name}" in text


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.name)
def test_errors_in_the_troubleshooting_are_the_ones_the_course_prints(path):
    source = "".join(file.read_text(encoding="utf-8") for file in
                     [ROOT / "tools" / "setup.sh", *(ROOT / "helpers").rglob("*.py")])
    needed = re.search(r"needed_gb=(\d+)", source)[1]
    for words in ("需要 Python 3.11", "从 Python 软件源下载不到", "COURSE_PROFILE=gpu", "不能用"):
        assert words in path.read_text(encoding="utf-8")
        assert words in source
    assert f"{needed} GB" in path.read_text(encoding="utf-8")


def test_contributors_are_told_of_commands_and_files_that_exist():
    text = CONTRIBUTING.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert {"setup", "test", "tiny-base", "lock"} <= set(re.findall(r"(?:^|`)make ([\w-]+)", text, re.M)) <= targets
    named = [f"{module.replace('.', '/')}.py" for module in re.findall(r"-m ((?:helpers|tools)(?:\.\w+)+)", text)]
    named += re.findall(r"(?:\.ci|\.github|helpers|notebooks/homework|tests|tools)/[\w./]+\w", text)
    for path in named:
        assert (ROOT / path).exists(), path
