"""Spread work over threads and keep the results in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

MAX_THREADS = 64
_In = TypeVar("_In")
_Out = TypeVar("_Out")


def in_order(function: Callable[[_In], _Out], jobs: Iterable[_In], num_threads: int) -> Iterator[_Out]:
    """`map` with threads: results come in the order of `jobs`, which are read only a few ahead."""
    running: deque[Future[_Out]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for job in jobs:
                running.append(pool.submit(function, job))
                if len(running) >= 4 * num_threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


def num_cores() -> int:
    """Cores that this process may use, up to `MAX_THREADS`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_THREADS)
