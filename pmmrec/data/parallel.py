"""Spread work over threads and keep the results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

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
