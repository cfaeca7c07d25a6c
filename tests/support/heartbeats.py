"""Processes of a training that only send heartbeats."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed import HashStore

from pmmrec.train.heartbeat import Activity, HeartbeatMonitor


@contextmanager
def sending_heartbeats(store: HashStore, activities: dict[int, Activity]) -> Iterator[None]:
    """Send heartbeats of other processes, by rank, of four."""
    others = [HeartbeatMonitor(store, rank, 4, 0.05, lambda now=now: now) for rank, now in activities.items()]
    for other in others:
        other.start()
    yield
    for other in others:
        other.stop("", 10)
