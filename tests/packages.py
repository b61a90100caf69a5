"""The Debian packages that some tests need. No test installs one: tools/test_packages.sh does."""
from collections import Counter

import pytest

NEEDS = "needs the Debian package "


def skip_without(package, why):
    """Skips a test in words that the summary finds again."""
    pytest.skip(f"{NEEDS}{package} (tools/test_packages.sh installs it): {why}")


def told(skipped):
    """A line for each package: how many of the tests with these reports were skipped for it."""
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    return [f"{count} SKIPPED, {reason}" for reason, count in reasons.items() if reason.startswith(NEEDS)]
