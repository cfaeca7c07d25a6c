"""The command line as a function, and sizes that make a whole run a matter of seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import typer.testing
from typer.testing import CliRunner

# Building the commands out of the app takes 0.1 s, longer than most of them run; they are the same for each call.
typer.testing._get_command = cache(typer.testing._get_command)

# Everything else stays as in pretrain/tiny.yaml.
SMALL = (
    "seed=3",  # with which two epochs of the tiny world are better than none
    "model.width=16",
    "model.user_encoder.dropout=0.1",  # as all but the tiny recipes
    "model.item_encoder.text.architecture.hidden_size=16",
    "model.item_encoder.text.architecture.intermediate_size=32",
    "model.item_encoder.text.vocab_size=400",
    "model.item_encoder.vision.architecture.hidden_size=16",
    "model.item_encoder.vision.architecture.intermediate_size=32",
    "model.item_encoder.vision.architecture.num_hidden_layers=1",
    "train.batch_users=16",
    "train.log_every=2",
)


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    output: str
    stdout: str  # the part of the output that a pipe gets


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Make `folder` the current one for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


Pmmrec = Callable[..., Result]


def run_pmmrec(*arguments: object) -> Result:
    """Run the command line in this process."""
    from pmmrec.cli import app

    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Result(result.exit_code, result.output, result.stdout)


def launch_pmmrec(*arguments: object) -> Result:
    """Run the command line in a process of its own: with `--launch` it becomes the launcher."""
    words = [sys.executable, "-m", "pmmrec", *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=1200, check=False)
    return Result(done.returncode, done.stdout + done.stderr, done.stdout)


def sources(world: Path) -> tuple[str]:
    """The override that names both sources of a world."""
    return (f"data.sources=[{world / 'bazaar'}, {world / 'gallery'}]",)
