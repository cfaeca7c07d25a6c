"""Choose the number of compute threads of a process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from pmmrec.encoders.backbone import BackboneConfig
from pmmrec.models.build import ModelConfig

Threads = Annotated[int, Field(ge=1)] | Literal["auto"]
VARIABLE = "OMP_NUM_THREADS"
# Measured on two cores, CPU time of a training step with two threads over that with one: 1.24 at width 64, 1.05 at 128.
SMALL_WIDTH = 128
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container, in microseconds: "200000 100000" are two cores


def choose_threads(asked: int | Literal["auto"], model: ModelConfig | None, environment: Mapping[str, str]) -> int:
    """The number of threads that this process computes with.

    Args:
        asked: The setting `machine.threads`; "auto" decides by the other arguments.
        model: The model that is computed; a small one (`is_small`) gets one thread.
        environment: OMP_NUM_THREADS is followed if set; LOCAL_WORLD_SIZE processes share the cores.
    """
    if asked != "auto":
        return asked
    if VARIABLE in environment:
        return torch.get_num_threads()  # torch has read it
    if model is not None and is_small(model):
        return 1
    processes = environment.get("LOCAL_WORLD_SIZE", "1")
    return max(1, usable_cores() // max(1, int(processes) if processes.isdecimal() else 1))


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
    with using_threads(choose_threads("auto", model, os.environ)):
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
