"""Do what `accelerate launch` does, with the exit code of the program: `python -m pmmrec.train.start ...`."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence

import psutil
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from pmmrec.errors import MachineError, PMMRecError, RecipeError
from pmmrec.launch import exit_code_after, forward_stop_signals, ignore_stop_signals_after


def start(words: Sequence[str]) -> int:
    """Start the processes of this machine and wait for them; the exit code of the one that failed, else 0.

    If several failed within a tenth of a second, the code of one that did not merely lose the others.

    Raises RecipeError if accelerate refuses the file, MachineError if the machine has too few GPUs, the port is taken
    or DeepSpeed is missing.
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
    except KeyboardInterrupt:  # Ctrl-C reaches a program of one process as well, and accelerate does not wait for it
        psutil.wait_procs(psutil.Process().children())
        return 128 + signal.SIGINT
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
    """Rank how likely a process ended because another did: 4 may mean a lost connection, a signal came from here."""
    return (code == MachineError.exit_code) + 2 * (code < 0)


def _as_shell(code: int) -> int:
    """An exit code as shells report it: 128 + N for a process that signal N ended."""
    return code if code >= 0 else 128 - code


def main() -> None:
    """Run as a program: a PMMRecError becomes one line and its exit code."""
    signalled = forward_stop_signals()
    try:
        code = start(sys.argv[1:])
    except PMMRecError as error:
        sys.stderr.write(f"error: {error}\n")
        code = error.exit_code
    code = exit_code_after(code, is_signalled=bool(signalled))
    ignore_stop_signals_after(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
