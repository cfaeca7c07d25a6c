"""Which process hangs or is gone, and where? A thread of each sees to it that no step and no silence lasts for ever."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import torch.distributed as dist
from torch.distributed import Store, distributed_c10d  # type: ignore[attr-defined]  # as in voices
from torch.nn.parallel import distributed

from pmmrec.errors import MachineError, PMMRecError
from pmmrec.train.voices import Doing, Place, Voice, Voices

__all__ = ["Doing", "Place", "Watch", "joining"]

JOIN_S = 900.0  # launchers wait about as long for machines that come late; what follows takes seconds
_BEATS = 10  # in one timeout
_PATIENCE_S = 2.0  # for a last word of the others, when this process ends anyway
_LEAVE_S = 30.0  # for its own last word at a good end: a thread of torch's must not meet the end of the interpreter
_EXCHANGES = {distributed_c10d.__file__, distributed.__file__}  # where a process waits for the others
_GO_ON = "--resume goes on from the last state"


class Watch:
    """Follows this process and the others. What lasts longer than `timeout_s` ends the process with its reason.

    That is a step, or the silence of another process: its thread says where it is as long as the process lives and the
    network carries it. Validation, saving and everything else that is no step may last as long as it likes.
    """

    def __init__(self, timeout_s: float, rank: int, world: int, store: Store | None = None) -> None:
        """`store`: where processes meet; None: where their process group does, if there is one."""
        self._timeout_s, self._rank, self._world = timeout_s, rank, world
        self._at: tuple[Place, float] | None = None  # since when, in the clock of this process; None: in no step
        self._step, self._step_s = 0, 0.0
        self._thread_id = threading.get_ident()  # of the thread that trains
        if store is None and dist.is_initialized():
            store = distributed_c10d._get_default_store().clone()  # no public name; a connection of its own
        self._voices = Voices(store, rank, world, timeout_s / _BEATS, self._place)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Watch as long as the block lasts. MachineError where it lost the connection to another process."""
        ended, why = threading.Event(), ""
        thread = threading.Thread(target=self._follow, args=(ended,), name="watch", daemon=True)
        self._voices.open()
        thread.start()
        try:
            yield
        except BaseException as error:
            told = self._lost(error)
            why = told or (str(error) if isinstance(error, PMMRecError) else type(error).__name__)
            if told is not None:
                raise MachineError(told) from error
            raise
        finally:
            self.rest()
            ended.set()
            thread.join()
            self._voices.leave(why, _PATIENCE_S if why else _LEAVE_S)

    def step(self, step: int, doing: Doing) -> None:
        """The thread that says so is at this part of this step."""
        self._thread_id = threading.get_ident()
        if doing is Doing.READING:
            self._step, self._step_s = step, time.monotonic()
        self._at = (Place(step, doing), self._step_s)

    def rest(self) -> None:
        """This process is in no step."""
        self._at = None

    def _follow(self, ended: threading.Event) -> None:
        beat_s = self._timeout_s / _BEATS
        while not ended.wait(beat_s):
            at = self._at
            if not (self._is_late(at) or self._silence(self._timeout_s)):
                continue
            ended.wait(2 * beat_s)  # for others to tell where they are; and this process may have been asleep itself
            if ended.is_set():
                return
            here, silence = self._place(), self._silence(self._timeout_s)
            if self._is_late(at) and self._at == at and here is not None:
                self._end(self.verdict(here), shows_stacks=not self._silence(self._timeout_s / 2))
            elif silence:
                self._end(f"{silence}; {_GO_ON} (train.step_minutes)", shows_stacks=False)

    def _is_late(self, at: tuple[Place, float] | None) -> bool:
        return at is not None and time.monotonic() - at[1] > self._timeout_s

    def _place(self) -> Place | None:
        """Where the watched thread is; whether in one of torch's exchanges, its stack tells."""
        at = self._at
        if at is None:
            return None
        frame = sys._current_frames().get(self._thread_id)
        is_waiting = frame is not None and frame.f_code.co_filename in _EXCHANGES
        return Place(at[0].step, Doing.WAITING) if is_waiting else at[0]

    def _end(self, words: str, *, shows_stacks: bool) -> NoReturn:
        """Say who hangs, show what this process is at, and end it: what it waits for cannot be interrupted."""
        sys.stderr.write(f"error: {words}\n")
        sys.stderr.flush()
        if shows_stacks:
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
        self._voices.leave(words, _PATIENCE_S)
        os._exit(MachineError.exit_code)

    def verdict(self, here: Place) -> str:
        """Which processes are silent, else which are behind all others."""
        silence = self._silence(self._timeout_s / 2)
        if silence:
            return f"{silence}; {_GO_ON} (train.step_minutes)"
        told = {rank: voice.place for rank, voice in self._voices.others.items() if voice.gone is None}
        places = {self._rank: here, **{rank: place for rank, place in told.items() if place is not None}}
        last = min(places.values())
        behind = [rank for rank, place in sorted(places.items()) if place == last]
        hangs = f"{self._named(behind)}: {last.words()} for more than {self._timeout_s:g} s"
        waits = "" if here == last else f"; process {self._rank} is {here.words()}"
        return f"step {last.step}: {hangs}{waits}; {_GO_ON} (train.step_minutes)"

    def _silence(self, longest_s: float) -> str:
        """Who has not been heard of for longer, in words; empty where there is none."""
        here = self._place()
        where = f"after step {self._step}" if here is None else f"step {here.step}"
        unreached_s = self._voices.unreached_s
        if unreached_s > longest_s:
            return (
                f"{where}: process {self._rank} of {self._world} has reached no other for {unreached_s:.0f} s: the "
                "network, or the machine where all of them meet, is gone"
            )
        silent = {rank: voice for rank, voice in sorted(self._voices.others.items()) if voice.silent_s > longest_s}
        if not silent:
            return ""
        voice = max(silent.values(), key=lambda voice: voice.silent_s)
        last = "in no step" if voice.place is None else voice.place.words()
        which = f"{self._named(list(silent))}{_on(list(silent.values()))}"
        return (
            f"{where}: {which}: not heard of for {voice.silent_s:.0f} s, last {last}: the process, its machine or the "
            "network is gone"
        )

    def _lost(self, error: BaseException) -> str | None:
        """What an error of an exchange means; None for any other error."""
        words = str(error)
        if not isinstance(error, dist.DistError) and not (isinstance(error, RuntimeError) and "gloo/" in words):
            return None
        self._voices.ask(_PATIENCE_S)
        ended = [
            f"{self._named([rank])}{_on([voice])} ended: {voice.gone}"
            for rank, voice in sorted(self._voices.others.items())
            if voice.gone
        ]
        other = self._named([1 - self._rank]) if self._world == 2 else "another process"
        reason = words.split("] ", 1)[-1].split(". ", 1)[0].splitlines()[0]  # without where in gloo, and its advice
        where = "" if self._step == 0 else f"step {self._step}: "
        lost = "; ".join(ended) or f"{other} is gone, process {self._rank} lost the connection to it: {reason}"
        return f"{where}{lost}; {_GO_ON}"

    def _named(self, ranks: Sequence[int]) -> str:
        return f"process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))} of {self._world}"


def _on(voices: Sequence[Voice]) -> str:
    hosts = sorted({voice.host for voice in voices if voice.host is not None})
    return f" (on {', '.join(hosts)})" if hosts else ""


@contextmanager
def joining(within_s: float = JOIN_S) -> Iterator[None]:
    """Meet the other processes in this block. What lasts longer ends the process; MachineError where they cannot."""
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    who = f"launch: process {rank} of {world} cannot reach the others"
    right = (
        "they talk over ports of their own besides that of the rendezvous, which a firewall must let pass; where a "
        "machine has several networks, GLOO_SOCKET_IFNAME (CPU) and NCCL_SOCKET_IFNAME (GPU) name the one to use"
    )

    def end() -> None:
        sys.stderr.write(f"error: {who} for {within_s:g} s; {right}\n")
        sys.stderr.flush()
        os._exit(MachineError.exit_code)

    timer = threading.Timer(within_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "Gloo" not in str(error):
            raise
        raise MachineError(f"{who}: {str(error).splitlines()[0]}; {right}") from error
    finally:
        timer.cancel()
