"""Do what `accelerate launch` does, and end with the exit code of the program: `python -m pmmrec.train.start ...`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from pmmrec.errors import MachineError, PMMRecError, RecipeError
from pmmrec.launch import as_stopped, ignore_when_stopped, leave_signals_to_the_program


def start(words: Sequence[str]) -> int:
    """Start the processes of this machine and wait for them; the exit code of the one that failed, else 0.

    Where several failed within a tenth of a second, that of one which did not merely lose the others.

    Raises RecipeError where accelerate refuses the file, MachineError where the machine has too few GPUs, the port is
    taken or DeepSpeed is missing.
    """
    asked = launch_command_parser().parse_args(list(words))
    try:
        config = load_config_from_file(asked.config_file)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{asked.config_file}: accelerate refuses it: {error}") from error
    if not config.use_cpu:
        _refuse_few_gpus(asked.config_file, asked.num_processes // asked.num_machines)
    try:
        launch_command(asked)
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        return _as_shell(min(codes, key=_is_consequence))
    except subprocess.CalledProcessError as error:
        return _as_shell(error.returncode)
    except SignalException as error:
        return 128 + int(error.sigval)
    except (ConnectionError, ImportError) as error:
        raise MachineError(f"launch: {error}") from error
    return 0


def _refuse_few_gpus(file: str, wanted: int) -> None:
    found = torch.cuda.device_count()
    if found < wanted:
        raise MachineError(
            f"{file}: wants {wanted} GPU(s) on this machine, which has {found}; start fewer with --processes-per-node, "
            "or choose another file (two_cpu needs none)"
        )


def _is_consequence(code: int) -> int:
    """How likely a process ended because another did: 4 is also said of a lost connection, signals come from here."""
    return (code == MachineError.exit_code) + 2 * (code < 0)


def _as_shell(code: int) -> int:
    """A process that a signal ended, as shells tell it."""
    return code if code >= 0 else 128 - code


def main() -> None:
    """As a program: one line for an error of ours, and its exit code."""
    were_asked = leave_signals_to_the_program()
    try:
        code = start(sys.argv[1:])
    except PMMRecError as error:
        sys.stderr.write(f"error: {error}\n")
        code = error.exit_code
    code = as_stopped(code, is_asked=bool(were_asked))
    ignore_when_stopped(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
