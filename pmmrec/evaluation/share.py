"""Divide work among several processes."""

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
    """This process is number `index` of `count`; they share a folder and exchange nothing else."""

    index: int = 0
    count: int = 1
    on_machine: int = 0  # its number among the processes of this machine, which chooses its GPU

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        """Read what torchrun or `accelerate launch` set; without them this process is the only one.

        Raises RecipeError for values that make no sense.
        """
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
        """The GPU of this process where several share a machine with GPUs; None: choose as a single process does."""
        if self.count == 1 or not torch.cuda.is_available():
            return None
        return f"cuda:{self.on_machine % torch.cuda.device_count()}"

    def span(self, total: int) -> slice:
        """The consecutive part of `total` things that is its own; parts differ in size by one at most."""
        return slice(self.index * total // self.count, (self.index + 1) * total // self.count)

    def order(self, total: int) -> list[int]:
        """The order in which to try all `total` pieces of work: its own first, then those of others from the end.

        A process that skips finished pieces thereby helps those that are slow or have died, and never waits.
        """
        own = self.span(total)
        others = [place for place in range(total) if not own.start <= place < own.stop]
        return [*range(own.start, own.stop), *reversed(others)]


class WorkerGroup(Protocol):
    """Processes that do one piece of work together, as seen by one of them."""

    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...

    def summed(self, own: Tensor) -> Tensor:
        """The sum of `own` over all processes, on its device. All processes must call it."""
        ...


@dataclass(frozen=True)
class SingleProcess:
    """A worker group of one."""

    rank: int = 0
    world: int = 1

    def summed(self, own: Tensor) -> Tensor:
        return own


SINGLE_PROCESS = SingleProcess()


def turns(total: int, group: WorkerGroup) -> Iterator[tuple[int, bool]]:
    """The pieces of `total` that this process does, and whether it keeps the outcome.

    All processes get the same number of turns, because the modules they call may exchange weights. A process with
    fewer pieces repeats the last one and discards the outcome.
    """
    for first in range(0, total, group.world):
        place = first + group.rank
        yield min(place, total - 1), place < total
