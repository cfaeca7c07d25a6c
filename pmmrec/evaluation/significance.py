"""Estimate confidence intervals of means over users, and test the difference between two systems."""
# Q users, M training seeds, K distinct rows of values, R bootstrap draws, V values of one target each.

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pmmrec.errors import DataError

Values = Tensor | npt.NDArray[np.float64] | Sequence[float] | Sequence[Sequence[float]]

NUM_DRAWS = 2000
NUM_FLIPS = 10_000
MAX_OUTCOMES = 1 << 16  # a test with at most this many outcomes is exact
CELLS_AT_ONCE = 1 << 22  # counts in one chunk of draws, 32 MB
MAX_KEPT_VALUES = 100  # distinct values up to which draws are kept for the next metric, 1.6 MB each


@dataclass(frozen=True)
class Interval:
    """A mean and its percentile bootstrap interval."""

    mean: float
    low: float
    high: float
    level: float = 0.95

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    @property
    def in_points(self) -> str:
        """A difference of shares in percentage points, such as `+0.58 [-0.17, 1.34]`."""
        mean, low, high = (100 * one for one in (self.mean, self.low, self.high))
        return f"{mean:+.2f} [{low:.2f}, {high:.2f}]"


def mean_interval(values: Values, *, level: float = 0.95, num_draws: int = NUM_DRAWS, seed: int = 0) -> Interval:
    """Interval of the mean of one value per user, `(Q,)`, or per seed and user, `(M, Q)`.

    Users are resampled with replacement, and so are seeds if there are several. With fewer than about five seeds the
    interval is too narrow, never too wide, because a few seeds say little about the spread between seeds.

    Raises DataError if there are no users or a value is not finite.
    """
    values_MQ = _by_seed(values)
    means_R = _bootstrap([values_MQ], num_draws, seed)
    low, high = np.quantile(means_R, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values_MQ.mean()), float(low), float(high), level)


def difference_interval(
    a: Values, b: Values, *, level: float = 0.95, num_draws: int = NUM_DRAWS, seed: int = 0
) -> Interval:
    """Interval of mean(a) - mean(b), paired over users; seeds of a and of b are resampled independently.

    `a` is `(M, Q)` and `b` is `(M', Q)` for the same users. Seeds are not paired, because the third seed of one system
    is unrelated to the third seed of the other. Raises DataError if the numbers of users differ, there are no users,
    or a value is not finite.
    """
    a_MQ, b_MQ = _by_seed(a), _by_seed(b)
    if a_MQ.shape[1] != b_MQ.shape[1]:
        raise DataError(f"values of {a_MQ.shape[1]} and {b_MQ.shape[1]} users cannot be paired; take the same users")
    means_R = _bootstrap([a_MQ, -b_MQ], num_draws, seed)
    low, high = np.quantile(means_R, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(a_MQ.mean() - b_MQ.mean()), float(low), float(high), level)


def over_users(values: Values, user_index: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Turn values per target into one value per user with the same mean: `(V,)` or `(M, V)` -> `(Q,)` or `(M, Q)`.

    Targets of one user are dependent, so users are resampled. The mean over all targets is a ratio of two sums over
    users, the total and the number of targets. The values returned have this mean, and under resampling of users they
    equal the ratio to first order (linearisation, Woodruff 1971). If each user has one target, they are the values
    themselves, in the order of users.
    """
    values_V = np.asarray(values.cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    _, user_V, count_Q = np.unique(user_index, return_inverse=True, return_counts=True)
    mean = values_V.mean(axis=-1, keepdims=True)
    sums_Q = np.apply_along_axis(lambda line_V: np.bincount(user_V, weights=line_V), -1, values_V)
    if (count_Q == 1).all():
        return sums_Q
    spread_Q: npt.NDArray[np.float64] = mean + (sums_Q - mean * count_Q) * len(count_Q) / len(user_V)
    return spread_Q


def sign_flip_p(differences: Values, *, num_draws: int = NUM_FLIPS, seed: int = 0) -> float:
    """The p-value of a two-sided paired sign-flip permutation test of the mean difference.

    Under the null hypothesis the sign of each user's difference `(Q,)` is arbitrary, so signs are flipped at random.
    The test is exact if there are few outcomes (for hits it is then McNemar's test). Otherwise it uses `num_draws`
    draws and counts the observed outcome among them, so that p is never 0 (Phipson and Smyth 2010). Differences of
    several seeds are averaged per user first: p is about users, given the trained seeds.
    """
    difference_Q = _by_seed(differences).mean(axis=0)
    size_K, count_K = np.unique(np.abs(difference_Q[difference_Q != 0]), return_counts=True)
    observed = abs(difference_Q.sum())
    least = observed - 1e-12 * max(1.0, float((size_K * count_K).sum()))  # tolerance for sums taken in another order
    if np.prod(count_K + 1.0) <= MAX_OUTCOMES:
        outcomes, weights = _flipped_sums(size_K, count_K)
        return float(min(1.0, weights[np.abs(outcomes) >= least].sum()))
    rng, num_above = np.random.default_rng(seed), 0
    draws_at_once = max(1, CELLS_AT_ONCE // len(size_K))
    for start in range(0, num_draws, draws_at_once):
        shape = (min(draws_at_once, num_draws - start), len(size_K))
        drawn_R = (2 * rng.binomial(count_K, 0.5, size=shape) - count_K) @ size_K
        num_above += int((np.abs(drawn_R) >= least).sum())
    return (num_above + 1) / (num_draws + 1)


def t_test_p(differences: Values) -> float:
    """The p-value of a two-sided paired t-test of the mean difference, as `scipy.stats.ttest_1samp` gives it.

    Differences of several seeds are averaged per user first. It is 1 where no user differs, or where there is one user.
    """
    from scipy import stats  # takes a third of a second to import

    difference_Q = _by_seed(differences).mean(axis=0)
    if len(difference_Q) == 1 or not difference_Q.any():
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where all users differ alike: then p is 0
        return float(stats.ttest_1samp(difference_Q, 0.0).pvalue)


def wilcoxon_p(differences: Values) -> float:
    """The p-value of a two-sided Wilcoxon signed-rank test, as `scipy.stats.wilcoxon` gives it.

    Users that do not differ are left out (Wilcoxon's own rule), and differences of several seeds are averaged per user
    first. Differences that agree to twelve decimals are equal: sums in another order would break ties. It is 1 where no
    user differs.
    """
    from scipy import stats

    difference_Q = _by_seed(differences).mean(axis=0).round(12)
    difference_Q = difference_Q[difference_Q != 0]
    return float(stats.wilcoxon(difference_Q).pvalue) if len(difference_Q) else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for the number of tests, keeping their order (Holm 1979).

    The smallest is multiplied by the number of tests, the next by one less, and so on; an adjusted value is never
    smaller than the one before it.
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(np.argsort(p_values, kind="stable").tolist()):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _flipped_sums(
    size_K: npt.NDArray[np.float64], count_K: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Every sum of signed sizes and its probability; equal sizes are handled together."""
    outcomes, weights = np.zeros(1), np.ones(1)
    for size, count in zip(size_K, count_K, strict=True):
        heads = np.arange(count + 1)
        outcomes = np.add.outer(outcomes, size * (2 * heads - count)).ravel()
        weights = np.multiply.outer(weights, _chances_of_heads(int(count))).ravel()
    return outcomes, weights


def _chances_of_heads(num_coins: int) -> npt.NDArray[np.float64]:
    """Probability of 0, 1, ... `num_coins` heads. scipy.stats has it too, but takes a third of a second to import."""
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, num_coins + 1)))])
    chances: npt.NDArray[np.float64] = np.exp(
        log_factorial[-1] - log_factorial - log_factorial[::-1] - num_coins * np.log(2)
    )
    return chances


def _by_seed(values: Values) -> npt.NDArray[np.float64]:
    values_MQ = np.atleast_2d(np.asarray(values.cpu() if isinstance(values, Tensor) else values, dtype=np.float64))
    if values_MQ.ndim != 2 or not values_MQ.size:
        raise DataError(f"values have shape {values_MQ.shape}; an interval needs (users,) or (seeds, users), not empty")
    if not np.isfinite(values_MQ).all():
        raise DataError("a value is not finite; an interval needs a number for each user")
    return values_MQ


def _bootstrap(groups: Sequence[npt.NDArray[np.float64]], num_draws: int, seed: int) -> npt.NDArray[np.float64]:
    """For `num_draws` resamples, the sum over groups `(M, Q)` of the mean of each group.

    Users are resampled once for all groups, users with equal values by one multinomial count; seeds are resampled for
    each group that has several.
    """
    values_MQ, num_users = np.concatenate(groups), groups[0].shape[1]
    if len(values_MQ) == 1:
        distinct_K, count_K = np.unique(values_MQ[0], return_counts=True)
        if len(count_K) <= MAX_KEPT_VALUES < CELLS_AT_ONCE // num_draws:
            drawn_RK = _drawn_counts(num_users, tuple(count_K.tolist()), num_draws, seed)
            means_R: npt.NDArray[np.float64] = drawn_RK @ distinct_K / num_users
            return means_R
    distinct_MK, count_K = np.unique(values_MQ, axis=1, return_counts=True)
    ends, rng = np.cumsum([len(group_MQ) for group_MQ in groups]), np.random.default_rng(seed)
    draws_at_once = max(1, CELLS_AT_ONCE // len(count_K))
    parts = []
    for start in range(0, num_draws, draws_at_once):
        size = min(draws_at_once, num_draws - start)
        means_RM = rng.multinomial(num_users, count_K / num_users, size=size) @ distinct_MK.T / num_users
        total_R = np.zeros(size)
        for first, end in zip([0, *ends[:-1]], ends, strict=True):
            seed_RM = rng.integers(first, end, size=(size, end - first))
            total_R += np.take_along_axis(means_RM, seed_RM, axis=1).mean(axis=1)
        parts.append(total_R)
    return np.concatenate(parts)


@lru_cache(maxsize=16)
def _drawn_counts(num_users: int, count_K: tuple[int, ...], num_draws: int, seed: int) -> npt.NDArray[np.float64]:
    """How often each distinct value is drawn in each resample, `(R, K)`; metrics that divide users alike share it."""
    share_K = np.array(count_K) / num_users
    drawn_RK = np.random.default_rng(seed).multinomial(num_users, share_K, size=num_draws)
    return drawn_RK.astype(np.float64)
