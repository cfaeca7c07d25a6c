"""Heartbeats between processes: a thread tells the others where this process is, and hears where they are."""

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

_LEAVING_BEAT_S = 0.05  # of a process that has left and hears whether others do


class StepPhase(IntEnum):
    """The parts of a step, in their order, and what lies between two steps."""

    READING = 0
    COMPUTING = 1
    WAITING = 2  # for the others; found, not told: it happens wherever tensors are exchanged
    BETWEEN = 3  # after this step and before the next: preparing, validating, saving, ranking


@dataclass(frozen=True)
class Activity:
    """How far a process is."""

    step: int
    phase: StepPhase
    collectives: int = 0  # that it has entered since the processes met; all enter the same ones in the same order

    @property
    def progress(self) -> tuple[int, int, int]:
        """Smaller in whoever is behind: the others have entered an exchange that it has not come to."""
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
    """What a process said last."""

    place: Activity | None = None  # None: it has said nothing yet
    host: str | None = None  # None: it has said nothing yet
    end_reason: str | None = None  # why it will say nothing more; empty where it came to its end
    since_s: float = field(default_factory=time.monotonic)  # when it was heard, in the clock of this process
    written: bytes = b""

    @property
    def silent_s(self) -> float:
        """Seconds since it spoke; none for one that said it would be silent."""
        return 0.0 if self.end_reason is not None else time.monotonic() - self.since_s

    @classmethod
    def read(cls, written: bytes) -> Heartbeat:
        _, host, place, end_reason = json.loads(written)
        return cls(Activity(place[0], StepPhase(place[1]), place[2]), host, end_reason, written=written)


class HeartbeatMonitor:
    """Says where this process is, again and again, and hears the others. All meet in the store of the process group.

    Where that cannot be reached the thread hangs, and nobody else: `unreached_s` grows.
    """

    def __init__(self, store: Store | None, rank: int, world: int, beat_s: float, place: Callable[[], Activity]):
        """`store`: used by this thread alone. `place`: where this process is."""
        self._store, self._rank, self.beat_s, self._place = store, rank, beat_s, place
        self._host = socket.gethostname()
        self.others = {other: Heartbeat() for other in range(world if store is not None else 0) if other != rank}
        self._heard_s = time.monotonic()
        self._beat, self._opening = 0, 0  # which opening this is, as all count; 0: not yet asked for
        self._end_reason: str | None = ""  # None while it speaks
        self._hears_until_s = 0.0  # after it has left
        self._wake, self._answered = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def unreached_s(self) -> float:
        """Seconds since this process and the store last spoke."""
        return time.monotonic() - self._heard_s if self._end_reason is None else 0.0

    def open(self) -> None:
        """Start the heartbeat; `leave` ends it. Heartbeats from before are ignored."""
        self._opening = 0
        self._heard_s = time.monotonic()
        self.others = {other: Heartbeat() for other in self.others}
        if self.others:
            self._end_reason = None
            self._thread = threading.Thread(target=self._talk, name="heartbeat", daemon=True)
            self._thread.start()

    def beat(self, beat_s: float) -> None:
        """Change the seconds between heartbeats."""
        self.beat_s = beat_s
        self._wake.set()

    def ask(self, patience_s: float) -> None:
        """Hear all anew, unless that takes longer."""
        self._answered.clear()
        self._wake.set()
        if self._thread is not None and self._thread.is_alive():
            self._answered.wait(patience_s)

    def leave(self, why: str, patience_s: float, hears_s: float = 0.0) -> None:
        """Tell the others that no more will be heard, and why; empty where this process came to its end.

        Then hear for up to `hears_s` whether they leave as well.
        """
        self._hears_until_s = time.monotonic() + hears_s
        self._end_reason = why
        self._wake.set()
        if self._thread is not None:
            self._thread.join(patience_s + hears_s)

    def _talk(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._end_reason is not None and self._has_heard()
            with contextlib.suppress(RuntimeError):  # the store has gone: others will tell why, or `unreached_s`
                self._exchange()
                self._answered.set()
            if not is_last:
                self._wake.wait(self.beat_s if self._end_reason is None else _LEAVING_BEAT_S)
                self._wake.clear()

    def _has_heard(self) -> bool:
        """Whether it has left and nothing more is to be heard."""
        is_over = time.monotonic() >= self._hears_until_s
        return is_over or all(heartbeat.end_reason is not None for heartbeat in self.others.values())

    def _exchange(self) -> None:
        if self._store is None:
            return
        if not self._opening:
            self._opening = self._store.add(f"pmmrec/heartbeat/openings/{self._rank}", 1)
        self._beat += 1
        place = self._place()
        told = [self._beat, self._host, [place.step, int(place.phase), place.collectives], self._end_reason]
        self._store.set(self._key(self._rank), json.dumps(told))
        for other, heartbeat in list(self.others.items()):
            if heartbeat.host is not None or self._store.check([self._key(other)]):
                written = self._store.get(self._key(other))
                if written != heartbeat.written:
                    self.others[other] = Heartbeat.read(written)
        self._heard_s = time.monotonic()

    def _key(self, rank: int) -> str:
        return f"pmmrec/heartbeat/{self._opening}/{rank}"
