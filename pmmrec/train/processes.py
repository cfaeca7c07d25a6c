"""Join the processes of a run through Accelerate, and verify that they are those that were asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from pydantic import Field

from pmmrec.errors import MachineError
from pmmrec.launch import PROCESSES, Spread
from pmmrec.settings import Config
from pmmrec.train.threads import Threads
from pmmrec.train.trackers import Tracker
from pmmrec.train.watchdog import Watchdog, joining

Precision = Literal["fp32", "bf16", "fp16"]
FSDP = "ACCELERATE_USE_FSDP"
DEEPSPEED = "DEEPSPEED"  # the distributed type, as accelerate names it
# Settings of accelerate for FSDP that are fixed here: models are built whole, then sharded, and stay on their device.
_FSDP_MUST_BE = (("version", "2"), ("cpu_ram_efficient_loading", "false"), ("offload_params", "false"))
_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
T = TypeVar("T")


class MachineConfig(Config):
    """What a run needs from its machine."""

    device: Literal["auto", "cpu"] = "auto"
    precision: Precision = "fp32"
    threads: Threads = Field(
        "auto",
        description="Compute threads of each process. auto: OMP_NUM_THREADS if set, else the number of free cores, or "
        "fewer, with which the first batch takes the least time; the processes of a machine share its cores.",
    )
    compile: bool = Field(
        False,
        description="Compile the blocks of encoders, fusion and users with torch.compile: slower first steps, faster "
        "later ones. Where it does not work a line says so, and the blocks run as they are.",
    )
    trackers: tuple[Tracker, ...] = ()
    project: str | None = Field(None, description="Of Weights & Biases; null: WANDB_PROJECT, or pmmrec.")


class Processes:
    """All processes of a run, seen from one of them. Wraps Accelerate, so that no other module imports it.

    Accelerate and transformers are imported when they are needed: recipes are read without them.
    """

    def __init__(self, config: MachineConfig) -> None:
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs

        _refuse_odd_environment(os.environ)
        on_cpu = config.device == "cpu" or not torch.cuda.is_available()
        asks_deepspeed = _is_set("ACCELERATE_USE_DEEPSPEED")
        self.machine = config
        self._is_sharded, self.reshards = _is_set(FSDP), os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true") == "true"
        with joining(), _unset(FSDP):  # weights are sharded in `spread`: accelerate does so on GPUs only
            self.accelerator = Accelerator(
                # Told to use the CPU, accelerate silently leaves DeepSpeed out; so only the backend is set.
                cpu=on_cpu and not asks_deepspeed,
                # With a precision set, DeepSpeed would convert weights and inputs to it.
                mixed_precision="no" if config.precision == "fp32" or asks_deepspeed else config.precision,
                kwargs_handlers=[
                    InitProcessGroupKwargs(
                        backend="gloo" if on_cpu and asks_deepspeed else None,
                        # The others wait while the main process prepares data for hours; the watchdog ends what hangs.
                        timeout=timedelta(days=30),
                    )
                ],
            )
        if asks_deepspeed:
            from transformers.integrations.deepspeed import unset_hf_deepspeed_config

            unset_hf_deepspeed_config()  # or transformers would draw other weights under ZeRO-3, in shards
        self._refuse_other_processes()
        self._refuse_other_spread()
        self.watchdog = Watchdog(self.rank, self.world)  # opened by the run

    def _refuse_other_processes(self) -> None:
        """MachineError if fewer processes joined than were started, or fewer were started than asked for."""
        started, joined = int(os.environ.get("WORLD_SIZE", "1")), self.accelerator.num_processes
        if joined != started:
            raise MachineError(
                f"launch: {started} processes were started but Accelerate joined {joined}; "
                "start them with torchrun or accelerate launch, which tell each its RANK and LOCAL_RANK, and make no "
                "Accelerator before this one"
            )
        asked = int(os.environ.get(PROCESSES, joined))
        if joined != asked:
            raise MachineError(
                f"launch: {asked} processes were asked for and {joined} started; accelerate starts one alone where a "
                "file says distributed_type: MULTI_CPU or NO, or the command says --cpu; say MULTI_GPU, also with "
                "use_cpu: true"
            )

    def _refuse_other_spread(self) -> None:
        """MachineError if sharding was asked for and would not happen."""
        kind = self.accelerator.distributed_type
        if _is_set("ACCELERATE_USE_DEEPSPEED") and kind.value != DEEPSPEED:
            raise MachineError(
                f"launch: DEEPSPEED was asked for and Accelerate made {kind.value} of it on {self.device}; choose "
                "another launch file, such as ddp or two_cpu"
            )
        if not self._is_sharded:
            return
        if not dist.is_initialized():
            raise MachineError(
                "launch: FSDP was asked for, and this process was started alone; start it with torchrun or accelerate "
                "launch, or choose another launch file"
            )
        settings = [(name, os.environ.get(f"FSDP_{name.upper()}", wanted), wanted) for name, wanted in _FSDP_MUST_BE]
        for name, value, wanted in settings:
            if value != wanted:
                raise MachineError(f"launch: fsdp_{name} is {value} and must be {wanted}; see launch/fsdp2.yaml")

    @property
    def spread(self) -> Spread:
        """What the processes share out."""
        if self.accelerator.distributed_type.value == DEEPSPEED:
            stage = self.accelerator.state.deepspeed_plugin.zero_stage
            return {1: Spread.ZERO1, 2: Spread.ZERO2, 3: Spread.ZERO3}[stage]
        if self._is_sharded:
            return Spread.FSDP2
        return Spread.DDP if self.world > 1 else Spread.ONE

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
        """Wait until all processes have reached this line."""
        self.accelerator.wait_for_everyone()

    def seed(self, seed: int, *, same: bool) -> None:
        """Seed the global generators (dropout, fresh weights); `same`: with the same seed in every process."""
        from accelerate.utils import set_seed

        set_seed(seed if same else seed + 1_000_003 * self.rank)

    def from_main(self, value: Any) -> Any:
        """Broadcast the value of the main process to all."""
        from accelerate.utils import broadcast_object_list

        box = [value]
        broadcast_object_list(box, from_process=0)
        return box[0]

    def gathered(self, own: list[T]) -> list[T]:
        """The lists of all processes joined, in the order of ranks. All processes must call it."""
        from accelerate.utils import gather_object

        joined_lists: list[T] = gather_object(own)
        return joined_lists

    def summed(self, own: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, on the device of `own`. All processes must call it."""
        total: torch.Tensor = self.accelerator.reduce(own.to(self.device), "sum")
        return total.to(own.device)

    def release_models(self) -> None:
        """Drop the references to prepared models, so that their memory can be freed."""
        self.accelerator.free_memory()

    def end(self) -> None:
        """Close the process group."""
        self.accelerator.end_training()


def _refuse_odd_environment(environment: Mapping[str, str]) -> None:
    """MachineError for variables of a launcher that are malformed or incomplete."""
    names = (*_NUMBERS, "MASTER_ADDR", PROCESSES)
    given = {name: environment[name] for name in names if environment.get(name, "-1") != "-1"}  # some set -1 for none
    for name, value in given.items():
        if name != "MASTER_ADDR" and not value.isdecimal():
            raise MachineError(
                f"launch: {name} is {value!r} and must be a number; launchers set it, unset it otherwise"
            )
    missing = [name for name in (*_NUMBERS, "MASTER_ADDR") if name not in given]
    if "LOCAL_RANK" in given and missing:
        raise MachineError(
            f"launch: LOCAL_RANK is set and {', '.join(missing)} not; start with --launch or torchrun, which set all "
            "of them, or unset LOCAL_RANK for one process"
        )


@contextmanager
def _unset(name: str) -> Iterator[None]:
    """In the block, an environment variable is not set."""
    value = os.environ.pop(name, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[name] = value


def _is_set(name: str) -> bool:
    """Whether `accelerate launch` set this variable to true."""
    return os.environ.get(name, "false").lower() == "true"


def joined(names: Sequence[str]) -> str:
    """Names for a message, at most five of them."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
