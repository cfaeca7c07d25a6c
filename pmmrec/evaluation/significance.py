"""How sure is a mean over users, or the difference between two systems?"""
# Q users, M seeds of training, K distinct rows of values, R bootstrap draws.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pmmrec.errors import DataError

Values = Tensor | npt.NDArray[np.float64] | Sequence[float] | Sequence[Sequence[float]]

NUM_DRAWS = 2000
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


@dataclass(frozen=True)
class Comparison:
    """System a minus system b over the same users."""

    difference: Interval
    share_differing: float  # of the users, those on whom the systems differ for some seed


def mean_interval(values: Values, *, level: float = 0.95, num_draws: int = NUM_DRAWS, seed: int = 0) -> Interval:
    """Interval of the mean of one value per user, `(Q,)`, or per seed and user, `(M, Q)`.

    Users are drawn with replacement, and so are the seeds where there are several. A few seeds tell little of the
    spread between seeds: with fewer than about five the interval is too narrow, never too wide.

    Raises DataError for no users and for values that are not finite.
    """
    values_MQ = _by_seed(values)
    means_R = _bootstrap(values_MQ, num_draws, np.random.default_rng(seed))
    low, high = np.quantile(means_R, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values_MQ.mean()), float(low), float(high), level)


def paired_interval(
    a: Values, b: Values, *, level: float = 0.95, num_draws: int = NUM_DRAWS, seed: int = 0
) -> Comparison:
    """Interval of the mean of a - b, paired: entry for entry the same user (and the same seed).

    Raises DataError when the shapes differ, for no users and for values that are not finite.
    """
    a_MQ, b_MQ = _by_seed(a), _by_seed(b)
    if a_MQ.shape != b_MQ.shape:
        raise DataError(f"values of {a_MQ.shape} and {b_MQ.shape} (seeds, users) cannot be paired; take the same users")
    interval = mean_interval(a_MQ - b_MQ, level=level, num_draws=num_draws, seed=seed)
    return Comparison(interval, float((a_MQ != b_MQ).any(axis=0).mean()))


def _by_seed(values: Values) -> npt.NDArray[np.float64]:
    values_MQ = np.atleast_2d(np.asarray(values.cpu() if isinstance(values, Tensor) else values, dtype=np.float64))
    if values_MQ.ndim != 2 or not values_MQ.size:
        raise DataError(f"values have shape {values_MQ.shape}; an interval needs (users,) or (seeds, users), not empty")
    if not np.isfinite(values_MQ).all():
        raise DataError("a value is not finite; an interval needs a number for each user")
    return values_MQ


def _bootstrap(values_MQ: npt.NDArray[np.float64], num_draws: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Means of `num_draws` resamples. Users with the same values are drawn together, by one multinomial count."""
    distinct_MK, count_K = np.unique(values_MQ, axis=1, return_counts=True)
    num_seeds, num_users = values_MQ.shape
    draws_at_once = max(1, CELLS_AT_ONCE // len(count_K))
    parts = []
    for start in range(0, num_draws, draws_at_once):
        size = min(draws_at_once, num_draws - start)
        drawn_RK = rng.multinomial(num_users, count_K / num_users, size=size)
        means_RM = drawn_RK @ distinct_MK.T / num_users
        seed_RM = rng.integers(num_seeds, size=(size, num_seeds))
        parts.append(np.take_along_axis(means_RM, seed_RM, axis=1).mean(axis=1))
    return np.concatenate(parts)
