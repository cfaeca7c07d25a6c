"""Test the difference of two systems on one metric, paired over users, and adjust all tests together."""
# M seeds of one system, Q users of a domain.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pmmrec.evaluation.significance import Interval, difference_interval, holm, sign_flip_p, t_test_p, wilcoxon_p
from pmmrec.tables import Cell, PlainTable

ALPHA = 0.05
COLUMNS = ("first", "second", "domain", "metric", "sign-flip", "t-test", "Wilcoxon")
Figures = Mapping[str, NDArray[np.float64]]  # metric -> (M, Q)


@dataclass(frozen=True)
class PValue:
    """The result of a test."""

    p: float
    p_holm: float  # adjusted by Holm over all tests of this kind in the comparison


@dataclass(frozen=True)
class PairedDifference:
    """The difference of two systems on one metric: first minus second, paired over users."""

    first: str
    second: str
    metric: str
    domain: str
    interval: Interval
    p: float
    p_holm: float  # adjusted by Holm over all tests of the comparison
    t_test: PValue  # of the paired t-test
    wilcoxon: PValue  # of the Wilcoxon signed-rank test

    @property
    def is_shown(self) -> bool:
        """Whether both the test and the interval, which includes seeds, separate the systems."""
        return self.p_holm < ALPHA and self.interval.excludes_zero

    def cells(self) -> list[Cell]:
        """What a table of tests says of it."""
        by_tests = (self.p_holm, self.t_test.p_holm, self.wilcoxon.p_holm)
        return [self.first, self.second, self.domain, self.metric.upper(), *map(shown_p, by_tests)]

    def words(self) -> str:
        """A sentence that says which system is better, and by how much."""
        mean, low, high = (100 * x for x in (self.interval.mean, self.interval.low, self.interval.high))
        first, second = self.first, self.second
        if self.is_shown and mean < 0:
            first, second, mean, low, high = second, first, -mean, -high, -low
        verdict = f"{first} beats {second}" if self.is_shown else f"no difference shown between {first} and {second}"
        p = shown_p(self.p_holm)
        p = f"p{p}" if p.startswith("<") else f"p={p}"
        return f"{verdict} on {self.metric.upper()}: {mean:+.2f} points [{low:.2f}, {high:.2f}], {p} (Holm)"


def paired(
    first: str, second: str, metric: str, domain: str, a_MQ: NDArray[np.float64], b_MQ: NDArray[np.float64]
) -> PairedDifference:
    """The difference of two systems, with p-values that are not adjusted yet; seeds are averaged for tests."""
    apart_Q = a_MQ.mean(axis=0) - b_MQ.mean(axis=0)
    p, t, rank = sign_flip_p(apart_Q), t_test_p(apart_Q), wilcoxon_p(apart_Q)
    interval = difference_interval(a_MQ, b_MQ)
    return PairedDifference(first, second, metric, domain, interval, p, p, PValue(t, t), PValue(rank, rank))


def adjusted(differences: Sequence[PairedDifference]) -> list[PairedDifference]:
    """With p-values adjusted by Holm over all differences, those of each test by themselves."""
    flips = holm([one.p for one in differences])
    found = [replace(one, p_holm=p_holm) for one, p_holm in zip(differences, flips, strict=True)]
    found = [replace(one, t_test=p) for one, p in zip(found, _adjusted([one.t_test for one in found]), strict=True)]
    ranked = _adjusted([one.wilcoxon for one in found])
    return [replace(one, wilcoxon=p) for one, p in zip(found, ranked, strict=True)]


def _adjusted(values: Sequence[PValue]) -> list[PValue]:
    by_holm = holm([one.p for one in values])
    return [replace(one, p_holm=p_holm) for one, p_holm in zip(values, by_holm, strict=True)]


def table_of_tests(differences: Sequence[PairedDifference]) -> PlainTable:
    """Every difference and its p-values by all tests."""
    rows = [one.cells() for one in differences]
    return PlainTable("p of the same pairs by three tests, each adjusted by Holm", COLUMNS, rows)


def shown_p(p: float) -> str:
    """A p-value with three decimals."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"
