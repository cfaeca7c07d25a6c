"""Time the stages of a step: the innermost stage that is open gets the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

REST, BACKWARD = "rest", "backward"


class StageClock:
    """Divides the time of steps among stages; what lies in none is `rest`.

    On a GPU it records events and reads them at the end, so that it never waits for the device. On one CPU thread it
    takes the CPU time of the process, which other programs do not change, else wall time.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.kind = _kind(device)
        self._open: list[str] = [REST]
        self._is_paused = False
        self._spans: list[tuple[str, Any, Any]] = []
        self._since = self._mark()
        self._wall_s, self._wall_since_s = 0.0, time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The block belongs to this stage, less what belongs to stages opened inside it."""
        self._enter(name)
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time of the block counts nowhere."""
        self._split()
        self._wall_s += time.perf_counter() - self._wall_since_s
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self._since, self._wall_since_s = self._mark(), time.perf_counter()

    def begin(self) -> None:
        """Forget all that was measured so far, and choose the clock by the threads that there are now."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._spans.clear()
        self.kind = _kind(self.device)
        self._since, self._wall_s, self._wall_since_s = self._mark(), 0.0, time.perf_counter()

    def end(self) -> tuple[dict[str, float], float]:
        """Seconds of each stage since `begin`, and wall seconds in all."""
        self._split()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        wall_s = self._wall_s + time.perf_counter() - self._wall_since_s
        seconds: dict[str, float] = {}
        for name, start, stop in self._spans:
            seconds[name] = seconds.get(name, 0.0) + seconds_between(start, stop)
        return seconds, wall_s

    def watch_method(self, owner: Any, method: str, stage: str) -> None:
        """Count the calls of a method of one object to a stage."""
        original: Callable[..., Any] = getattr(owner, method)

        def timed(*arguments: Any, **options: Any) -> Any:
            with self.stage(stage):
                return original(*arguments, **options)

        setattr(owner, method, timed)

    def watch_module(self, module: nn.Module, stage: str) -> None:
        """Count the forward of a module to a stage; what is computed once more on the way back stays `backward`."""
        module.register_forward_pre_hook(lambda *_: self._enter(stage))
        module.register_forward_hook(lambda *_: self._leave(), always_call=True)

    def _enter(self, name: str) -> None:
        self._split()
        self._open.append(BACKWARD if BACKWARD in self._open else name)

    def _leave(self) -> None:
        self._split()
        self._open.pop()

    def _split(self) -> None:
        """End the span of the stage that is open."""
        if self._is_paused:
            return
        now = self._mark()
        self._spans.append((self._open[-1], self._since, now))
        self._since = now

    def _mark(self) -> Any:
        if self.kind != "gpu":
            return time.process_time() if self.kind == "cpu" else time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # untyped in torch
        event.record()
        return event


def _kind(device: torch.device) -> str:
    return "gpu" if device.type == "cuda" else "cpu" if torch.get_num_threads() == 1 else "wall"


def seconds_between(start: Any, stop: Any) -> float:
    """Seconds between two marks, of events that have passed or of a clock."""
    return float(stop - start) if isinstance(start, float) else float(start.elapsed_time(stop)) / 1000
