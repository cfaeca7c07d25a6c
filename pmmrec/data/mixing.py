"""Which windows of which domains make up one step?"""
# B users of the global batch, over all processes.

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from pmmrec.data.randomness import Purpose, generator
from pmmrec.errors import DataError, RecipeError
from pmmrec.settings import Config

Ints = NDArray[np.int64]


class MixingConfig(Config):
    """How much each domain is seen, and whether domains share a batch."""

    by: Literal["users", "equal"] = Field(
        default="users", description="Weight of a domain: its windows, or the same for all."
    )
    temperature: float = Field(
        default=1.0,
        gt=0,
        description="by users: weight = windows ** (1 / temperature); above 1 small domains are seen more.",
    )
    weights: dict[str, float] | None = Field(
        default=None, description="Weight of each domain by name, in place of the above."
    )
    batches: Literal["mixed", "one_domain"] = Field(
        default="mixed", description="one_domain: negatives come from the user's own platform only."
    )

    @model_validator(mode="after")
    def _check_one_rule(self) -> Self:
        if self.by == "equal" and self.temperature != 1:
            raise ValueError("temperature has no effect with by: equal; leave one of them out")
        if self.weights is not None:
            if self.by != "users" or self.temperature != 1:
                raise ValueError("weights stand in place of by and temperature; leave those out, or the weights")
            wrong = [name for name, weight in self.weights.items() if weight <= 0]
            if wrong:
                raise ValueError(
                    f"weights of {', '.join(wrong)} must be above 0; leave out domains that are not wanted"
                )
        return self


class Draw(NamedTuple):
    """The windows of one step, in the order of the global batch."""

    domain_B: Ints
    window_B: Ints
    pass_B: Ints  # how often the domain's windows had all been seen before this visit; the epoch under natural weights


class StepSampler:
    """The global batch of every step, as a pure function of (seed, epoch, step).

    An epoch has as many slots as the domains have windows. A domain's quota of them is by its weight (largest
    remainder), its windows come from an endless stream of permutations whose position carries over from epoch to epoch:
    under natural weights each window is seen exactly once an epoch, under any weights none is starved. The slots are
    dealt evenly over the steps, so there is no small last batch and nobody is repeated or dropped to fill it.
    With `one_domain` the slots of each domain are dealt over steps of their own.
    """

    def __init__(
        self, num_windows: Sequence[int], names: Sequence[str], batch_users: int, seed: int, config: MixingConfig
    ) -> None:
        if batch_users < 1:
            raise RecipeError(f"batch_users: {batch_users}; a batch holds at least one user")
        if seed < 0:
            raise RecipeError(f"seed: {seed}; must be 0 or more")
        if len(set(names)) < len(names):
            raise RecipeError(f"two domains share a name: {', '.join(sorted(names))}; give each its own")
        for name, count in zip(names, num_windows, strict=True):
            if count == 0:
                raise DataError(f"{name}: no user has two items to train on; leave the domain out")
        self._num_windows = list(num_windows)
        self._seed = seed
        self._is_mixed = config.batches == "mixed"
        self.weights = _weights(num_windows, names, config)
        self._quotas = _largest_remainder(sum(num_windows), self.weights)
        for name, quota in zip(names, self._quotas, strict=True):
            if quota == 0:
                raise RecipeError(
                    f"{name}: its weight gives it none of {sum(num_windows):,} users; raise it or leave it out"
                )
        groups = [sum(self._quotas)] if self._is_mixed else self._quotas
        self._group_steps = [math.ceil(slots / batch_users) for slots in groups]
        self.smallest_batch = min(slots // steps for slots, steps in zip(groups, self._group_steps, strict=True))
        self._orders: dict[int, tuple[int, Ints]] = {}  # domain -> its current pass and permutation
        self._epoch: tuple[int, list[Draw]] | None = None  # the current epoch and its steps

    @property
    def steps_per_epoch(self) -> int:
        return sum(self._group_steps)

    def step(self, epoch: int, step: int) -> Draw:
        """The global batch; every process draws the same and takes its `share`."""
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"step {step} of {self.steps_per_epoch}")
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._steps(epoch))
        return self._epoch[1][step]

    def _steps(self, epoch: int) -> list[Draw]:
        rng = generator(self._seed, Purpose.STEP_ORDER, epoch)
        slots = [self._slots(domain, epoch) for domain in range(len(self._quotas))]
        if self._is_mixed:
            slots = [Draw(*(np.concatenate(column) for column in zip(*slots, strict=True)))]
            order = rng.permutation(len(slots[0].domain_B))
            slots = [Draw(*(column[order] for column in slots[0]))]
        steps = []
        for group, num_steps in zip(slots, self._group_steps, strict=True):
            columns = [np.array_split(column, num_steps) for column in group]
            steps += [Draw(*parts) for parts in zip(*columns, strict=True)]
        return steps if self._is_mixed else [steps[place] for place in rng.permutation(len(steps))]

    def _slots(self, domain: int, epoch: int) -> Draw:
        """This epoch's stretch of a domain's endless stream of permutations."""
        quota, count = self._quotas[domain], self._num_windows[domain]
        position = epoch * quota + np.arange(quota)
        pass_index = position // count
        first, last = int(pass_index[0]), int(pass_index[-1])
        stream = np.concatenate([self._order(domain, number) for number in range(first, last + 1)])
        return Draw(np.full(quota, domain), stream[position - first * count], pass_index)

    def _order(self, domain: int, pass_index: int) -> Ints:
        cached = self._orders.get(domain)
        if cached is None or cached[0] != pass_index:
            rng = generator(self._seed, Purpose.VISIT_ORDER, domain, pass_index)
            cached = self._orders[domain] = (pass_index, rng.permutation(self._num_windows[domain]))
        return cached[1]


def share(array: Ints, rank: int, world: int) -> Ints:
    """The part of a global batch that process `rank` of `world` takes; parts differ by one at most."""
    return np.array_split(array, world)[rank]


def _weights(num_windows: Sequence[int], names: Sequence[str], config: MixingConfig) -> NDArray[np.float64]:
    if config.weights is not None:
        unknown, missing = set(config.weights) - set(names), set(names) - set(config.weights)
        if unknown:
            raise RecipeError(f"mixing.weights: no domain {', '.join(sorted(unknown))}; there are: {', '.join(names)}")
        if missing:
            raise RecipeError(f"mixing.weights: no weight for {', '.join(sorted(missing))}; give every domain one")
        weights = np.array([config.weights[name] for name in names])
    elif config.by == "equal":
        weights = np.ones(len(names))
    else:
        logs = np.log(np.asarray(num_windows, dtype=np.float64)) / config.temperature
        weights = np.exp(logs - logs.max())  # the largest is 1: a tiny temperature cannot overflow
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def _largest_remainder(total: int, weights: NDArray[np.float64]) -> list[int]:
    """Whole shares of `total` that are nearest to the weights and sum to it; the first wins a tie."""
    exact = total * weights
    quotas = np.floor(exact).astype(np.int64)
    neediest = np.argsort(quotas - exact, kind="stable")[: total - int(quotas.sum())]
    quotas[neediest] += 1
    return [int(quota) for quota in quotas]
