"""Run a program of a test as a group of worker processes on this machine, on the CPU.

Workers are forked from a process that has imported torch and pmmrec once, so that they start fast. Like `torchrun`,
this sets their environment, and asks the others to end when one fails.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory

from ports import free_port

ON_CPU = {"ACCELERATE_USE_CPU": "true"}
FSDP2 = {**ON_CPU, "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
IMPORTED = (
    *("accelerate", "pandas", "timm", "torch._dynamo", "torch.distributed.fsdp", "peft"),
    *("transformers.models.bert.modeling_bert", "transformers.models.clip.modeling_clip"),
    *(f"pmmrec.{name}" for name in ("cli", "train.finish", "train.dry_run", "report.publishing", "serving.score")),
    *(f"pmmrec.{name}" for name in ("models.ids", "models.towers", "users.transformer", "fusion.attentive")),
    *(f"pmmrec.objectives.{name}" for name in ("next_item", "catalogue_ce", "alignment", "denoising")),
    *(f"pmmrec.encoders.{name}" for name in ("text", "vision_hf", "vision_timm")),
)

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([*IMPORTED])  # what cannot be imported there is imported where it is used


@dataclass(frozen=True)
class Ended:
    """How several processes ended: the exit code of the first that failed, else 0, and what all of them said."""

    code: int
    said: str

    def well(self) -> str:
        """What they said; AssertionError where one failed."""
        assert self.code == 0, f"exit code {self.code}\n{self.said}"
        return self.said


def run_group(
    processes: int,
    program: str | Path,
    *arguments: object,
    folder: Path | None = None,
    spread: Mapping[str, str] = ON_CPU,
) -> Ended:
    """Run a program as so many processes in `folder`; `spread`: what the environment says of how weights are shared."""
    words = [str(word) for word in (program, *arguments)]
    with TemporaryDirectory() as place:
        common = {**os.environ, **spread, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        started = []
        for rank in range(processes):
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            own = Path(place) / "launch" / str(rank)  # as torchrun makes for each
            own.mkdir(parents=True)
            environment = {**common, **{name: str(value) for name, value in ranks.items()}}
            environment["TORCHELASTIC_ERROR_FILE"] = str(own / "error.json")
            given = (words, environment, folder or Path.cwd(), Path(place) / str(rank))
            started.append(SERVER.Process(target=_run, args=given))
        for process in started:
            process.start()
        try:
            code = _first_failure(started)
        finally:
            _end(started)
        return Ended(code, "".join((Path(place) / str(rank)).read_text() for rank in range(processes)))


def _first_failure(started: Sequence[ForkServerProcess]) -> int:
    left = list(started)
    while left:
        ended = wait([process.sentinel for process in left])
        for process in [process for process in left if process.sentinel in ended]:
            process.join()
            if process.exitcode:
                return process.exitcode
            left.remove(process)
    return 0


def _end(started: Sequence[ForkServerProcess]) -> None:
    """Ask those to end that have not, as `torchrun` does; force them where they do not hear."""
    for process in started:
        process.terminate()
    for process in started:
        process.join(30)
        process.kill()
        process.join()


def _run(words: list[str], environment: dict[str, str], folder: Path, said: Path) -> None:
    """Be `python program arguments` in an environment and a folder of its own, which speaks to a file."""
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).parent))
    runpy.run_path(words[0], run_name="__main__")
