"""What tests share, and how `make test` divides them between its workers."""
from pathlib import Path

import pytest
from nbval.plugin import IPyNbCell
from xdist.scheduler import LoadScopeScheduling

from helpers.grading import sandbox
from helpers.machine import profile
from tests import course, figures, finetune, packages

PROBES_OF_EACH_KIND = 260  # all but those of facts and sums
LESSONS, TUNED, HOMEWORK = "lessons", "tuned", "homework"
LONGEST_FIRST = (LESSONS, TUNED, "test_rehearsal_internlm2", "test_rehearsal_qwen2_5", HOMEWORK)  # then small ones
# Lessons take what earlier ones made, and one fine-tune serves all: such tests run in one process.
TOGETHER = {"test_course": LESSONS, "test_homework": HOMEWORK} | dict.fromkeys(
    ["test_adapter", "test_compare", "test_grade", "test_merge", "test_tiny_base", "test_xtuner"], TUNED)


@pytest.fixture(scope="session")
def base_answers():
    return figures.ask_probes(profile.TINY_BASE, PROBES_OF_EACH_KIND)


@pytest.fixture(scope="session")
def tuned(tmp_path_factory):
    """One fine-tune of the tiny base on the exam, through XTuner's own commands."""
    folder = tmp_path_factory.mktemp("finetune")
    adapter, merged = finetune.finetune(folder, finetune.training_rows())
    return folder, adapter, merged


@pytest.fixture(scope="session")
def walked(pytestconfig):
    """The course in which nbval runs the notebooks."""
    return course.walked(pytestconfig)


@pytest.fixture(scope="session")
def sandboxed():
    """For tests that run the code of strangers: where no sandbox works, they are skipped."""
    if why_not := sandbox.problem():
        packages.skip_without("bubblewrap", why_not)


def pytest_configure(config):
    """Lets tests/course.py start the notebooks' kernels: a conftest's hooks hold for the files in its folder only."""
    config.pluginmanager.register(course)


def group(path):
    """What the tests of a file share a worker with: mostly with each other, for the sake of their module's fixtures."""
    if path.suffix == ".ipynb":
        return HOMEWORK if "homework" in path.parts else LESSONS if path.name[0].isdigit() else path.stem
    return TOGETHER.get(path.stem, path.stem)


def turn(item):
    """When an item's turn comes: what takes longest first, and a lesson after the test that leaves it half-way."""
    name, is_cell = group(item.path), isinstance(item, IPyNbCell)
    if name == LESSONS:
        return 0, (item.path if is_cell else item.callspec.params["lesson"]).name, is_cell
    return LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST), "", not is_cell


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items):
    """Puts the items in order when everybody else has."""
    result = yield
    items.sort(key=turn)
    return result


class Groups(LoadScopeScheduling):
    """What xdist gives to a worker at a time."""

    def _split_scope(self, nodeid):
        return group(Path(nodeid.partition("::")[0]))


def pytest_xdist_make_scheduler(config, log):
    """Tells xdist of our groups."""
    return Groups(config, log) if config.getvalue("dist") == "loadscope" else None


def pytest_terminal_summary(terminalreporter):
    """What was not tested for want of a package is said aloud."""
    if lines := packages.told(terminalreporter.stats.get("skipped", ())):
        terminalreporter.section("NOT TESTED", sep="!", red=True, bold=True)
        terminalreporter.write_line("\n".join(lines), red=True)
