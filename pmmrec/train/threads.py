"""Choose with how many threads a process computes."""

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
ASKED = "OMP_NUM_THREADS"
# Measured on two cores, CPU time of a training step with two threads over that with one: 1.24 at width 64, 1.05 at 128.
SMALL_WIDTH = 128
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container, in microseconds: "200000 100000" are two cores


def choose_threads(asked: int | Literal["auto"], model: ModelConfig | None, environment: Mapping[str, str]) -> int:
    """How many threads this process computes with.

    Args:
        asked: The setting `machine.threads`; "auto" leaves the choice to the rest.
        model: What is computed. One thread is enough where `is_small` says so.
        environment: OMP_NUM_THREADS of a user or a launcher is followed. LOCAL_WORLD_SIZE processes share the cores.
    """
    if asked != "auto":
        return asked
    if ASKED in environment:
        return torch.get_num_threads()  # torch has read it
    if model is not None and is_small(model):
        return 1
    told = environment.get("LOCAL_WORLD_SIZE", "1")
    return max(1, usable_cores() // max(1, int(told) if told.isdecimal() else 1))


def is_small(model: ModelConfig) -> bool:
    """Whether no layer is wider than `SMALL_WIDTH`, as far as settings tell: sharing it out costs more than it saves.

    Pretrained encoders, and those whose `architecture` gives no `hidden_size`, count as large.
    """
    encoders = model.item_encoder.encoders.values()
    started = [(one.architecture if isinstance(one, BackboneConfig) else None) or {} for one in encoders]
    widths = [architecture.get("hidden_size") for architecture in started]
    return all(isinstance(width, int) and width <= SMALL_WIDTH for width in [model.width, *widths])


def usable_cores() -> int:
    """The cores that this process may use, given its affinity and the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _QUOTA.read_text(encoding="ascii").partition(" ") if _QUOTA.is_file() else ("max", "", "")
    return min(cores, max(1, int(quota) // int(period))) if quota.isdecimal() else cores


@contextmanager
def threads_for(model: ModelConfig) -> Iterator[None]:
    """Compute with as many threads as a model of these settings needs; afterwards with as many as before."""
    with using_threads(choose_threads("auto", model, os.environ)):
        yield


@contextmanager
def using_threads(num_threads: int) -> Iterator[None]:
    """Compute with so many threads; afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
