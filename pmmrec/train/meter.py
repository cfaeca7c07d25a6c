"""Sum the figures of steps between two log lines, and forecast when training ends."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pmmrec.contracts import SIZES, Batch
from pmmrec.progress import duration


class Forecast:
    """Estimates the time left in the epoch and in the training from the speed of the latest steps."""

    def __init__(self, num_epochs: int, steps_per_epoch: int) -> None:
        self._num_epochs, self._steps_per_epoch = num_epochs, steps_per_epoch
        self._mark: tuple[int, float] | None = None  # step and time at which the current measurement started
        self._step_s: float | None = None
        self._between_s = 0.0  # seconds between the last two epochs: mostly validation

    def begin_epoch(self, step: int) -> None:
        """Start to time steps; `step` is the number of steps done."""
        now_s = time.monotonic()
        if self._mark is not None:
            self._between_s = now_s - self._mark[1]
        self._mark = (step, now_s)

    def words(self, step: int, *, is_at_most: bool) -> str:
        """For a log line; empty after the first step, which is not typical. `is_at_most`: training may end sooner."""
        if self._mark is None:
            return ""
        (before, from_s), now_s = self._mark, time.monotonic()
        self._mark = (step, now_s)
        if step - before == 1 and self._step_s is None:
            return ""
        latest_s = (now_s - from_s) / max(1, step - before)
        self._step_s = latest_s if self._step_s is None else (self._step_s + latest_s) / 2
        epochs_done = (step - 1) // self._steps_per_epoch
        of_epoch_s = ((epochs_done + 1) * self._steps_per_epoch - step) * self._step_s
        of_all_s = (self._num_epochs * self._steps_per_epoch - step) * self._step_s
        of_all_s += (self._num_epochs - epochs_done) * self._between_s
        most = "at most " if is_at_most else ""
        return f"  ETA epoch {duration(of_epoch_s)}, training {most}{duration(of_all_s)}"


@dataclass
class Meter:
    """Sums and counts since the last log line, on the device."""

    figures: dict[str, Tensor] = field(default_factory=dict)
    started_s: float = field(default_factory=time.monotonic)

    def add(self, totals: Mapping[str, Tensor], is_held: Tensor) -> None:
        """Add a step; one that was held back (`is_held`, a bool on the device) adds nothing."""
        for name, total in totals.items():
            counted = total.masked_fill(is_held, 0)
            self.figures[name] = self.figures[name] + counted if name in self.figures else counted

    def means(self) -> dict[str, float]:
        """Of the figures that counted anything."""
        return {name: float(sum_ / count) for name, (sum_, count) in self._figures().items() if count}

    def sizes(self) -> dict[str, int]:
        """What `Batch.sizes` names, added up over processes and steps."""
        return {name: int(self.figures[name][0]) for name in SIZES}

    def _figures(self) -> dict[str, Tensor]:
        return {name: total for name, total in self.figures.items() if name not in SIZES}


def sizes_of(batch: Batch) -> dict[str, Tensor]:
    """The sizes of this process's batch, as sums with a count of 0."""
    return {name: torch.stack((size, torch.zeros_like(size))) for name, size in batch.sizes().items()}


def added(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The sum of each figure over all parts; a part may lack some figures."""
    totals: dict[str, Tensor] = {}
    for part in parts:
        for name, figure in part.items():
            totals[name] = totals[name] + figure if name in totals else figure
    return totals


def shown_losses(means: Mapping[str, float], names: Iterable[str], *, with_chance: bool = False) -> str:
    """Losses for a line of the log; "-" where nothing was counted. `with_chance`: those of guesses at random too."""
    shown = []
    for name in names:
        chance = means.get(f"{name}/chance") if with_chance else None
        guess = "" if chance is None else f" chance {chance:.3f}"
        shown.append(f"{name} {means[name]:.3f}{guess}" if name in means else f"{name} -")
    return "  ".join(shown)
