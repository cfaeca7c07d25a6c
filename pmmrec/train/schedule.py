"""How the learning rate moves: warm-up, then a schedule over steps or epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import Self

from pmmrec.settings import Config


class ExponentialConfig(Config):
    """The rate falls by a factor every so many epochs, evenly: after e epochs it is `factor ** (e / epochs)`."""

    type: Literal["exponential"] = "exponential"
    factor: float = Field(gt=0, lt=1, description="What the rate is multiplied by in `epochs` epochs (LATTICE: 0.96).")
    epochs: float = Field(1.0, gt=0, description="In how many epochs (LATTICE: 50).")


class StepConfig(Config):
    """The rate is multiplied by a factor after some epochs, and stays the same between them."""

    type: Literal["step"] = "step"
    factor: float = Field(0.1, gt=0, lt=1, description="What the rate is multiplied by each time.")
    after: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        min_length=1, description="After which epochs (released MMSR: [120])."
    )

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if list(self.after) != sorted(set(self.after)):
            raise ValueError("after: name each epoch once, in order")
        return self


WORDS = ("constant", "cosine", "linear")


def _kind(value: object) -> str | None:
    """Which of the settings below a value is meant as; None: it is none of them."""
    if isinstance(value, str):
        return "word" if value in WORDS else None
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    return kind if kind in ("exponential", "step") else None


_DISCRIMINATOR = Discriminator(
    _kind,
    custom_error_type="schedule",
    custom_error_message="must be one of constant, cosine, linear, {type: exponential, factor: ...} and "
    "{type: step, after: [...]}",
)


if TYPE_CHECKING:
    Schedule: TypeAlias = Literal["constant", "cosine", "linear"] | ExponentialConfig | StepConfig
else:
    Schedule = Annotated[
        Annotated[Literal["constant", "cosine", "linear"], Tag("word")]
        | Annotated[ExponentialConfig, Tag("exponential")]
        | Annotated[StepConfig, Tag("step")],
        _DISCRIMINATOR,
    ]


class Warmup(Protocol):
    """The settings of one part that decide its warm-up."""

    @property
    def warmup(self) -> float | None: ...


class Scheduled(Protocol):
    """The settings of an optimizer that decide how its rates move."""

    @property
    def schedule(self) -> Schedule: ...
    @property
    def warmup(self) -> float: ...
    @property
    def groups(self) -> Mapping[str, Warmup]: ...


def build_scheduler(optimizer: Optimizer, config: Scheduled, num_steps: int, steps_per_epoch: int) -> LambdaLR:
    """For each group a linear warm-up, times the schedule of a training of `num_steps` steps."""
    shares = [
        config.groups[group["name"]].warmup if group["name"] in config.groups else None for group in _groups(optimizer)
    ]
    warmups = [config.warmup if share is None else share for share in shares]
    return LambdaLR(optimizer, [_factor(config.schedule, share, num_steps, steps_per_epoch) for share in warmups])


def change_num_steps(scheduler: LambdaLR, config: Scheduled, before: int, now: int) -> str:
    """Bring the rates from a schedule of `before` steps in all to one of `now` steps, for which `scheduler` was made.

    Returns what the other number of steps changes from here on, for people. The rate told is that of the first group.
    """
    step, groups = scheduler.last_epoch, scheduler.optimizer.param_groups
    pairs = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    rates = [float(base * factor(step)) for base, factor in pairs]  # as LambdaLR; get_lr warns of calls from elsewhere
    old, scheduler._last_lr = float(groups[0]["lr"]), list(rates)
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    warmups = [config.warmup, *(group.warmup for group in config.groups.values() if group.warmup is not None)]
    ends = [int(max(warmups) * num_steps) for num_steps in (before, now)]
    changes = [f"warm-up now ends at step {ends[1]} instead of {ends[0]}"] if step < max(ends) else []
    if config.schedule in ("cosine", "linear"):
        changes.append(f"{config.schedule} now ends at step {now} instead of {before}")
    if old != rates[0]:
        changes.append(f"the rate of step {step + 1} goes from {old:.3g} to {rates[0]:.3g}")
    return "; ".join(changes) or "learning rates stay as they were"


def _groups(optimizer: Optimizer) -> Sequence[Mapping[str, str]]:
    return optimizer.param_groups


def _factor(schedule: Schedule, warmup: float, num_steps: int, steps_per_epoch: int) -> Callable[[int], float]:
    num_warmup = int(warmup * num_steps)

    def factor(step: int) -> float:
        if isinstance(schedule, str):
            progress = (step - num_warmup) / max(1, num_steps - num_warmup)
            after_warmup = _by_progress(schedule, min(1.0, max(0.0, progress)))
        else:
            after_warmup = _by_epoch(schedule, step // steps_per_epoch)
        return after_warmup * (step + 1) / (num_warmup + 1) if step < num_warmup else after_warmup

    return factor


def _by_progress(schedule: str, progress: float) -> float:
    if schedule == "constant":
        return 1.0
    return 1 - progress if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))


def _by_epoch(schedule: ExponentialConfig | StepConfig, num_done: int) -> float:
    """The factor after so many epochs."""
    if isinstance(schedule, ExponentialConfig):
        return float(schedule.factor ** (num_done / schedule.epochs))
    return float(schedule.factor ** sum(epoch <= num_done for epoch in schedule.after))
