"""What do the steps since the last log line come to, over all processes?"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pmmrec.contracts import Batch

SIZES = ("users", "slots", "items_encoded")  # of a step, added up over processes and steps


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
