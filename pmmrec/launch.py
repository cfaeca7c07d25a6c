"""Launch files: how many processes a run has, how they are spread, and the command that starts them."""

from __future__ import annotations

import contextlib
import difflib
import ipaddress
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Literal

import psutil
from pydantic import ConfigDict, Field, model_validator
from typing_extensions import Self

from pmmrec.errors import RecipeError, StoppedError
from pmmrec.homes import expanded
from pmmrec.settings import Config, read_yaml, validate
from pmmrec.shipped import shipped_launch_files

PROCESSES = "PMMREC_PROCESSES"  # tells the program how many were asked for, since accelerate may start fewer
INTERFACE = "GLOO_SOCKET_IFNAME"  # by itself, gloo takes the address of the machine's name: on Debian that is 127.0.1.1
LAUNCHER = "accelerate.commands.launch"
PROGRAM_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # the program's to answer: it keeps its state and ends
AGENT_SIGNALS = {"PET_SIGNALS_TO_HANDLE": "SIGINT,SIGHUP,SIGQUIT"}  # what torch's launcher answers; the rest is ours
LAUNCHER_SIGNALS = (signal.SIGINT, signal.SIGHUP)  # the launcher's: it ends the program


class Spread(str, Enum):
    """What the processes of a run share out, besides the users of a step."""

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
    """Of keys that accelerate reads as well, those that we must know; it checks the others."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class _DeepspeedKeys(_Keys):
    zero_stage: Literal[1, 2, 3]
    zero3_init_flag: Literal[False] = Field(description="The model is built whole, then shared out.")
    zero3_save_16bit_model: bool = Field(True, description="ZeRO-3 gathers whole parts for a checkpoint.")
    deepspeed_multinode_launcher: Literal["standard"] = Field(description="Each machine starts its own processes.")
    gradient_accumulation_steps: Literal[1] = 1
    gradient_clipping: None = Field(None, description="The recipe says it: train.clip_norm.")
    deepspeed_config_file: None = Field(None, description="A second file; its keys may stand here.")

    @model_validator(mode="after")
    def _saves_whole_parts(self) -> Self:
        if self.zero_stage == 3 and not self.zero3_save_16bit_model:
            raise ValueError("zero3_save_16bit_model: true, or no process has the whole parts that are saved")
        return self


class _FsdpKeys(_Keys):
    fsdp_version: Literal[2]
    fsdp_cpu_ram_efficient_loading: Literal[False] = Field(description="The model is built whole, then shared out.")
    fsdp_offload_params: Literal[False] = Field(False, description="Shares stay on their device.")
    fsdp_activation_checkpointing: Literal[False] = Field(
        False, description="The recipe says it: train.checkpoint_activations."
    )
    fsdp_auto_wrap_policy: None = Field(None, description="The model says what its blocks are.")
    fsdp_transformer_layer_cls_to_wrap: None = Field(None, description="The model says what its blocks are.")


class _LaunchKeys(_Keys):
    distributed_type: Literal["NO", "MULTI_GPU", "DEEPSPEED", "FSDP"]
    num_processes: int = Field(ge=1)
    num_machines: int = Field(1, ge=1)
    use_cpu: bool = False
    mixed_precision: Literal["no"] | None = Field(None, description="The recipe says it: machine.precision.")
    deepspeed_config: _DeepspeedKeys | None = None
    fsdp_config: _FsdpKeys | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.distributed_type == "DEEPSPEED" and self.deepspeed_config is None:
            raise ValueError("deepspeed_config: missing, and it says which stage")
        if self.distributed_type == "FSDP" and self.fsdp_config is None:
            raise ValueError("fsdp_config: missing, and it says which version")
        if self.num_processes % self.num_machines:
            raise ValueError(f"num_processes: {self.num_processes} do not share out over {self.num_machines} machines")
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
    """A configuration file of accelerate, as far as a run must know it."""

    path: Path
    spread: Spread
    per_node: int  # processes on each machine
    num_nodes: int
    on_cpu: bool

    @classmethod
    def read(cls, name: str) -> Self:
        """A path, or the name of a shipped file such as `zero2`. RecipeError where a run could not start from it."""
        path = find_launch_file(name)
        keys = validate(_LaunchKeys, read_yaml(path), str(path))
        return cls(path, keys.spread, keys.num_processes // keys.num_machines, keys.num_machines, keys.use_cpu)


@dataclass(frozen=True)
class Node:
    """One machine of several, and where they meet."""

    rank: int
    host: str
    port: int

    @classmethod
    def of(cls, num_nodes: int, rank: int | None, rendezvous: str | None) -> Self | None:
        """None for a machine that meets no other. RecipeError where something is missing or out of place."""
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
        """The network interface of this machine that leads to machine 0; None where that cannot be told."""
        with contextlib.suppress(OSError):
            family, _, _, _, address = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, socket.SOCK_DGRAM) as unsent:
                unsent.connect(address)  # finds the way and sends nothing
                own = unsent.getsockname()[0]
            if not ipaddress.ip_address(own).is_loopback:  # its own name may lead machine 0 there, and no other
                addresses = psutil.net_if_addrs().items()
                return next((name for name, found in addresses if own in (entry.address for entry in found)), None)
        return None


@dataclass(frozen=True)
class LaunchCommand:
    """What starts the processes of one machine."""

    words: tuple[str, ...]  # arguments of `accelerate launch`
    environment: dict[str, str]  # what is set beside the environment that is there
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
        """The command that starts `program` with `arguments`; what is None is as the file says.

        Raises RecipeError where the machines are not told apart, or one process is asked to be several.
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
        words += ["--main_process_port", str(node.port if node else 0)]  # 0: any that is free
        environment = {PROCESSES: str(num_processes), **(_cpu_environment(file.spread) if file.on_cpu else {})}
        return cls((*words, str(program), *arguments), environment, node)

    def to_shell(self, environment: Mapping[str, str]) -> str:
        """The command line, to be copied into a shell of this machine whose environment is the one given."""
        own = {**self._interface(environment), **self.environment}
        assigned = [f"{name}={shlex.quote(value)}" for name, value in own.items()]
        return " ".join([*assigned, shlex.join([sys.executable, "-m", LAUNCHER, *self.words])])

    def run(self, starter: str, environment: Mapping[str, str]) -> int:
        """Start it, pass signals on, wait; the exit code of the program that failed first, else 0.

        `starter`: a module that does what `accelerate launch` does. `environment`: the one that is there.
        """
        words = [sys.executable, "-m", starter, *self.words]
        environment = {**environment, **self._interface(environment), **self.environment, **AGENT_SIGNALS}
        # In a session of its own, so that a signal to our whole group is passed on once, and to the program alone.
        launcher = subprocess.Popen(words, env=environment, start_new_session=True)  # noqa: S603 - our own words
        with _signals_passed_on(launcher.pid) as were_asked:
            code = launcher.wait()
        return as_stopped(code if code >= 0 else 128 - code, is_asked=bool(were_asked))

    def _interface(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Where processes on the CPU meet those of other machines, unless the user has said it."""
        name = None if self.node is None or environment.get(INTERFACE) else self.node.interface
        return {} if name is None else {INTERFACE: name}


def find_launch_file(name: str) -> Path:
    """A launch file: a path of the user's, or the name of a shipped one, with or without `launch/` and `.yaml`.

    RecipeError with the nearest shipped name when there is neither.
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
    """What `--launch` means, for the help of a program."""
    return (
        f"Let pmmrec start several processes, by a file or by name: {', '.join(shipped_launch_files())}. Beside it: "
        "--processes-per-node N; --nodes N --node-rank R --rendezvous HOST:PORT; --print-command. With --dry-run: what "
        "memory they need."
    )


def _cpu_environment(spread: Spread) -> dict[str, str]:
    """Keeps processes off the GPUs of their machine: accelerate alone would not."""
    if spread.is_deepspeed:  # accelerate leaves DeepSpeed out, without a word, where it is told to use the CPU
        return {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    return {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}


@contextmanager
def _signals_passed_on(launcher: int) -> Iterator[list[int]]:
    """Pass being asked to end to the program, which keeps its state first, and Ctrl-C to the launcher."""
    were_asked: list[int] = []  # asked once more after it has ended, the launcher would tell of that and not of its end

    def to_program(number: int, _frame: FrameType | None) -> None:
        program = _children(launcher)
        were_asked.extend(program)
        for process in program or ([] if were_asked else [launcher]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def to_launcher(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(launcher, number)

    before = {sign: signal.signal(sign, to_program) for sign in PROGRAM_SIGNALS}
    before |= {sign: signal.signal(sign, to_launcher) for sign in LAUNCHER_SIGNALS}
    try:
        yield were_asked
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)


def as_stopped(code: int, *, is_asked: bool) -> int:
    """The exit code of a program; 75 where the signal that was passed on ended it before it could answer.

    That is while it is being imported. It has begun nothing, and the same command with --resume begins it.
    """
    ended_by_it = code in [128 + sign for sign in PROGRAM_SIGNALS]
    return StoppedError.exit_code if is_asked and ended_by_it else code


@contextmanager
def asked_before_it_begins() -> Iterator[None]:
    """In the block, until a run answers signals itself, being asked to end ends this process with 75 at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {sign: signal.signal(sign, lambda *_: os._exit(StoppedError.exit_code)) for sign in PROGRAM_SIGNALS}
    try:
        yield
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)


def leave_signals_to_the_program() -> list[int]:
    """For the launcher itself: who asks it to end asks the program that it started; before there is one, it ends.

    Returns a list that grows by the processes that were asked.
    """
    were_asked: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        program = _children(os.getpid())
        were_asked.extend(program)
        if not were_asked:
            os._exit(StoppedError.exit_code)
        for process in program:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    for sign in PROGRAM_SIGNALS:
        signal.signal(sign, pass_on)
    return were_asked


def ignore_when_stopped(code: int) -> None:
    """A program that was asked to end has: no signal that comes late may take the exit code that says so."""
    if code == StoppedError.exit_code:
        for sign in PROGRAM_SIGNALS:
            signal.signal(sign, signal.SIG_IGN)


def _children(process: int) -> list[int]:
    """What a process has started and not lost; empty where the system does not say."""
    children: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{process}/task").iterdir():
            children += [int(word) for word in (thread / "children").read_text(encoding="ascii").split()]
    return children
