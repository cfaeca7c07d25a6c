"""Confidence intervals of means over users, and tests of the difference between two systems."""
# Q users, M seeds of training, K distinct rows of values, R bootstrap draws, V values of a target each.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pmmrec.errors import DataError

Values = Tensor | npt.NDArray[np.float64] | Sequence[float] | Sequence[Sequence[float]]

NUM_DRAWS = 2000
NUM_FLIPS = 10_000
MAX_OUTCOMES = 1 << 16  # a test with so many or fewer is exact
CELLS_AT_ONCE = 1 << 22  # counts of one chunk of draws: 32 MB


@dataclass(frozen=True)
class Interval:
    """A mean and the percentile bootstrap interval around it."""

    mean: float
    low: float
    high: float
    level: float = 0.95

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def mean_interval(values: Values, *, level: float = 0.95, num_draws: int = NUM_DRAWS, seed: int = 0) -> Interval:
    """Interval of the mean of one value per user, `(Q,)`, or per seed and user, `(M, Q)`.

    Users are drawn with replacement, and so are the seeds where there are several. A few seeds tell little of the
    spread between seeds: with fewer than about five the interval is too narrow, never too wide.

    Raises DataError for no users and for values that are not finite.
    """
    values_MQ = _by_seed(values)
    means_R = _bootstrap([values_MQ], num_draws, np.random.default_rng(seed))
    low, high = np.quantile(means_R, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values_MQ.mean()), float(low), float(high), level)


def difference_interval(
    a: Values, b: Values, *, level: float = 0.95, num_draws: int = NUM_DRAWS, seed: int = 0
) -> Interval:
    """Interval of mean(a) - mean(b), paired over users, while seeds of a and of b are drawn apart.

    `a` is `(M, Q)` and `b` `(M', Q)` for the same users: the third seed of one system has nothing to do with the third
    of another. Raises DataError where the users differ in number, for no users and for values that are not finite.
    """
    a_MQ, b_MQ = _by_seed(a), _by_seed(b)
    if a_MQ.shape[1] != b_MQ.shape[1]:
        raise DataError(f"values of {a_MQ.shape[1]} and {b_MQ.shape[1]} users cannot be paired; take the same users")
    means_R = _bootstrap([a_MQ, -b_MQ], num_draws, np.random.default_rng(seed))
    low, high = np.quantile(means_R, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(a_MQ.mean() - b_MQ.mean()), float(low), float(high), level)


def over_users(values: Values, user_index: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """One value for each user out of several for some: `(V,)` or `(M, V)` -> `(Q,)` or `(M, Q)`, of the same mean.

    A user's targets hang together, so users are what is drawn. The mean over all targets is a ratio of two sums over
    users, how much and how many; these are the values whose plain mean it is, to first order also when users are drawn
    (linearisation, Woodruff 1971). Where everybody has one target they are the values as they came, in the order of
    users.
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
    """How often chance alone would set two systems at least so far apart: a paired permutation test, two-sided.

    Under the null hypothesis it is arbitrary which system a user's difference `(Q,)` favours, so signs are flipped at
    random. Exact where there are few outcomes (for hits it is then McNemar's test); else `num_draws` draws, the
    observed one counted among them, so that p is never 0 (Phipson and Smyth 2010). Differences of several seeds are
    averaged for each user before: p speaks of users, for the seeds that were trained.
    """
    difference_Q = _by_seed(differences).mean(axis=0)
    size_K, count_K = np.unique(np.abs(difference_Q[difference_Q != 0]), return_counts=True)
    observed = abs(difference_Q.sum())
    least = observed - 1e-12 * max(1.0, float((size_K * count_K).sum()))  # sums in another order are the same sums
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


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values that account for how many questions were asked, in their order (Holm 1979).

    The smallest is multiplied by the number of questions, the next by one less, and so on; none falls below one before.
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(np.argsort(p_values, kind="stable").tolist()):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _flipped_sums(
    size_K: npt.NDArray[np.float64], count_K: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Every sum of sizes with signs, and its probability; alike sizes are flipped together."""
    outcomes, weights = np.zeros(1), np.ones(1)
    for size, count in zip(size_K, count_K, strict=True):
        heads = np.arange(count + 1)
        outcomes = np.add.outer(outcomes, size * (2 * heads - count)).ravel()
        weights = np.multiply.outer(weights, _chances_of_heads(int(count))).ravel()
    return outcomes, weights


def _chances_of_heads(num_coins: int) -> npt.NDArray[np.float64]:
    """How likely 0, 1, ... `num_coins` heads are; scipy.stats knows it too and takes a third of a second to import."""
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


def _bootstrap(
    groups: Sequence[npt.NDArray[np.float64]], num_draws: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Sums, over groups `(M, Q)` of the same users, of the means of `num_draws` resamples.

    Users are drawn for all groups at once, those with the same values by one multinomial count; seeds for each group.
    """
    distinct_MK, count_K = np.unique(np.concatenate(groups), axis=1, return_counts=True)
    ends = np.cumsum([len(values_MQ) for values_MQ in groups])
    num_users = groups[0].shape[1]
    draws_at_once = max(1, CELLS_AT_ONCE // len(count_K))
    parts = []
    for start in range(0, num_draws, draws_at_once):
        size = min(draws_at_once, num_draws - start)
        drawn_RK = rng.multinomial(num_users, count_K / num_users, size=size)
        means_RM = drawn_RK @ distinct_MK.T / num_users
        total_R = np.zeros(size)
        for first, end in zip([0, *ends[:-1]], ends, strict=True):
            seed_RM = rng.integers(first, end, size=(size, end - first))
            total_R += np.take_along_axis(means_RM, seed_RM, axis=1).mean(axis=1)
        parts.append(total_R)
    return np.concatenate(parts)
