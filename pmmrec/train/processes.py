"""Start the processes of a run through Accelerate, and make sure that they are the ones asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed

from pmmrec.errors import MachineError
from pmmrec.settings import Config

Precision = Literal["fp32", "bf16", "fp16"]
Tracker = Literal["wandb", "tensorboard"]

_PACKAGES: dict[str, str] = {"wandb": "wandb", "tensorboard": "tensorboard"}


class MachineConfig(Config):
    """What a run asks of the machine it is started on."""

    device: Literal["auto", "cpu"] = "auto"
    precision: Precision = "fp32"
    trackers: tuple[Tracker, ...] = ()
    project: str = "pmmrec"


class Processes:
    """All processes of a run, seen from one of them. Wraps Accelerate, so that no other room knows it."""

    def __init__(self, config: MachineConfig, folder: Path | None = None) -> None:
        on_cpu = config.device == "cpu" or not torch.cuda.is_available()
        self.accelerator = Accelerator(
            cpu=on_cpu,
            mixed_precision="no" if config.precision == "fp32" else config.precision,
            log_with=[_importable(tracker) for tracker in config.trackers] or None,
            project_dir=str(folder) if folder else None,
        )
        asked = int(os.environ.get("WORLD_SIZE", "1"))
        if self.accelerator.num_processes != asked:
            raise MachineError(
                f"launch: {asked} processes were started but Accelerate joined {self.accelerator.num_processes}; "
                "on a machine without GPU set ACCELERATE_USE_CPU=true before torchrun or accelerate launch"
            )
        self._config = config

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

    def start_trackers(self, name: str, settings: Mapping[str, Any]) -> None:
        """Open the trackers that the recipe asks for."""
        if self._config.trackers:
            wandb = {"wandb": {"name": name}} if "wandb" in self._config.trackers else {}
            self.accelerator.init_trackers(self._config.project, config=dict(settings), init_kwargs=wandb)

    def mirror(self, numbers: dict[str, float], step: int) -> None:
        """Pass numbers on to the trackers."""
        if self._config.trackers:
            self.accelerator.log(numbers, step=step)

    def end(self) -> None:
        """Close trackers and the process group."""
        self.accelerator.end_training()


def _importable(tracker: str) -> str:
    from importlib.util import find_spec

    if find_spec(_PACKAGES[tracker]) is None:
        raise MachineError(f"machine.trackers: {tracker} is not installed; pip install 'pmmrec[{tracker}]'")
    return tracker


def joined(names: Sequence[str]) -> str:
    """Names for a message, at most five."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
