"""A watchdog in each process: it ends a step that takes too long, and the wait for a process that hangs or is gone."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import NoReturn

import psutil
import torch.distributed as dist
from torch.distributed import Store, distributed_c10d  # type: ignore[attr-defined]  # as in heartbeat
from torch.nn.parallel import distributed

from pmmrec.errors import LostProcessError, MachineError, PMMRecError
from pmmrec.launch import INTERFACE
from pmmrec.train.heartbeat import Activity, Heartbeat, HeartbeatMonitor, StepPhase
from pmmrec.train.reported import is_first_report

__all__ = ["Activity", "StepPhase", "Watchdog", "joining"]

JOIN_S = 900.0  # launchers wait about as long for machines that come late; what follows takes seconds
STEP_S = 1800.0  # until the recipe says otherwise
PHASE_S = 24 * 3600.0  # far above whatever healthy preparations and validations take
_BEATS = 10  # in the longest time of a step
_LONGEST_BEAT_S = 15.0  # what one process alone ends by reaches the others within a few
_PATIENCE_S = 2.0  # for a last word of the others, when this process ends anyway
_LEAVE_S = 30.0  # for its own last word at a good end: a thread of torch's must not meet the end of the interpreter
_COLLECTIVE_FILES = {distributed_c10d.__file__, distributed.__file__}  # where a process waits for the others
_GO_ON = "--resume goes on from the last state"


class Watchdog:
    """Follows this process and the others, from their meeting to their end, and ends this one with its reason.

    A step may last as long as `limit` says, and so may the silence of another process: its thread says where it is as
    long as the process lives and the network carries it. What lies between steps (preparing, validating, saving) has a
    generous limit of its own, and a step waits for a process that is within it. Whoever waits for a process that has
    ended by an error ends as well.
    """

    def __init__(self, rank: int, world: int, store: Store | None = None) -> None:
        """`store`: where processes meet; None: where their process group does, if there is one."""
        self._rank, self._world, self._store = rank, world, store
        self._step_s, self._phase_s = STEP_S, PHASE_S
        self._at, self._since_s = (
            Activity(0, StepPhase.BETWEEN),
            time.monotonic(),
        )  # since when, in the clock of this process
        self._thread_id = threading.get_ident()  # of the thread that trains
        self._is_open = False
        self._heartbeats = HeartbeatMonitor(None, rank, world, self._beat_s, self._place)

    def limit(self, step_s: float, phase_s: float = PHASE_S) -> None:
        """So long may a step or a silence last, and what lies between two steps."""
        self._step_s, self._phase_s = step_s, phase_s
        self._heartbeats.beat(self._beat_s)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Watch as long as the block lasts. LostProcessError where it lost the connection to another process.

        A PMMRecError that only this process has met is marked with its name. If the watchdog is open already, the time
        between steps starts again.
        """
        self.rest()
        if self._is_open:
            yield
            return
        ended, why, own = threading.Event(), "", None
        thread = threading.Thread(target=self._follow, args=(ended,), name="watchdog", daemon=True)
        self._heartbeats = HeartbeatMonitor(
            self._store or _meeting_place(), self._rank, self._world, self._beat_s, self._place
        )
        self._heartbeats.open()
        thread.start()
        self._is_open = True
        try:
            yield
        except BaseException as error:
            told = self._lost(error)
            why = told or (str(error) if isinstance(error, PMMRecError) else type(error).__name__)
            if told is not None:
                raise LostProcessError(told) from error
            own = error if isinstance(error, PMMRecError) else None
            raise
        finally:
            self.rest()
            self._is_open = False
            ended.set()
            thread.join()
            self._heartbeats.leave(why, _PATIENCE_S if why else _LEAVE_S, hears_s=0.0 if own is None else _PATIENCE_S)
            if own is not None and any(heartbeat.end_reason != why for heartbeat in self._heartbeats.others.values()):
                own.met_by = self._named([self._rank])

    def step(self, step: int, phase: StepPhase) -> None:
        """The thread that says so is at this part of this step."""
        self._thread_id = threading.get_ident()
        if phase is StepPhase.READING:
            self._since_s = time.monotonic()
        self._at = Activity(step, phase)

    def rest(self) -> None:
        """The thread that says so is between two steps."""
        self._thread_id = threading.get_ident()
        self._since_s = time.monotonic()
        at = self._at
        self._at = Activity(at.step - 1 if at.phase is StepPhase.READING else at.step, StepPhase.BETWEEN)

    @property
    def _beat_s(self) -> float:
        return min(self._step_s / _BEATS, _LONGEST_BEAT_S)

    def _follow(self, ended: threading.Event) -> None:
        while not ended.wait(self._beat_s):
            at, before = self._at, self._place()
            if not (self._is_over_limit() or self._silence(self._step_s) or self._left_behind(before)):
                continue
            ended.wait(2 * self._beat_s)  # for others to tell where they are; this process may have been asleep itself
            if ended.is_set():
                return
            here, silence = self._place(), self._silence(self._step_s)
            if here == before and self._left_behind(here):
                self._end(self._left_behind(here), shows_stacks=False)
            elif self._is_over_limit() and self._at is at and self._may_end(here):
                self._end(self.diagnosis(here), shows_stacks=not self._silence(self._step_s / 2))
            elif silence:
                self._end(f"{silence}; {_GO_ON} (train.step_minutes)", shows_stacks=False)

    def _is_over_limit(self) -> bool:
        return time.monotonic() - self._since_s > self._longest_s(self._at)

    def _longest_s(self, place: Activity) -> float:
        return self._phase_s if place.phase is StepPhase.BETWEEN else self._step_s

    def _may_end(self, here: Activity) -> bool:
        """Not while a step waits for a process that still speaks and is between two steps: that has its own limit."""
        last = self._last(here)
        is_awaited = here.phase is not StepPhase.BETWEEN and last.phase is StepPhase.BETWEEN
        return not is_awaited or bool(self._silence(self._step_s / 2))

    def _place(self) -> Activity:
        """Where the watched thread is. Its stack tells whether it waits in a collective of torch."""
        at = replace(self._at, collectives=_collectives_entered())
        return (
            replace(at, phase=StepPhase.WAITING)
            if at.phase is not StepPhase.BETWEEN and self._is_in_collective()
            else at
        )

    def _is_in_collective(self) -> bool:
        frame = sys._current_frames().get(self._thread_id)
        return frame is not None and frame.f_code.co_filename in _COLLECTIVE_FILES

    def _end(self, words: str, *, shows_stacks: bool) -> NoReturn:
        """Say who hangs, show what this process is at, and end it: what it waits for cannot be interrupted."""
        if is_first_report(words):
            sys.stderr.write(f"error: {words}\n")
        sys.stderr.flush()
        if shows_stacks:
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
        self._heartbeats.leave(words, _PATIENCE_S)
        os._exit(MachineError.exit_code)

    def diagnosis(self, here: Activity) -> str:
        """Which processes are silent, else which are behind all others."""
        silence = self._silence(self._step_s / 2)
        if silence:
            return f"{silence}; {_GO_ON} (train.step_minutes)"
        last, places = self._last(here), self._places(here)
        behind = [rank for rank, place in sorted(places.items()) if place.progress == last.progress]
        hangs = f"{self._named(behind)}: {last.words()} for more than {self._longest_s(last):g} s"
        waiting = "waiting" if here.phase is StepPhase.BETWEEN else f"waiting in {here.where}"
        is_ahead = here.collectives > last.collectives
        waits = "" if self._rank in behind else f"; process {self._rank} is {waiting if is_ahead else here.words()}"
        setting = "train.phase_hours" if last.phase is StepPhase.BETWEEN else "train.step_minutes"
        return f"{last.where}: {hangs}{waits}; {_GO_ON} ({setting})"

    def _places(self, here: Activity) -> dict[int, Activity]:
        told = {
            rank: heartbeat.place for rank, heartbeat in self._heartbeats.others.items() if heartbeat.end_reason is None
        }
        return {self._rank: here, **{rank: place for rank, place in told.items() if place is not None}}

    def _last(self, here: Activity) -> Activity:
        return min(self._places(here).values(), key=lambda place: place.progress)

    def _left_behind(self, here: Activity) -> str:
        """Which process ended by an error before it came to where this one waits for it; empty where there is none."""
        ended = [
            f"{self._named([rank])}{_on([heartbeat])} ended: {heartbeat.end_reason}"
            for rank, heartbeat in sorted(self._heartbeats.others.items())
            if heartbeat.end_reason and heartbeat.place is not None
            if here.collectives > heartbeat.place.collectives or self._is_in_collective()
        ]
        return f"{here.where}: {'; '.join(ended)}; {_GO_ON}" if ended else ""

    def _silence(self, longest_s: float) -> str:
        """Who has not been heard of for longer, in words; empty where there is none."""
        where = self._at.where
        unreached_s = self._heartbeats.unreached_s
        if unreached_s > longest_s:
            return (
                f"{where}: process {self._rank} of {self._world} has reached no other for {unreached_s:.0f} s: the "
                "network, or the machine where all of them meet, is gone"
            )
        silent = {
            rank: heartbeat
            for rank, heartbeat in sorted(self._heartbeats.others.items())
            if heartbeat.silent_s > longest_s
        }
        if not silent:
            return ""
        heartbeat = max(silent.values(), key=lambda heartbeat: heartbeat.silent_s)
        last = "" if heartbeat.place is None else f", last {heartbeat.place.words()}"
        which = f"{self._named(list(silent))}{_on(list(silent.values()))}"
        return (
            f"{where}: {which}: not heard of for {heartbeat.silent_s:.0f} s{last}: the process, its machine or the "
            "network is gone"
        )

    def _lost(self, error: BaseException) -> str | None:
        """What an error of an exchange means; None for any other error."""
        words = str(error)
        if not isinstance(error, dist.DistError) and not (isinstance(error, RuntimeError) and "gloo/" in words):
            return None
        self._heartbeats.ask(_PATIENCE_S)
        ended = [
            f"{self._named([rank])}{_on([heartbeat])} ended: {heartbeat.end_reason}"
            for rank, heartbeat in sorted(self._heartbeats.others.items())
            if heartbeat.end_reason
        ]
        other = self._named([1 - self._rank]) if self._world == 2 else "another process"
        reason = words.split("] ", 1)[-1].split(". ", 1)[0].splitlines()[0]  # without where in gloo, and its advice
        lost = "; ".join(ended) or f"{other} is gone, process {self._rank} lost the connection to it: {reason}"
        return f"{self._at.where}: {lost}; {_GO_ON}"

    def _named(self, ranks: Sequence[int]) -> str:
        return f"process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))} of {self._world}"


def _on(heartbeats: Sequence[Heartbeat]) -> str:
    hosts = sorted({heartbeat.host for heartbeat in heartbeats if heartbeat.host is not None})
    return f" (on {', '.join(hosts)})" if hosts else ""


def _meeting_place() -> Store | None:
    """The store of the process group, over a connection of its own; None where there is no group."""
    return distributed_c10d._get_default_store().clone() if dist.is_initialized() else None  # no public name


def _collectives_entered() -> int:
    """How many collectives this process has entered, in all groups: also those of DDP and FSDP2, inside autograd.

    On GPUs one is entered as soon as it is asked for. 0 where a backend does not count.
    """
    entered = 0
    for group in list(distributed_c10d._world.pg_map):
        with suppress(RuntimeError):
            entered += group._get_sequence_number_for_group()  # type: ignore[attr-defined]  # it has no public name
    return entered


@contextmanager
def joining(within_s: float = JOIN_S) -> Iterator[None]:
    """Meet the other processes in this block. If that lasts longer, the process ends; LostProcessError if it fails."""
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
        if "Unable to find address for" in str(error):  # gloo's words for an interface that is not there
            found = ", ".join(sorted(psutil.net_if_addrs()))
            told = f"launch: {INTERFACE} is {os.environ.get(INTERFACE)!r}, and no network interface with an address is"
            raise MachineError(f"{told} called so; this machine has {found}; name one of them, or unset it") from error
        if not isinstance(error, dist.DistError) and "Gloo" not in str(error):
            raise
        raise LostProcessError(f"{who}: {str(error).splitlines()[0]}; {right}") from error
    finally:
        timer.cancel()
