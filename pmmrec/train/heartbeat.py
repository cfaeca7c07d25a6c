"""Exchange heartbeats between processes: each says where it is and reads where the others are."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

from torch.distributed import Store  # type: ignore[attr-defined]  # it is public; its export is not declared

_STOPPING_INTERVAL_S = 0.05  # for a process that has stopped and waits to read whether others stop


class StepPhase(IntEnum):
    """The phases of a step in their order, and the time between two steps."""

    READING = 0
    COMPUTING = 1
    WAITING = 2  # in a collective; derived by the watchdog, since every exchange of tensors may wait
    BETWEEN = 3  # after this step and before the next: preparing, validating, saving, ranking


@dataclass(frozen=True)
class Activity:
    """How far a process is."""

    step: int
    phase: StepPhase
    collectives: int = 0  # entered since the process group was made; all processes enter the same ones in order

    @property
    def progress(self) -> tuple[int, int, int]:
        """A sort key, smallest for the process that is furthest behind: it has entered the fewest collectives."""
        return (self.collectives, self.step, self.phase)

    @property
    def where(self) -> str:
        if self.phase is not StepPhase.BETWEEN:
            return f"step {self.step}"
        return f"after step {self.step}" if self.step else "preparation"

    def words(self) -> str:
        if self.phase is not StepPhase.BETWEEN:
            return f"{self.phase.name.lower()} in step {self.step}"
        return f"busy after step {self.step}" if self.step else "preparing"


@dataclass(frozen=True)
class Heartbeat:
    """The last heartbeat of another process."""

    activity: Activity | None = None  # None: none has been read yet
    host: str | None = None  # None: none has been read yet
    end_reason: str | None = None  # why it was the last one; empty if the process ended normally
    read_s: float = field(default_factory=time.monotonic)  # in the clock of this process
    message: bytes = b""

    @property
    def silent_s(self) -> float:
        """Seconds since it was read; 0 if it announced the end of the process."""
        return 0.0 if self.end_reason is not None else time.monotonic() - self.read_s

    @classmethod
    def parse(cls, message: bytes) -> Heartbeat:
        _, host, (step, phase, collectives), end_reason = json.loads(message)
        return cls(Activity(step, StepPhase(phase), collectives), host, end_reason, message=message)


class HeartbeatMonitor:
    """A thread that writes the heartbeats of this process into the store of the process group and reads the others'.

    If the store cannot be reached, only this thread hangs, and `unreached_s` grows.
    """

    def __init__(self, store: Store | None, rank: int, world: int, interval_s: float, activity: Callable[[], Activity]):
        """`store`: used by this thread only; None: no heartbeats. `activity`: where this process is now."""
        self._store, self._rank, self._interval_s, self._activity = store, rank, interval_s, activity
        self._host = socket.gethostname()
        self.others = {other: Heartbeat() for other in range(world if store is not None else 0) if other != rank}
        self._reached_s = time.monotonic()
        self._number = 0  # makes every message differ from the one before
        self._start = 0  # how many monitors this rank has started, counted in the store; 0: not asked yet
        self._end_reason: str | None = ""  # None while it runs
        self._reads_until_s = 0.0  # after it has been stopped
        self._wake, self._refreshed = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def unreached_s(self) -> float:
        """Seconds since this process last reached the store."""
        return time.monotonic() - self._reached_s if self._end_reason is None else 0.0

    def start(self) -> None:
        """Start the thread; heartbeats from before an earlier `stop` are ignored."""
        self._start = 0
        self._reached_s = time.monotonic()
        self.others = {other: Heartbeat() for other in self.others}
        if self.others:
            self._end_reason = None
            self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
            self._thread.start()

    def set_interval(self, interval_s: float) -> None:
        """Change the seconds between heartbeats."""
        self._interval_s = interval_s
        self._wake.set()

    def refresh(self, timeout_s: float) -> None:
        """Read the heartbeats of all others now, waiting at most `timeout_s`."""
        self._refreshed.clear()
        self._wake.set()
        if self._thread is not None and self._thread.is_alive():
            self._refreshed.wait(timeout_s)

    def stop(self, reason: str, timeout_s: float, reads_s: float = 0.0) -> None:
        """Write a last heartbeat with the reason (empty: a normal end), waiting at most `timeout_s`.

        Then read for up to `reads_s` whether the others stop as well.
        """
        self._reads_until_s = time.monotonic() + reads_s
        self._end_reason = reason
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s + reads_s)

    def _run(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._end_reason is not None and self._has_read_all()
            with contextlib.suppress(RuntimeError):  # the store is gone: others will say why, or `unreached_s`
                self._exchange()
                self._refreshed.set()
            if not is_last:
                self._wake.wait(self._interval_s if self._end_reason is None else _STOPPING_INTERVAL_S)
                self._wake.clear()

    def _has_read_all(self) -> bool:
        is_over = time.monotonic() >= self._reads_until_s
        return is_over or all(heartbeat.end_reason is not None for heartbeat in self.others.values())

    def _exchange(self) -> None:
        if self._store is None:
            return
        if not self._start:
            self._start = self._store.add(f"pmmrec/heartbeat/starts/{self._rank}", 1)
        self._number += 1
        now = self._activity()
        message = [self._number, self._host, [now.step, int(now.phase), now.collectives], self._end_reason]
        self._store.set(self._key(self._rank), json.dumps(message))
        for other, heartbeat in list(self.others.items()):
            if heartbeat.host is not None or self._store.check([self._key(other)]):
                written = self._store.get(self._key(other))
                if written != heartbeat.message:
                    self.others[other] = Heartbeat.parse(written)
        self._reached_s = time.monotonic()

    def _key(self, rank: int) -> str:
        return f"pmmrec/heartbeat/{self._start}/{rank}"
