"""Add up what the steps since the last log line tell, over all processes, and forecast when training ends."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pmmrec.contracts import Batch
from pmmrec.progress import duration

SIZES = ("users", "slots", "items_encoded")  # of a step, added up over processes and steps


class Forecast:
    """How long the rest of an epoch and of a training will take, at the pace of the latest steps."""

    def __init__(self, num_epochs: int, steps_per_epoch: int) -> None:
        self._num_epochs, self._steps_per_epoch = num_epochs, steps_per_epoch
        self._mark: tuple[int, float] | None = None  # the step and time from which steps are timed next
        self._step_s: float | None = None
        self._between_s = 0.0  # what lay between the last two epochs: mostly validation

    def begin_epoch(self, step: int) -> None:
        """Time steps from now on; `step` have been made."""
        now_s = time.monotonic()
        if self._mark is not None:
            self._between_s = now_s - self._mark[1]
        self._mark = (step, now_s)

    def words(self, step: int, *, is_at_most: bool) -> str:
        """For a log line; empty for the very first step, whose time says little. `is_at_most`: may end sooner."""
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
        """Count a step in; one that was held back (a bool on the device) counts as if it had not been."""
        for name, total in totals.items():
            counted = total.masked_fill(is_held, 0)
            self.figures[name] = self.figures[name] + counted if name in self.figures else counted

    def means(self) -> dict[str, float]:
        return {name: float(sum_ / count.clamp(min=1)) for name, (sum_, count) in self._figures().items()}

    def sizes(self) -> dict[str, int]:
        return {name: int(self.figures[name][0]) for name in SIZES}

    def _figures(self) -> dict[str, Tensor]:
        return {name: total for name, total in self.figures.items() if name not in SIZES}


def sizes_of(batch: Batch) -> dict[str, Tensor]:
    """This process's share of the sizes of a step, as sums with a count of 0: users, filled slots, items encoded.

    Nothing is copied to a GPU, for which the program would wait until all it was asked for before is done.
    """
    is_valid_BS = batch.windows.is_valid_BS
    num_slots = is_valid_BS.sum().float()
    sizes = (num_slots.new_full((), len(is_valid_BS)), num_slots, num_slots.new_full((), batch.items.num_items))
    return {name: torch.stack((size, torch.zeros_like(size))) for name, size in zip(SIZES, sizes, strict=True)}


def added(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The sum of each figure over all parts; a part may lack some."""
    together: dict[str, Tensor] = {}
    for part in parts:
        for name, figure in part.items():
            together[name] = together[name] + figure if name in together else figure
    return together


def chance(means: Mapping[str, float], name: str, step: int) -> str:
    """Beside the first loss, what a model that knows nothing would have."""
    return f" chance {means[f'{name}/chance']:.3f}" if step == 1 and f"{name}/chance" in means else ""
