"""Choose the number of compute threads of a process: by a setting, by a measurement, or by the size of the model."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
import torch
from pydantic import Field

from pmmrec.encoders.backbone import BackboneConfig
from pmmrec.models.build import ModelConfig

Threads = Annotated[int, Field(ge=1)] | Literal["auto"]
VARIABLE = "OMP_NUM_THREADS"
# Measured on two cores, CPU time of a training step with two threads over that with one: 1.24 at width 64, 1.05 at 128.
SMALL_WIDTH = 128
LISTEN_S = 0.1  # how long other programs are watched
WORTH = 0.95  # more threads are taken if a step then takes at most this share of its time
ROUNDS, LONG_STEP_S = 3, 2.0  # how often each number is timed; once if a step takes longer
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container, in microseconds: "200000 100000" are two cores


@dataclass(frozen=True)
class ThreadChoice:
    """A number of threads, and why it was chosen."""

    number: int
    why: str
    most: int | None = None  # a measurement may choose up to so many; None: the number is settled

    @property
    def record(self) -> dict[str, Any]:
        """For `environment.json`."""
        return {"threads": self.number, "threads_why": self.why}

    def kept(self, record: Mapping[str, Any]) -> ThreadChoice:
        """The number that a run began with, by its record, unless one was set since or the cores have become fewer."""
        number = record.get("threads")
        if self.most is None or not isinstance(number, int) or not 1 <= number <= usable_cores():
            return self
        return ThreadChoice(number, "as when this run began")


def choose_threads(
    asked: int | Literal["auto"], model: ModelConfig | None, environment: Mapping[str, str]
) -> ThreadChoice:
    """The number of threads that this process computes with, before anything is measured.

    Args:
        asked: The setting `machine.threads`; "auto" decides by the other arguments.
        model: The model that is computed; a small one (`is_small`) gets one thread.
        environment: OMP_NUM_THREADS is followed if set; LOCAL_WORLD_SIZE processes share the free cores.
    """
    if asked != "auto":
        return ThreadChoice(asked, "set by machine.threads")
    if VARIABLE in environment:
        return ThreadChoice(torch.get_num_threads(), f"set by {VARIABLE}")  # torch has read it
    usable = usable_cores()
    free = usable if usable == 1 else max(1, min(usable, round(usable - cores_of_others())))
    processes = environment.get("LOCAL_WORLD_SIZE", "1")
    most = max(1, free // max(1, int(processes) if processes.isdecimal() else 1))
    why = f"{free} of {usable} cores {'is' if free == 1 else 'are'} free"
    if most > 1 and model is not None and is_small(model):
        return ThreadChoice(1, f"no layer of the model is wider than {SMALL_WIDTH}", most)
    return ThreadChoice(most, why if most == free else f"{why}, shared by {processes} processes", most)


def measured(most: int, step: Callable[[], None], *, is_alone: bool = True) -> ThreadChoice:
    """The number of 1, 2 and `most` with which `step` takes the least time; more threads must be a twentieth faster.

    The best of several times counts, so that a short interruption does not decide. `is_alone`: no other process steps
    along, so that a long step may be timed less often.
    """
    numbers = sorted({1, min(2, most), most})
    with using_threads(1):
        first_s = _seconds(step)  # a first step is not typical
    best_s = dict.fromkeys(numbers, float("inf"))
    for _ in range(1 if is_alone and first_s > LONG_STEP_S else ROUNDS):
        for number in numbers:
            with using_threads(number):
                best_s[number] = min(best_s[number], _seconds(step))
    number = fastest(best_s)
    shown = ", ".join(f"{seconds:.3f} s with {tried}" for tried, seconds in best_s.items())
    return ThreadChoice(number, f"a step takes {shown}")


def fastest(best_s: Mapping[int, float]) -> int:
    """The smallest number of threads whose step is within 5 % of the fastest, from seconds by number."""
    least_s = min(best_s.values())
    return min(number for number, seconds in best_s.items() if WORTH * seconds < least_s)


def cores_of_others(listen_s: float = LISTEN_S) -> float:
    """How many of the usable cores other programs keep busy, watched for a moment in which this process sleeps."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    before = psutil.cpu_times(percpu=True)
    time.sleep(listen_s)
    after = psutil.cpu_times(percpu=True)
    watched: Sequence[int] = cores if cores and cores[-1] < len(after) else range(len(after))
    return sum(_busy_share(before[core], after[core]) for core in watched)


def _busy_share(before: Any, after: Any) -> float:
    """The share of the time between two readings of a core's clocks in which it was not idle."""
    total = sum(after) - sum(before)
    idle = after.idle - before.idle + getattr(after, "iowait", 0.0) - getattr(before, "iowait", 0.0)
    return min(1.0, max(0.0, 1 - idle / total)) if total > 0 else 0.0


def _seconds(step: Callable[[], None]) -> float:
    started_s = time.perf_counter()
    step()
    return time.perf_counter() - started_s


def is_small(model: ModelConfig) -> bool:
    """Whether no layer is wider than `SMALL_WIDTH` by its settings, so that a second thread costs more than it saves.

    Pretrained encoders, and those whose `architecture` gives no `hidden_size`, count as large.
    """
    encoders = model.item_encoder.encoders.values()
    started = [(one.architecture if isinstance(one, BackboneConfig) else None) or {} for one in encoders]
    widths = [architecture.get("hidden_size") for architecture in started]
    return all(isinstance(width, int) and width <= SMALL_WIDTH for width in [model.width, *widths])


def usable_cores() -> int:
    """The cores that this process may use by its affinity and the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _QUOTA.read_text(encoding="ascii").partition(" ") if _QUOTA.is_file() else ("max", "", "")
    return min(cores, max(1, int(quota) // int(period))) if quota.isdecimal() else cores


@contextmanager
def threads_for(model: ModelConfig) -> Iterator[None]:
    """In the block, use the number of threads that suits a model of these settings."""
    with using_threads(choose_threads("auto", model, os.environ).number):
        yield


@contextmanager
def using_threads(num_threads: int) -> Iterator[None]:
    """In the block, use this number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
