"""How a command talks to people: tables, errors with the exit code that belongs to them, programs that are commands."""

from __future__ import annotations

import faulthandler
import functools
import io
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from pmmrec.errors import DataError, LostProcessError, MachineError, PMMRecError, RecipeError
from pmmrec.homes import expanded
from pmmrec.renamed import RenamedSettingWarning
from pmmrec.train.reported import is_first_report, was_any_reported

HANGING = ("heartbeat",)  # threads of our own that ask over the network, and may be left without an answer


@contextmanager
def errors_for_people() -> Iterator[None]:
    """Turn errors into one message on stderr and the exit code that belongs to them."""
    try:
        yield
    except PMMRecError as error:
        if not (isinstance(error, LostProcessError) and was_any_reported()):
            _say(f"{error.met_by}: {error}" if error.met_by else str(error))
        raise typer.Exit(error.exit_code) from error
    except (MemoryError, RuntimeError) as error:
        if _is_out_of_memory(error):
            told = "not enough memory; lower train.batch_users or the model's width"
        elif _is_of_another_process(error):
            told = f"another process of this run has ended, or its machine is gone: {error}"
        else:
            raise
        if not (_is_of_another_process(error) and was_any_reported()):
            _say(told)
        raise typer.Exit(MachineError.exit_code) from error
    except BrokenPipeError:
        raise  # who read our output has gone; typer knows what to do
    except OSError as error:
        _say(f"{error.filename or 'system'}: {error.strerror or error}")
        raise typer.Exit(MachineError.exit_code) from error
    except KeyboardInterrupt as error:
        if is_first_report("stopped"):
            typer.echo("stopped", err=True)
        raise typer.Exit(130) from error


def _say(told: str) -> None:
    """Say an error on stderr, unless another process of the same launch has."""
    if is_first_report(told):
        typer.echo(f"error: {told}", err=True)


def _is_out_of_memory(error: BaseException) -> bool:
    """Torch says it in its own way: of a GPU by a class of its own, of the machine in words alone."""
    is_of_torch = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or is_of_torch


def _is_of_another_process(error: BaseException) -> bool:
    """Torch tells of a lost connection by a class of its own on GPUs, in words alone on the CPU."""
    return type(error).__name__ in ("DistBackendError", "DistNetworkError") or "gloo/transport/" in str(error)


def show_any_letter() -> None:
    """Where the encoding of the output lacks a letter, a `?` stands for it; it is no reason to end a run."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def show_renamed_settings() -> None:
    """Print warnings of renamed settings as the other warnings are printed."""
    before = warnings.showwarning

    def show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, RenamedSettingWarning):
            warn(str(message))
        else:
            before(message, category, *place, **more)

    warnings.showwarning = show_warning


def run_program(main: Callable[..., None]) -> None:
    """Run a program such as `pretrain/run.py`: its arguments, its help, errors for people."""

    @functools.wraps(main)
    def guarded(*arguments: Any, **options: Any) -> None:
        with errors_for_people():
            main(*arguments, **options)

    show_any_letter()
    show_renamed_settings()
    if sys.__stderr__ is not None and not faulthandler.is_enabled():
        faulthandler.enable(sys.__stderr__)  # a crash in native code tells where Python was
    program = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    program.command(context_settings={"help_option_names": ["--help", "-h"]})(guarded)
    try:
        program(prog_name=sys.argv[0])
    except SystemExit as ended:
        _end_before_threads(ended.code)
        raise


def _end_before_threads(code: str | int | None) -> None:
    """End at once if a thread still waits for a machine that is gone: inside torch it would abort the interpreter."""
    if any(thread.name in HANGING for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def named_folders(pairs: Iterable[str]) -> dict[str, Path]:
    """`["NAME=FOLDER", ...]` as a mapping. RecipeError when a folder is not there."""
    folders: dict[str, Path] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        folder = expanded(Path(text))
        if not equals or not name or not folder.is_dir():
            raise RecipeError(f"--weights {pair}: must be NAME=FOLDER with a folder that exists")
        folders[name] = folder
    return folders


def show(*renderables: Any) -> None:
    """Print lines and tables, which fit the terminal."""
    from pmmrec.tables import console_for

    console = console_for(os.environ)
    for renderable in renderables:
        console.print(renderable)


def say_problems(found: Mapping[Path, list[str]]) -> None:
    """Print the problems of each folder, or that it has none; leave with exit code 3 if any has one."""
    for folder, problems in found.items():
        for problem in problems:
            typer.echo(f"error: {problem}", err=True)
        if not problems:
            typer.echo(f"{folder}: whole")
    if any(found.values()):
        raise typer.Exit(DataError.exit_code)


def tell(line: str) -> None:
    """Say on stderr what is being done; stdout is for results."""
    typer.echo(line, err=True)


def warn(text: str) -> None:
    """Say on stderr what a user should know though nothing fails."""
    typer.echo(f"warning: {text}", err=True)
