"""Shares: how many of how many are right, and how sure that is."""
from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import binomtest


class Share(NamedTuple):
    """How many of how many are right."""

    right: int
    total: int

    @classmethod
    def of(cls, rights: Sequence[bool]) -> "Share":
        """The share of answers that are right, given for each of them whether it is."""
        return cls(sum(rights), len(rights))

    @property
    def value(self) -> float:
        """The share itself; nothing of nothing is 0."""
        return self.right / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true share lies, in 95 of 100 cases (Wilson's)."""
        if not self.total:
            return 0.0, 1.0
        low, high = binomtest(self.right, self.total).proportion_ci(method="wilson")
        return float(low), float(high)

    def __str__(self) -> str:
        if not self.total:
            return "没有可比的问题"
        low, high = self.interval
        return f"{self.value:.1%}（{self.right}/{self.total}，95 % 区间 {low:.1%}–{high:.1%}）"


class Pair(NamedTuple):
    """A share before and after."""

    before: Share
    after: Share
