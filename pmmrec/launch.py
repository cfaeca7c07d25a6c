"""Launch files, and the command that starts the processes of a run."""

from __future__ import annotations

import contextlib
import difflib
import ipaddress
import os
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Literal, NoReturn

import psutil
from pydantic import ConfigDict, Field, model_validator
from typing_extensions import Self

from pmmrec.errors import RecipeError, StoppedError
from pmmrec.homes import expanded
from pmmrec.settings import Config, read_yaml, validate
from pmmrec.shipped import shipped_launch_files

PROCESSES = "PMMREC_PROCESSES"  # tells the program how many were asked for: accelerate may start fewer
INTERFACE = "GLOO_SOCKET_IFNAME"  # by default gloo takes the address of the host name, which on Debian is 127.0.1.1
LAUNCHER = "accelerate.commands.launch"
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # for the program, which saves its state and ends with 75
# torchrun would answer SIGTERM by killing the program after 30 s, and end with 143 whether its state is saved or not.
AGENT_SIGNALS = {"PET_SIGNALS_TO_HANDLE": "SIGINT,SIGHUP,SIGQUIT"}


class Spread(str, Enum):
    """How the processes of a run hold the model: replicated (one process, DDP) or sharded."""

    ONE = "one process"
    DDP = "DDP"
    ZERO1 = "ZeRO-1"
    ZERO2 = "ZeRO-2"
    ZERO3 = "ZeRO-3"
    FSDP2 = "FSDP2"

    @property
    def is_deepspeed(self) -> bool:
        return self in (Spread.ZERO1, Spread.ZERO2, Spread.ZERO3)


class _Keys(Config):
    """The keys of accelerate that matter here; accelerate checks the others."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class _DeepspeedKeys(_Keys):
    zero_stage: Literal[1, 2, 3]
    zero3_init_flag: Literal[False] = Field(description="The model is built whole, then sharded.")
    zero3_save_16bit_model: bool = Field(True, description="ZeRO-3 gathers whole parts for a checkpoint.")
    deepspeed_multinode_launcher: Literal["standard"] = Field(description="Each machine starts its own processes.")
    gradient_accumulation_steps: Literal[1] = 1
    gradient_clipping: None = Field(None, description="Set in the recipe: train.clip_norm.")
    deepspeed_config_file: None = Field(None, description="Its keys may be written here instead.")

    @model_validator(mode="after")
    def _saves_whole_parts(self) -> Self:
        if self.zero_stage == 3 and not self.zero3_save_16bit_model:
            raise ValueError("zero3_save_16bit_model: must be true, or no process has whole parts to save")
        return self


class _FsdpKeys(_Keys):
    fsdp_version: Literal[2]
    fsdp_cpu_ram_efficient_loading: Literal[False] = Field(description="The model is built whole, then sharded.")
    fsdp_offload_params: Literal[False] = Field(False, description="Shards stay on their device.")
    fsdp_activation_checkpointing: Literal[False] = Field(
        False, description="Set in the recipe: train.checkpoint_activations."
    )
    fsdp_auto_wrap_policy: None = Field(None, description="The model knows its blocks.")
    fsdp_transformer_layer_cls_to_wrap: None = Field(None, description="The model knows its blocks.")


class _LaunchKeys(_Keys):
    distributed_type: Literal["NO", "MULTI_GPU", "DEEPSPEED", "FSDP"]
    num_processes: int = Field(ge=1)
    num_machines: int = Field(1, ge=1)
    use_cpu: bool = False
    mixed_precision: Literal["no"] | None = Field(None, description="Set in the recipe: machine.precision.")
    deepspeed_config: _DeepspeedKeys | None = None
    fsdp_config: _FsdpKeys | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.distributed_type == "DEEPSPEED" and self.deepspeed_config is None:
            raise ValueError("deepspeed_config: is missing; it names the ZeRO stage")
        if self.distributed_type == "FSDP" and self.fsdp_config is None:
            raise ValueError("fsdp_config: is missing; it names the version")
        if self.num_processes % self.num_machines:
            raise ValueError(f"num_processes: {self.num_processes} cannot be divided by {self.num_machines} machines")
        if self.distributed_type == "NO" and self.num_processes > 1:
            raise ValueError("distributed_type: NO starts one process; MULTI_GPU starts several, also with use_cpu")
        return self

    @property
    def spread(self) -> Spread:
        if self.distributed_type == "DEEPSPEED" and self.deepspeed_config is not None:
            return {1: Spread.ZERO1, 2: Spread.ZERO2, 3: Spread.ZERO3}[self.deepspeed_config.zero_stage]
        return {"NO": Spread.ONE, "MULTI_GPU": Spread.DDP}.get(self.distributed_type, Spread.FSDP2)


@dataclass(frozen=True)
class LaunchFile:
    """The parts of an accelerate configuration file that a run needs."""

    path: Path
    spread: Spread
    per_node: int  # processes on each machine
    num_nodes: int
    on_cpu: bool

    @classmethod
    def read(cls, name: str) -> Self:
        """Read a path, or a shipped file by name such as `zero2`. RecipeError if no run could start from it."""
        path = find_launch_file(name)
        keys = validate(_LaunchKeys, read_yaml(path), str(path))
        return cls(path, keys.spread, keys.num_processes // keys.num_machines, keys.num_machines, keys.use_cpu)


@dataclass(frozen=True)
class Node:
    """One machine of several, and the address where they meet."""

    rank: int
    host: str
    port: int

    @classmethod
    def of(cls, num_nodes: int, rank: int | None, rendezvous: str | None) -> Self | None:
        """None for a machine on its own. RecipeError for options that are missing or contradict each other."""
        if num_nodes == 1:
            rank = rank or 0
            if rank > 0:
                raise RecipeError(f"--node-rank {rank}: there is one machine, which has rank 0; say --nodes for more")
            if rendezvous is None:
                return None
        if rank is None or rendezvous is None:
            raise RecipeError(
                f"--nodes {num_nodes}: each machine needs --node-rank, from 0 to {num_nodes - 1}, and all of them the "
                "same --rendezvous HOST:PORT, an address of machine 0"
            )
        if not 0 <= rank < num_nodes:
            raise RecipeError(f"--node-rank {rank}: must be from 0 to {num_nodes - 1}, of {num_nodes} machines")
        host, _, port = rendezvous.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise RecipeError(f"--rendezvous {rendezvous}: must be HOST:PORT, an address of machine 0 and a free port")
        return cls(rank, host, int(port))

    @property
    def interface(self) -> str | None:
        """The network interface of this machine that reaches machine 0; None if unknown."""
        with contextlib.suppress(OSError):
            family, _, _, _, address = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, socket.SOCK_DGRAM) as unsent:
                unsent.connect(address)  # looks up the route and sends nothing
                own = unsent.getsockname()[0]
            if not ipaddress.ip_address(own).is_loopback:  # machine 0 may resolve its own name to it
                addresses = psutil.net_if_addrs().items()
                return next((name for name, found in addresses if own in (entry.address for entry in found)), None)
        return None


@dataclass(frozen=True)
class LaunchCommand:
    """The command that starts the processes of one machine."""

    words: tuple[str, ...]  # arguments of `accelerate launch`
    environment: dict[str, str]  # variables to set in addition to the current ones
    node: Node | None = None

    @classmethod
    def of(
        cls,
        file: LaunchFile,
        program: Path,
        arguments: Sequence[str],
        *,
        per_node: int | None = None,
        num_nodes: int | None = None,
        node_rank: int | None = None,
        rendezvous: str | None = None,
    ) -> Self:
        """The command that starts `program` with `arguments`; None takes the value of the file.

        Raises RecipeError for machines without rank or rendezvous, or several processes of a one-process file.
        """
        per_node, num_nodes = per_node or file.per_node, num_nodes or file.num_nodes
        num_processes = per_node * num_nodes
        if file.spread is Spread.ONE and num_processes > 1:
            raise RecipeError(
                f"{file.path}: is for one process, not {num_processes}; choose a file for several, such as ddp"
            )
        node = Node.of(num_nodes, node_rank, rendezvous)
        words = ["--config_file", str(file.path), "--num_processes", str(num_processes)]
        words += ["--num_machines", str(num_nodes)]
        if node is not None:
            words += ["--machine_rank", str(node.rank), "--main_process_ip", node.host]
        words += ["--main_process_port", str(node.port if node else 0)]  # 0: any free port
        environment = {PROCESSES: str(num_processes), **(_cpu_environment(file.spread) if file.on_cpu else {})}
        return cls((*words, str(program), *arguments), environment, node)

    def to_shell(self, environment: Mapping[str, str]) -> str:
        """The command line for a shell of this machine that has the given environment."""
        own = {**self._interface(environment), **self.environment}
        assigned = [f"{name}={shlex.quote(value)}" for name, value in own.items()]
        return " ".join([*assigned, shlex.join([sys.executable, "-m", LAUNCHER, *self.words])])

    def start(self, starter: str, environment: Mapping[str, str]) -> NoReturn:
        """Replace this process by the launcher; it ends with the exit code of the program that failed first, else 0.

        `starter`: a module that does what `accelerate launch` does. `environment`: the current one.
        """
        words = [sys.executable, "-m", starter, *self.words]
        environment = {**environment, **self._interface(environment), **self.environment, **AGENT_SIGNALS}
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # until the launcher is able to answer them
        sys.stdout.flush()
        os.execve(sys.executable, words, environment)  # noqa: S606 - our own words, no shell

    def _interface(self, environment: Mapping[str, str]) -> dict[str, str]:
        """The interface over which CPU processes reach other machines, unless the user has set it."""
        name = None if self.node is None or environment.get(INTERFACE) else self.node.interface
        return {} if name is None else {INTERFACE: name}


def find_launch_file(name: str) -> Path:
    """A launch file: a path, or the name of a shipped file with or without `launch/` and `.yaml`.

    RecipeError with the nearest shipped name if there is neither.
    """
    path = expanded(Path(name))
    if path.is_file():
        return path
    known = shipped_launch_files()
    key = name.removeprefix("launch/").removesuffix(".yaml")
    if key in known:
        return known[key]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"shipped launch files: {', '.join(known)}"
    raise RecipeError(f"--launch {name}: no such file; {hint}")


def launch_help() -> str:
    """The help text of `--launch`."""
    return (
        f"Start several processes, by a file or by name: {', '.join(shipped_launch_files())}. Goes with: "
        "--processes-per-node N; --nodes N --node-rank R --rendezvous HOST:PORT; --print-command. With --dry-run: the "
        "memory that they need."
    )


def _cpu_environment(spread: Spread) -> dict[str, str]:
    """Variables that keep processes off GPUs, which accelerate alone does not."""
    if spread.is_deepspeed:  # told to use the CPU, accelerate silently leaves DeepSpeed out
        return {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    return {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}


@contextmanager
def stopped_before_run() -> Iterator[None]:
    """In the block, a stop signal ends this process at once with 75, until a run handles signals itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {sign: signal.signal(sign, lambda *_: os._exit(StoppedError.exit_code)) for sign in STOP_SIGNALS}
    try:
        yield
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)


def forward_stop_signals() -> list[int]:
    """For the launcher: pass stop signals on to the program; before it is started, end with 75.

    Returns a list to which the ids of the processes that got a signal are added.
    """
    signalled: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        program = psutil.Process().children()
        signalled.extend(process.pid for process in program)
        if not signalled:
            os._exit(StoppedError.exit_code)
        for process in program:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    for sign in STOP_SIGNALS:
        signal.signal(sign, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    return signalled


def exit_code_after(code: int, *, is_signalled: bool) -> int:
    """The exit code of a program; 75 if a forwarded stop signal ended it before it could handle signals.

    It was still being imported and has done nothing, so the same command with --resume starts it.
    """
    was_ended_by_it = code in [128 + sign for sign in STOP_SIGNALS]
    return StoppedError.exit_code if is_signalled and was_ended_by_it else code


def ignore_stop_signals_after(code: int) -> None:
    """After a stop, let no later signal change the exit code that reports it."""
    if code == StoppedError.exit_code:
        for sign in STOP_SIGNALS:
            signal.signal(sign, signal.SIG_IGN)
