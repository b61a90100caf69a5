import pytest

from helpers import profile, sandbox
from tests import figures, finetune, packages

PROBES_OF_EACH_KIND = 260  # all but those of facts and sums


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
def sandboxed():
    """For tests that run the code of strangers: where no sandbox works, they are skipped."""
    if why_not := sandbox.problem():
        packages.skip_without("bubblewrap", why_not)


def pytest_terminal_summary(terminalreporter):
    """What was not tested for want of a package is said aloud."""
    if lines := packages.told(terminalreporter.stats.get("skipped", ())):
        terminalreporter.section("NOT TESTED", sep="!", red=True, bold=True)
        terminalreporter.write_line("\n".join(lines), red=True)
