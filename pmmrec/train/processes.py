"""Start the processes of a run through Accelerate, and make sure that they are the ones asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object, set_seed

from pmmrec.errors import MachineError
from pmmrec.settings import Config
from pmmrec.train.trackers import Tracker

Precision = Literal["fp32", "bf16", "fp16"]


class MachineConfig(Config):
    """What a run asks of the machine it is started on."""

    device: Literal["auto", "cpu"] = "auto"
    precision: Precision = "fp32"
    trackers: tuple[Tracker, ...] = ()
    project: str = "pmmrec"


class Processes:
    """All processes of a run, seen from one of them. Wraps Accelerate, so that no other room knows it."""

    def __init__(self, config: MachineConfig) -> None:
        on_cpu = config.device == "cpu" or not torch.cuda.is_available()
        self.accelerator = Accelerator(
            cpu=on_cpu,
            mixed_precision="no" if config.precision == "fp32" else config.precision,
            # The others wait while the main process decodes images or ranks a catalogue, which can take long.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=6))],
        )
        asked = int(os.environ.get("WORLD_SIZE", "1"))
        if self.accelerator.num_processes != asked:
            raise MachineError(
                f"launch: {asked} processes were started but Accelerate joined {self.accelerator.num_processes}; "
                "start them with torchrun or accelerate launch, which tell each its RANK and LOCAL_RANK, and make no "
                "Accelerator before this one"
            )

    @property
    def rank(self) -> int:
        return int(self.accelerator.process_index)

    @property
    def world(self) -> int:
        return int(self.accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    @property
    def device(self) -> torch.device:
        return torch.device(self.accelerator.device)

    def wait(self) -> None:
        """Let all processes come to this line."""
        self.accelerator.wait_for_everyone()

    def seed(self, seed: int, *, same: bool) -> None:
        """Seed the global generators (dropout, fresh weights); `same`: alike in every process."""
        set_seed(seed if same else seed + 1_000_003 * self.rank)

    def from_main(self, value: Any) -> Any:
        """What the main process holds, given to all."""
        box = [value]
        broadcast_object_list(box, from_process=0)
        return box[0]

    def gathered(self, names: list[str]) -> list[str]:
        """The names of every process, in the order of processes. All processes must call it."""
        together: list[str] = gather_object(names)
        return together

    def let_go(self) -> None:
        """Forget the models that were prepared, so that others find their memory free."""
        self.accelerator.free_memory()

    def end(self) -> None:
        """Close the process group."""
        self.accelerator.end_training()


def joined(names: Sequence[str]) -> str:
    """Names for a message, at most five."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
