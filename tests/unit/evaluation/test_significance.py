"""Intervals and tests agree with theory, loops and scipy, and follow their rules."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from pmmrec.errors import DataError
from pmmrec.evaluation import significance
from pmmrec.evaluation.significance import (
    difference_interval,
    holm,
    mean_interval,
    over_users,
    sign_flip_p,
    t_test_p,
    wilcoxon_p,
)


def bootstrap_by_loops(values: np.ndarray, num_draws: int) -> tuple[float, float]:
    rng = np.random.default_rng(5)
    means = [np.mean([values[i] for i in rng.integers(len(values), size=len(values))]) for _ in range(num_draws)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def test_an_interval_equals_that_of_resampling_users_one_by_one() -> None:
    values = np.random.default_rng(2).choice([0.0, 0.3, 1.0], size=60, p=[0.7, 0.2, 0.1])
    low, high = bootstrap_by_loops(values, 4000)
    interval = mean_interval(values, num_draws=40_000)
    assert interval.mean == pytest.approx(values.mean(), abs=1e-15)
    # an end of 4000 draws has a standard error of sd(mean) * 2.7 / sqrt(4000) = 0.0013; measured 0.0017 and 0.0000
    assert interval.low == pytest.approx(low, abs=0.004)
    assert interval.high == pytest.approx(high, abs=0.004)


def test_the_interval_of_a_hit_rate_equals_that_of_a_binomial() -> None:
    hits = torch.zeros(5000)
    hits[:1000] = 1.0
    interval = mean_interval(hits, num_draws=20_000)
    half = 1.96 * math.sqrt(0.2 * 0.8 / 5000)
    assert interval.low == pytest.approx(0.2 - half, abs=0.0004)  # measured 0.0001
    assert interval.high == pytest.approx(0.2 + half, abs=0.0004)  # measured 0.0001


def test_pairing_detects_what_two_separate_intervals_cannot() -> None:
    b = torch.from_numpy(np.random.default_rng(0).random(400))
    a = b + 0.02
    a[:40] = b[:40]
    difference = difference_interval(a, b)
    assert difference.excludes_zero
    assert difference.mean == pytest.approx(0.018, abs=1e-12)
    assert mean_interval(a).low < mean_interval(b).high


def test_equal_systems_have_a_difference_of_zero() -> None:
    difference = difference_interval([0.0, 1.0, 1.0], [0.0, 1.0, 1.0])
    assert (difference.low, difference.high) == (0.0, 0.0)
    assert not difference.excludes_zero


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


def test_seeds_with_different_means_widen_the_interval() -> None:
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
        difference_interval(a, b)


def test_a_difference_of_single_seeds_is_the_mean_of_the_differences_of_users() -> None:
    a, b = np.random.default_rng(3).random((2, 200))
    apart, of_users = difference_interval(a, b, num_draws=20_000), mean_interval(a - b, num_draws=20_000)
    assert apart.mean == pytest.approx(of_users.mean, abs=1e-15)
    assert apart.low == pytest.approx(of_users.low, abs=0.002)  # se of an end 0.0008; measured 0.0007
    assert apart.high == pytest.approx(of_users.high, abs=0.002)  # measured 0.0004


def difference_by_loops(a_MQ: np.ndarray, b_MQ: np.ndarray, num_draws: int) -> tuple[float, float]:
    """Resample users once and seeds for each system, and average, number by number."""
    rng, differences = np.random.default_rng(7), []
    for _ in range(num_draws):
        users = rng.integers(a_MQ.shape[1], size=a_MQ.shape[1])
        sides = []
        for values_MQ in (a_MQ, b_MQ):
            seeds = rng.integers(len(values_MQ), size=len(values_MQ))
            sides.append(np.mean([[values_MQ[seed, user] for user in users] for seed in seeds]))
        differences.append(sides[0] - sides[1])
    low, high = np.quantile(differences, [0.025, 0.975])
    return float(low), float(high)


def test_seeds_of_two_systems_are_resampled_independently_and_may_differ_in_number() -> None:
    rng = np.random.default_rng(4)
    a_MQ, b_MQ = rng.random((3, 30)) + 0.2, rng.random((2, 30))
    found = difference_interval(a_MQ, b_MQ, num_draws=40_000)
    low, high = difference_by_loops(a_MQ, b_MQ, 4000)
    assert found.mean == pytest.approx(a_MQ.mean() - b_MQ.mean(), abs=1e-15)
    # an end of 4000 draws has a standard error of 0.075 * 2.7 / sqrt(4000) = 0.0032; measured 0.0004 and 0.0038
    assert found.low == pytest.approx(low, abs=0.007)
    assert found.high == pytest.approx(high, abs=0.007)


def test_one_target_per_user_is_unchanged_and_ordered_by_user() -> None:
    assert over_users([0.5, 0.25, 1.0], np.array([2, 0, 1])).tolist() == [0.25, 1.0, 0.5]


def cluster_bootstrap_by_loops(values: np.ndarray, users: np.ndarray, num_draws: int) -> tuple[float, float]:
    """Resample users, take all their targets, and average over these targets."""
    rng, means = np.random.default_rng(8), []
    of_user = [values[users == user] for user in np.unique(users)]
    for _ in range(num_draws):
        drawn = [of_user[user] for user in rng.integers(len(of_user), size=len(of_user))]
        means.append(np.concatenate(drawn).mean())
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def test_several_targets_of_a_user_are_resampled_together() -> None:
    rng = np.random.default_rng(9)
    users = np.repeat(np.arange(150), rng.integers(1, 7, size=150))
    values = (rng.random(150)[users] > 0.6).astype(float)  # a user's targets are hit all or none
    spread = over_users(values, users)
    assert spread.mean() == pytest.approx(values.mean(), abs=1e-15)
    found = mean_interval(spread, num_draws=20_000)
    low, high = cluster_bootstrap_by_loops(values, users, 3000)
    # an end of 3000 draws has a standard error of 0.046 * 2.7 / sqrt(3000) = 0.0022; measured 0.0002 and 0.0021
    assert found.low == pytest.approx(low, abs=0.007)
    assert found.high == pytest.approx(high, abs=0.007)
    assert found.high - found.low > 1.5 * (mean_interval(values).high - mean_interval(values).low)


def flips_by_loops(differences: list[float]) -> float:
    """The exact p-value by a loop over all choices of signs."""
    observed = abs(sum(differences))
    outcomes = [
        abs(sum(sign * d for sign, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    return sum(outcome >= observed - 1e-12 for outcome in outcomes) / len(outcomes)


@pytest.mark.parametrize("seed", range(4))
def test_few_differences_are_tested_exactly(seed: int) -> None:
    drawn = np.random.default_rng(seed)
    differences = drawn.choice([0.0, 0.5, 1.0, -1.0, 0.631], size=11) + (seed % 2) * drawn.random(11)
    p = sign_flip_p(differences)
    assert p == pytest.approx(flips_by_loops(differences.tolist()), abs=1e-12)
    theirs = stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", vectorized=False, n_resamples=np.inf
    )
    assert p == pytest.approx(theirs.pvalue, abs=1e-12)


def test_a_test_of_hits_equals_mcnemars() -> None:
    differences = np.array([1.0] * 90 + [-1.0] * 60 + [0.0] * 2000)
    assert sign_flip_p(differences) == pytest.approx(stats.binomtest(90, 150).pvalue, abs=1e-12)


def test_many_differences_give_the_p_value_of_scipy() -> None:
    differences = np.random.default_rng(5).normal(0.1, 1.0, size=400)
    theirs = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", vectorized=True, n_resamples=20_000, rng=1
    )
    p = sign_flip_p(differences, num_draws=20_000)
    assert 0.001 < p < 0.5
    assert p == pytest.approx(theirs.pvalue, abs=0.01)  # standard error of the difference 0.0046; measured 0.0037
    assert p == pytest.approx(stats.ttest_1samp(differences, 0.0).pvalue, abs=0.01)  # measured 0.0037


def test_drawn_p_values_are_never_zero_and_follow_the_seed() -> None:
    differences = np.random.default_rng(5).normal(5.0, 1.0, size=300)
    assert sign_flip_p(differences, num_draws=99) == 0.01
    weak = differences - 4.95
    assert sign_flip_p(weak, seed=1) == sign_flip_p(weak, seed=1) != sign_flip_p(weak, seed=2)


def test_equal_systems_have_a_p_value_of_one() -> None:
    assert sign_flip_p([0.0, 0.0, 0.0]) == 1.0


def test_seeds_are_averaged_for_each_user_before_signs_are_flipped() -> None:
    differences_MQ = [[1.0, 0.0, -1.0, 0.5], [0.0, 1.0, -1.0, 0.5]]
    assert sign_flip_p(differences_MQ) == sign_flip_p([0.5, 0.5, -1.0, 0.5])


def holm_by_loops(p_values: list[float]) -> list[float]:
    """Holm by a loop: the largest of all smaller p-values, each times the number of tests left at its turn."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    for place, index in enumerate(order):
        before = [(len(p_values) - k) * p_values[order[k]] for k in range(place + 1)]
        adjusted[index] = min(1.0, max(before))
    return adjusted


def test_holm_equals_a_loop_and_its_published_example() -> None:
    drawn = [*np.random.default_rng(2).random(20).tolist(), 0.001, 0.001, 0.0]
    assert holm(drawn) == pytest.approx(holm_by_loops(drawn), abs=1e-15)
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02], abs=1e-15)
    assert holm([]) == []


def test_t_test_and_wilcoxon_are_those_of_scipy_on_pairs() -> None:
    rng = np.random.default_rng(3)
    one_MQ, other_Q = rng.choice([0.0, 0.3, 1.0], size=(2, 80)), rng.choice([0.0, 0.3, 1.0], size=80, p=[0.6, 0.3, 0.1])
    mean_Q = one_MQ.mean(axis=0)
    assert t_test_p(one_MQ - other_Q) == pytest.approx(stats.ttest_rel(mean_Q, other_Q).pvalue, rel=1e-12)
    assert wilcoxon_p(one_MQ - other_Q) == pytest.approx(stats.wilcoxon((mean_Q - other_Q).round(9)).pvalue, rel=1e-12)


@pytest.mark.parametrize(
    ("differences", "of_t", "of_ranks"), [([0.0, 0.0, 0.0], 1.0, 1.0), ([0.5], 1.0, 1.0), ([0.5, 0.5, 0.5], 0.0, 0.25)]
)
def test_t_test_and_wilcoxon_are_defined_where_users_do_not_differ_or_all_differ_alike(
    differences: list[float], of_t: float, of_ranks: float
) -> None:
    assert (t_test_p(differences), wilcoxon_p(differences)) == (of_t, of_ranks)
