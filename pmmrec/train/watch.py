"""Which process hangs, and where? A thread of each tells the others how far it is, and ends a step that never ends."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.nn.parallel import distributed

from pmmrec.errors import MachineError

_BEATS = 10  # in one timeout
_EXCHANGES = {distributed_c10d.__file__, distributed.__file__}  # where a process waits for the others


class Doing(IntEnum):
    """The parts of a step, in their order."""

    READING = 0
    COMPUTING = 1
    WAITING = 2  # for the others; found, not told: it happens wherever tensors are exchanged


@dataclass(frozen=True, order=True)
class Place:
    """How far a process is."""

    step: int
    doing: Doing

    def words(self) -> str:
        return f"{self.doing.name.lower()} in step {self.step}"


class Watch:
    """Follows the steps of this process; a step that lasts longer than `timeout_s` ends the process with its reason.

    Validation, saving and everything else that is no step may last as long as it likes.
    """

    def __init__(self, timeout_s: float, rank: int, world: int) -> None:
        self._timeout_s, self._rank, self._world = timeout_s, rank, world
        self._at: tuple[Place, float] | None = None  # since when, in the clock of this process; None: in no step
        self._step_s = 0.0
        self._thread_id = threading.get_ident()  # of the thread that trains
        self._store = distributed_c10d._get_default_store() if dist.is_initialized() else None  # no public name

    @contextmanager
    def open(self) -> Iterator[None]:
        """Watch as long as the block lasts."""
        ended = threading.Event()
        thread = threading.Thread(target=self._follow, args=(ended,), name="watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.rest()
            ended.set()
            thread.join()

    def step(self, step: int, doing: Doing) -> None:
        """The thread that says so is at this part of this step."""
        self._thread_id = threading.get_ident()
        if doing is Doing.READING:
            self._step_s = time.monotonic()
        self._at = (Place(step, doing), self._step_s)

    def rest(self) -> None:
        """This process is in no step."""
        self._at = None

    def _follow(self, ended: threading.Event) -> None:
        while not ended.wait(self._timeout_s / _BEATS):
            at = self._at
            here = self._place()
            if self._store is not None:
                self._store.set(_key(self._rank), json.dumps(None if here is None else [here.step, int(here.doing)]))
            if here is not None and at is not None and time.monotonic() - at[1] > self._timeout_s:
                ended.wait(2 * self._timeout_s / _BEATS)  # for others to tell where they are
                if self._at == at:
                    self._end(here)

    def _place(self) -> Place | None:
        """Where the watched thread is; whether in one of torch's exchanges, its stack tells."""
        at = self._at
        if at is None:
            return None
        frame = sys._current_frames().get(self._thread_id)
        is_waiting = frame is not None and frame.f_code.co_filename in _EXCHANGES
        return Place(at[0].step, Doing.WAITING) if is_waiting else at[0]

    def _end(self, here: Place) -> None:
        """Say who hangs, show what this process is at, and end it: what it waits for cannot be interrupted."""
        sys.stderr.write(f"error: {self.verdict(here)}\n")
        sys.stderr.flush()
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        os._exit(MachineError.exit_code)

    def verdict(self, here: Place) -> str:
        """Which processes are behind all others."""
        places = {self._rank: here, **self._others()}
        last = min(places.values())
        behind = [rank for rank, place in sorted(places.items()) if place == last]
        who = f"process{'es' if len(behind) > 1 else ''} {', '.join(map(str, behind))}"
        hangs = f"{who} of {self._world}: {last.words()} for more than {self._timeout_s:g} s"
        waits = "" if here == last else f"; process {self._rank} is {here.words()}"
        return f"step {last.step}: {hangs}{waits}; --resume goes on from the last state (train.step_minutes)"

    def _others(self) -> dict[int, Place]:
        """Where the others last said they were; those that said nothing, or are in no step, are left out."""
        others: dict[int, Place] = {}
        for rank in range(self._world if self._store is not None else 0):
            if rank != self._rank and self._store is not None and self._store.check([_key(rank)]):
                told = json.loads(self._store.get(_key(rank)))
                if told is not None:
                    others[rank] = Place(told[0], Doing(told[1]))
        return others


def _key(rank: int) -> str:
    return f"pmmrec/watch/{rank}"
