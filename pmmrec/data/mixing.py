"""Choose the examples of the domains that make up one step."""
# B examples of the global batch, over all processes.

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
        default="users", description="Weight of a domain: the number of its examples, or the same for all."
    )
    temperature: float = Field(
        default=1.0,
        gt=0,
        description="by users: weight = examples ** (1 / temperature); above 1 small domains are seen more.",
    )
    weights: dict[str, float] | None = Field(
        default=None, description="Weight of each domain by name, in place of the above."
    )
    epoch_users: int | None = Field(
        default=None,
        ge=1,
        description="Examples of an epoch, after which validation comes; null: as many as there are. Fewer for a "
        "domain so large that nobody waits for all of it: the next epoch goes on where this one ended.",
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
    """The examples of one step by number, in the order of the global batch; the domains say what they hold."""

    domain_B: Ints
    number_B: Ints
    pass_B: Ints  # how often all examples of the domain had been seen before; under natural weights the epoch


class StepSampler:
    """The global batch of every step, as a pure function of (seed, epoch, step).

    An epoch has as many slots as the domains have examples, or `epoch_users`. Each domain gets a share of them by its
    weight (largest remainder). Its examples come from an endless stream of permutations, and each epoch goes on where
    the one before ended: with natural weights and whole epochs every example is seen exactly once an epoch, and with
    other weights every example still has its turn. The slots are dealt evenly over the steps, so no batch is much
    smaller than another, and no example is repeated or dropped to fill one.
    With `one_domain` the slots of each domain are dealt over steps of their own.

    It holds the orders of the current epoch and pass: four bytes for each slot and each example, up to 2**32 of them.
    """

    def __init__(
        self, num_examples: Sequence[int], names: Sequence[str], batch_users: int, seed: int, config: MixingConfig
    ) -> None:
        if batch_users < 1:
            raise RecipeError(f"batch_users: {batch_users}; a batch holds at least one user")
        if seed < 0:
            raise RecipeError(f"seed: {seed}; must be 0 or more")
        if len(set(names)) < len(names):
            raise RecipeError(f"two domains share a name: {', '.join(sorted(names))}; give each its own")
        for name, count in zip(names, num_examples, strict=True):
            if count == 0:
                raise DataError(
                    f"{name}: has no example to train on (a window takes a user with two items in training); leave the "
                    "domain out, or choose another data.split or data.examples"
                )
        self._num_examples = list(num_examples)
        self._seed = seed
        self._is_mixed = config.batches == "mixed"
        self.weights = _weights(num_examples, names, config)
        num_slots = config.epoch_users or sum(num_examples)
        self._quotas = _largest_remainder(num_slots, self.weights)
        for name, quota in zip(names, self._quotas, strict=True):
            if quota == 0:
                raise RecipeError(f"{name}: its weight gives it none of {num_slots:,} users; raise it or leave it out")
        groups = [sum(self._quotas)] if self._is_mixed else self._quotas
        self._groups = [(slots, math.ceil(slots / batch_users)) for slots in groups]
        self.smallest_batch = min(slots // steps for slots, steps in self._groups)
        self._passes: dict[
            int, dict[int, Ints]
        ] = {}  # domain -> the passes that the current epoch needs -> their order
        self._epoch: tuple[int, Ints] | None = None  # the current epoch and the order of its slots or steps

    @property
    def steps_per_epoch(self) -> int:
        return sum(steps for _, steps in self._groups)

    def step(self, epoch: int, step: int) -> Draw:
        """The global batch; every process draws the same and takes its `share`."""
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"step {step} of {self.steps_per_epoch}")
        order = self._order(epoch)
        if self._is_mixed:
            start, end = _bounds(*self._groups[0], step)
            return self._draw(epoch, order[start:end].astype(np.int64))
        place, steps_before = int(order[step]), np.cumsum([0, *(steps for _, steps in self._groups)])
        domain = int(np.searchsorted(steps_before, place, side="right")) - 1
        start, end = _bounds(*self._groups[domain], place - int(steps_before[domain]))
        return self._draw(epoch, sum(self._quotas[:domain]) + np.arange(start, end))

    def _order(self, epoch: int) -> Ints:
        """Of the slots of an epoch, or with `one_domain` of its steps; drawn once an epoch."""
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = None  # let go of the one before first
            rng = generator(self._seed, Purpose.STEP_ORDER, epoch)
            self._epoch = (epoch, _permutation(rng, sum(self._quotas) if self._is_mixed else self.steps_per_epoch))
        return self._epoch[1]

    def _draw(self, epoch: int, slot_B: Ints) -> Draw:
        """What the slots of an epoch stand for, which number those of one domain after those of another."""
        ends = np.cumsum(self._quotas)
        domain_B = np.searchsorted(ends, slot_B, side="right")
        quotas, counts = np.array(self._quotas), np.array(self._num_examples)
        position_B = epoch * quotas[domain_B] + slot_B - (ends - quotas)[domain_B]
        pass_B, place_B = np.divmod(position_B, counts[domain_B])
        number_B = np.empty_like(position_B)
        for domain, number in sorted({*zip(domain_B.tolist(), pass_B.tolist(), strict=True)}):
            here = (domain_B == domain) & (pass_B == number)
            number_B[here] = self._visits(domain, number, epoch)[place_B[here]]
        return Draw(domain_B, number_B, pass_B)

    def _visits(self, domain: int, number: int, epoch: int) -> Ints:
        """The order of a domain's examples in one pass; orders that the epoch does not need are dropped."""
        passes = self._passes.setdefault(domain, {})
        if number not in passes:
            quota, count = self._quotas[domain], self._num_examples[domain]
            needed = range(epoch * quota // count, ((epoch + 1) * quota - 1) // count + 1)
            for other in passes.keys() - needed:
                del passes[other]
            rng = generator(self._seed, Purpose.VISIT_ORDER, domain, number)
            passes[number] = _permutation(rng, self._num_examples[domain])
        return passes[number]


def _permutation(rng: np.random.Generator, count: int) -> Ints:
    """As `rng.permutation(count)`, in no more bytes than it takes."""
    return rng.permutation(np.arange(count, dtype=np.min_scalar_type(count)))


def _bounds(slots: int, steps: int, step: int) -> tuple[int, int]:
    """Where a step begins and ends among slots that are dealt evenly: the first ones hold one more."""
    least, more = divmod(slots, steps)
    return step * least + min(step, more), (step + 1) * least + min(step + 1, more)


def share(array: Ints, rank: int, world: int) -> Ints:
    """The part of a global batch that process `rank` of `world` takes; parts differ by one at most."""
    return array if world == 1 else np.array_split(array, world)[rank]


def _weights(num_examples: Sequence[int], names: Sequence[str], config: MixingConfig) -> NDArray[np.float64]:
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
        logs = np.log(np.asarray(num_examples, dtype=np.float64)) / config.temperature
        weights = np.exp(logs - logs.max())  # the largest is 1: a tiny temperature cannot overflow
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def _largest_remainder(total: int, weights: NDArray[np.float64]) -> list[int]:
    """Whole shares of `total` that are nearest to the weights and sum to it; the first wins a tie."""
    exact = total * weights
    quotas = np.floor(exact).astype(np.int64)
    neediest = np.argsort(quotas - exact, kind="stable")[: total - int(quotas.sum())]
    quotas[neediest] += 1
    return [int(quota) for quota in quotas]
