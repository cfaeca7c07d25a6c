"""Share work out over the processes that do it together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
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


class Team(Protocol):
    """Processes that do some work at the same time and wait for each other, seen from one of them."""

    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...

    def summed(self, own: Tensor) -> Tensor:
        """The sum over all processes, where `own` lies. All must call it."""
        ...


@dataclass(frozen=True)
class Alone:
    """A team of one."""

    rank: int = 0
    world: int = 1

    def summed(self, own: Tensor) -> Tensor:
        return own


ALONE = Alone()


def turns(total: int, team: Team) -> Iterator[tuple[int, bool]]:
    """The pieces of `total` that this process does, and whether it is for their sake.

    All processes have as many turns, since each calls the same modules, and those may exchange weights: who has fewer
    pieces does one more, whose outcome is thrown away.
    """
    for first in range(0, total, team.world):
        place = first + team.rank
        yield min(place, total - 1), place < total
