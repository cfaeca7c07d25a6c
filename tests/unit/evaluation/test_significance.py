"""Intervals against theory, against a bootstrap by loops, and their rules."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pmmrec.errors import DataError
from pmmrec.evaluation import significance
from pmmrec.evaluation.significance import mean_interval, paired_interval


def bootstrap_by_loops(values: np.ndarray, num_draws: int) -> tuple[float, float]:
    rng = np.random.default_rng(5)
    means = [np.mean([values[i] for i in rng.integers(len(values), size=len(values))]) for _ in range(num_draws)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def test_an_interval_is_that_of_resampling_users_one_by_one() -> None:
    values = np.random.default_rng(2).choice([0.0, 0.3, 1.0], size=60, p=[0.7, 0.2, 0.1])
    low, high = bootstrap_by_loops(values, 4000)
    interval = mean_interval(values, num_draws=40_000)
    assert interval.mean == pytest.approx(values.mean(), abs=1e-15)
    # an end of 4000 draws has a standard error of sd(mean) * 2.7 / sqrt(4000) = 0.0013; measured 0.0017 and 0.0000
    assert interval.low == pytest.approx(low, abs=0.004)
    assert interval.high == pytest.approx(high, abs=0.004)


def test_the_interval_of_a_hit_rate_is_that_of_a_binomial() -> None:
    hits = torch.zeros(5000)
    hits[:1000] = 1.0
    interval = mean_interval(hits, num_draws=20_000)
    half = 1.96 * math.sqrt(0.2 * 0.8 / 5000)
    assert interval.low == pytest.approx(0.2 - half, abs=0.0004)  # measured 0.0001
    assert interval.high == pytest.approx(0.2 + half, abs=0.0004)  # measured 0.0001


def test_pairing_sees_what_two_lone_intervals_cannot() -> None:
    b = torch.from_numpy(np.random.default_rng(0).random(400))
    a = b + 0.02
    a[:40] = b[:40]
    comparison = paired_interval(a, b)
    assert comparison.difference.excludes_zero
    assert comparison.difference.mean == pytest.approx(0.018, abs=1e-12)
    assert comparison.share_differing == 0.9
    assert mean_interval(a).low < mean_interval(b).high


def test_equal_systems_differ_nowhere() -> None:
    comparison = paired_interval([0.0, 1.0, 1.0], [0.0, 1.0, 1.0])
    assert (comparison.difference.low, comparison.difference.high) == (0.0, 0.0)
    assert comparison.share_differing == 0.0
    assert not comparison.difference.excludes_zero


def test_the_seed_decides_the_interval() -> None:
    values = np.random.default_rng(1).random(50)
    assert mean_interval(values, seed=7) == mean_interval(values, seed=7)
    assert mean_interval(values, seed=7) != mean_interval(values, seed=8)


def test_drawing_in_chunks_keeps_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).random(50)
    whole = mean_interval(values)
    monkeypatch.setattr(significance, "CELLS_AT_ONCE", 50 * 7)
    assert mean_interval(values).low == pytest.approx(whole.low, abs=1e-12)
    assert mean_interval(values).high == pytest.approx(whole.high, abs=1e-12)


def test_seeds_that_disagree_widen_the_interval() -> None:
    users = np.random.default_rng(1).random(300)
    agree = np.stack([users] * 5)
    disagree = users + np.array([-0.2, -0.1, 0.0, 0.1, 0.2])[:, None]
    narrow, wide = mean_interval(agree), mean_interval(disagree)
    assert narrow.mean == pytest.approx(wide.mean, abs=1e-12)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [([1.0], [1.0, 2.0], "cannot be paired"), ([], [], "not empty"), ([float("nan")], [0.0], "not finite")],
)
def test_values_that_cannot_be_compared_are_an_error(a: list[float], b: list[float], words: str) -> None:
    with pytest.raises(DataError, match=words):
        paired_interval(a, b)
