"""Which part of some work is this process's, when several do it together?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from typing_extensions import Self

from pmmrec.errors import RecipeError


@dataclass(frozen=True)
class Share:
    """This process is number `index` of `count`. They meet in a folder that all of them see, and nowhere else."""

    index: int = 0
    count: int = 1
    on_machine: int = 0  # its number among the processes of this machine: which GPU is its own

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        """What torchrun or `accelerate launch` says; alone where they say nothing. RecipeError for nonsense."""
        words = {name: environment.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        if words["WORLD_SIZE"] is None:
            return cls()
        try:
            index, count, local = (int(words[name] or 0) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        except ValueError as error:
            raise RecipeError(f"RANK and WORLD_SIZE must be numbers, found {words}") from error
        if not 0 <= index < count:
            raise RecipeError(f"RANK {index} is not below WORLD_SIZE {count}; start all processes with one launcher")
        return cls(index, count, local)

    @property
    def device(self) -> str | None:
        """Its GPU where several processes share a machine that has them; None: whatever one process would take."""
        if self.count == 1 or not torch.cuda.is_available():
            return None
        return f"cuda:{self.on_machine % torch.cuda.device_count()}"

    def span(self, total: int) -> slice:
        """Its part of `total` things in a row; the parts of all processes are as equal as can be."""
        return slice(self.index * total // self.count, (self.index + 1) * total // self.count)

    def order(self, total: int) -> list[int]:
        """All of `total` pieces of work: its own first, then those of others from the end.

        A process that skips what is done already helps whoever is slow, or has died, and waits for nobody.
        """
        own = self.span(total)
        others = [place for place in range(total) if not own.start <= place < own.stop]
        return [*range(own.start, own.stop), *reversed(others)]
