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

JOIN_S = 900.0  # about as long as launchers wait for late machines; what follows takes seconds
STEP_S = 1800.0  # until the recipe sets it
PHASE_S = 24 * 3600.0  # far above the time of any healthy preparation or validation
_HEARTBEATS_A_STEP = 10  # in the longest time allowed for a step
_LONGEST_INTERVAL_S = 15.0  # so that others read within seconds why a process ended
_READ_TIMEOUT_S = 2.0  # to read the last heartbeats of others, when this process ends anyway
_STOP_TIMEOUT_S = 30.0  # for the thread at a normal end: inside torch it would abort the interpreter
_COLLECTIVE_FILES = {distributed_c10d.__file__, distributed.__file__}  # where a process waits for the others
_GO_ON = "--resume goes on from the last state"


class Watchdog:
    """Follows this process and the others while they run together, and ends this one with a reason.

    A step may take as long as `set_limits` says, and another process may be silent as long: its heartbeat thread writes
    as long as the process lives and the network works. The time between steps (preparing, validating, saving) has a
    generous limit of its own, and a step waits for a process that is within it. A process that waits for another which
    ended by an error ends as well.

    The timeout of a process group does less: it covers collectives only, has one limit for steps and for hours of
    preparation, and does not name the process that hangs. torch's flight recorder leaves a dump in each process, which
    somebody must compare afterwards to find it.
    """

    def __init__(self, rank: int, world: int, store: Store | None = None) -> None:
        """`store`: for heartbeats; None: that of the process group, if there is one."""
        self._rank, self._world, self._store = rank, world, store
        self._step_s, self._phase_s = STEP_S, PHASE_S
        self._now, self._since_s = Activity(0, StepPhase.BETWEEN), time.monotonic()
        self._thread_id = threading.get_ident()  # of the thread that trains
        self._is_open = False
        self._monitor = HeartbeatMonitor(None, rank, world, self._interval_s, self._activity)

    def set_limits(self, step_s: float, phase_s: float = PHASE_S) -> None:
        """Set how long a step or a silence may take, and how long the time between two steps."""
        self._step_s, self._phase_s = step_s, phase_s
        self._monitor.set_interval(self._interval_s)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Watch during the block. LostProcessError if this process lost the connection to another.

        A PMMRecError that only this process has met is marked with its name. If the watchdog is open already, the time
        between steps starts again.
        """
        self.between_steps()
        if self._is_open:
            yield
            return
        ended, reason, own = threading.Event(), "", None
        thread = threading.Thread(target=self._follow, args=(ended,), name="watchdog", daemon=True)
        store = self._store or _group_store()
        self._monitor = HeartbeatMonitor(store, self._rank, self._world, self._interval_s, self._activity)
        self._monitor.start()
        thread.start()
        self._is_open = True
        try:
            yield
        except BaseException as error:
            lost = self._lost_connection(error)
            reason = lost or (str(error) if isinstance(error, PMMRecError) else type(error).__name__)
            if lost is not None:
                raise LostProcessError(lost) from error
            own = error if isinstance(error, PMMRecError) else None
            raise
        finally:
            self.between_steps()
            self._is_open = False
            ended.set()
            thread.join()
            timeout_s = _READ_TIMEOUT_S if reason else _STOP_TIMEOUT_S
            self._monitor.stop(reason, timeout_s, reads_s=0.0 if own is None else _READ_TIMEOUT_S)
            if own is not None and any(other.end_reason != reason for other in self._monitor.others.values()):
                own.met_by = self._named([self._rank])

    def step(self, step: int, phase: StepPhase) -> None:
        """Note that the calling thread is in this phase of this step."""
        self._thread_id = threading.get_ident()
        if phase is StepPhase.READING:
            self._since_s = time.monotonic()
        self._now = Activity(step, phase)

    def between_steps(self) -> None:
        """Note that the calling thread is between two steps."""
        self._thread_id = threading.get_ident()
        self._since_s = time.monotonic()
        now = self._now
        self._now = Activity(now.step - 1 if now.phase is StepPhase.READING else now.step, StepPhase.BETWEEN)

    @property
    def _interval_s(self) -> float:
        return min(self._step_s / _HEARTBEATS_A_STEP, _LONGEST_INTERVAL_S)

    def _follow(self, ended: threading.Event) -> None:
        while not ended.wait(self._interval_s):
            noted, before = self._now, self._activity()
            if not (self._is_over_limit() or self._silence(self._step_s) or self._ended_before(before)):
                continue
            ended.wait(2 * self._interval_s)  # others write where they are; this process may have been suspended itself
            if ended.is_set():
                return
            here, silence = self._activity(), self._silence(self._step_s)
            if here == before and self._ended_before(here):
                self._end(self._ended_before(here), shows_stacks=False)
            elif self._is_over_limit() and self._now is noted and self._may_end(here):
                self._end(self.diagnosis(here), shows_stacks=not self._silence(self._step_s / 2))
            elif silence:
                self._end(f"{silence}; {_GO_ON} (train.step_minutes)", shows_stacks=False)

    def _is_over_limit(self) -> bool:
        return time.monotonic() - self._since_s > self._limit_s(self._now)

    def _limit_s(self, activity: Activity) -> float:
        return self._phase_s if activity.phase is StepPhase.BETWEEN else self._step_s

    def _may_end(self, here: Activity) -> bool:
        """False while a step waits for a process that sends heartbeats between two steps: that has its own limit."""
        last = self._last(here)
        is_awaited = here.phase is not StepPhase.BETWEEN and last.phase is StepPhase.BETWEEN
        return not is_awaited or bool(self._silence(self._step_s / 2))

    def _activity(self) -> Activity:
        """Where the watched thread is; its stack tells whether it waits in a collective that Python called."""
        now = replace(self._now, collectives=_collectives_entered())
        is_waiting = now.phase is not StepPhase.BETWEEN and self._is_in_collective()
        return replace(now, phase=StepPhase.WAITING) if is_waiting else now

    def _is_in_collective(self) -> bool:
        frame = sys._current_frames().get(self._thread_id)
        return frame is not None and frame.f_code.co_filename in _COLLECTIVE_FILES

    def _end(self, message: str, *, shows_stacks: bool) -> NoReturn:
        """Print the message and stacks, and exit at once: a wait in a collective cannot be interrupted."""
        if is_first_report(message):
            sys.stderr.write(f"error: {message}\n")
        sys.stderr.flush()
        if shows_stacks:
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
        self._monitor.stop(message, _READ_TIMEOUT_S)
        os._exit(MachineError.exit_code)

    def diagnosis(self, here: Activity) -> str:
        """Name the silent processes, or else those that are behind all others."""
        silence = self._silence(self._step_s / 2)
        if silence:
            return f"{silence}; {_GO_ON} (train.step_minutes)"
        last, activities = self._last(here), self._activities(here)
        behind = [rank for rank, activity in sorted(activities.items()) if activity.progress == last.progress]
        hangs = f"{self._named(behind)}: {last.words()} for more than {self._limit_s(last):g} s"
        waiting = "waiting" if here.phase is StepPhase.BETWEEN else f"waiting in {here.where}"
        is_ahead = here.collectives > last.collectives
        waits = "" if self._rank in behind else f"; process {self._rank} is {waiting if is_ahead else here.words()}"
        setting = "train.phase_hours" if last.phase is StepPhase.BETWEEN else "train.step_minutes"
        return f"{last.where}: {hangs}{waits}; {_GO_ON} ({setting})"

    def _activities(self, here: Activity) -> dict[int, Activity]:
        """Where all processes are that have not ended, by rank."""
        running = {rank: other.activity for rank, other in self._monitor.others.items() if other.end_reason is None}
        return {self._rank: here, **{rank: activity for rank, activity in running.items() if activity is not None}}

    def _last(self, here: Activity) -> Activity:
        return min(self._activities(here).values(), key=lambda activity: activity.progress)

    def _ended_before(self, here: Activity) -> str:
        """Which process ended by an error before the collective in which this one waits for it; empty if none."""
        ended = [
            self._end_of(rank, other)
            for rank, other in sorted(self._monitor.others.items())
            if other.end_reason and other.activity is not None
            if here.collectives > other.activity.collectives or self._is_in_collective()
        ]
        return f"{here.where}: {'; '.join(ended)}; {_GO_ON}" if ended else ""

    def _silence(self, limit_s: float) -> str:
        """Which processes have been silent for longer than the limit; empty if none."""
        where = self._now.where
        unreached_s = self._monitor.unreached_s
        if unreached_s > limit_s:
            return (
                f"{where}: process {self._rank} of {self._world} has reached no other for {unreached_s:.0f} s: the "
                "network, or the machine where all of them meet, is gone"
            )
        silent = {rank: other for rank, other in sorted(self._monitor.others.items()) if other.silent_s > limit_s}
        if not silent:
            return ""
        longest = max(silent.values(), key=lambda other: other.silent_s)
        last = "" if longest.activity is None else f", last {longest.activity.words()}"
        which = f"{self._named(list(silent))}{_on_hosts(list(silent.values()))}"
        return (
            f"{where}: {which}: not heard of for {longest.silent_s:.0f} s{last}: the process, its machine or the "
            "network is gone"
        )

    def _lost_connection(self, error: BaseException) -> str | None:
        """What an error of a collective means; None for any other error."""
        words = str(error)
        if not isinstance(error, dist.DistError) and not (isinstance(error, RuntimeError) and "gloo/" in words):
            return None
        self._monitor.refresh(_READ_TIMEOUT_S)
        ended = [self._end_of(rank, other) for rank, other in sorted(self._monitor.others.items()) if other.end_reason]
        other = self._named([1 - self._rank]) if self._world == 2 else "another process"
        cause = words.split("] ", 1)[-1].split(". ", 1)[0].splitlines()[0]  # without the place in gloo, and its advice
        lost = "; ".join(ended) or f"{other} is gone, process {self._rank} lost the connection to it: {cause}"
        return f"{self._now.where}: {lost}; {_GO_ON}"

    def _end_of(self, rank: int, other: Heartbeat) -> str:
        return f"{self._named([rank])}{_on_hosts([other])} ended: {other.end_reason}"

    def _named(self, ranks: Sequence[int]) -> str:
        return f"process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))} of {self._world}"


def _on_hosts(heartbeats: Sequence[Heartbeat]) -> str:
    hosts = sorted({heartbeat.host for heartbeat in heartbeats if heartbeat.host is not None})
    return f" (on {', '.join(hosts)})" if hosts else ""


def _group_store() -> Store | None:
    """The store of the process group, over a connection of its own; None if there is no group."""
    return distributed_c10d._get_default_store().clone() if dist.is_initialized() else None  # no public name


def _collectives_entered() -> int:
    """How many collectives this process has entered in all groups, those of DDP and FSDP2 in autograd included.

    On GPUs a collective counts as entered once it is enqueued. 0 if a backend does not count.
    """
    entered = 0
    for group in list(distributed_c10d._world.pg_map):
        with suppress(RuntimeError):
            entered += group._get_sequence_number_for_group()  # type: ignore[attr-defined]  # it has no public name
    return entered


@contextmanager
def joining(within_s: float = JOIN_S) -> Iterator[None]:
    """Join the other processes in this block: the process ends if that takes too long; LostProcessError if it fails."""
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    who = f"launch: process {rank} of {world} cannot reach the others"
    hint = (
        "they talk over ports of their own besides that of the rendezvous, which a firewall must let pass; where a "
        "machine has several networks, GLOO_SOCKET_IFNAME (CPU) and NCCL_SOCKET_IFNAME (GPU) name the one to use"
    )

    def end() -> None:
        sys.stderr.write(f"error: {who} for {within_s:g} s; {hint}\n")
        sys.stderr.flush()
        os._exit(MachineError.exit_code)

    timer = threading.Timer(within_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except RuntimeError as error:
        if "Unable to find address for" in str(error):  # gloo, of an interface that does not exist
            found = ", ".join(sorted(psutil.net_if_addrs()))
            problem = f"launch: {INTERFACE} is {os.environ.get(INTERFACE)!r}, and no network interface with an address"
            raise MachineError(f"{problem} is called so; this machine has {found}; name one, or unset it") from error
        if not isinstance(error, dist.DistError) and "Gloo" not in str(error):
            raise
        raise LostProcessError(f"{who}: {str(error).splitlines()[0]}; {hint}") from error
    finally:
        timer.cancel()
