"""The folder of a run: its lock, what it holds when a run starts, and the facts written into it."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from enum import Enum
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from pmmrec.atomic import make_folder, whole_file, writing_to
from pmmrec.errors import CheckpointError, MachineError, RecipeError, StoppedError
from pmmrec.processes import folder_lock
from pmmrec.settings import parse_yaml
from pmmrec.train.pace import PACE_FILE
from pmmrec.train.state import StateFolder
from pmmrec.zoo import files
from pmmrec.zoo.folder import METRICS_NAME

CHECKPOINT_FOLDER, STATE_FOLDER, EVENTS_FILE, LOCK_FILE = "checkpoint", "state", "events.jsonl", "lock"
RECIPE_FILE, ENVIRONMENT_FILE, PUT_ASIDE = "recipe.yaml", "environment.json", "before"
# What a run makes before its first state. Nothing else in its folder is ever removed: notes of the user, and the files
# about steps that were not finite, which are of use after the run has ended.
_MADE_FIRST = (
    RECIPE_FILE,
    ENVIRONMENT_FILE,
    EVENTS_FILE,
    CHECKPOINT_FOLDER,
    STATE_FOLDER,
    "backbones",
    PACE_FILE,
    "tensorboard",
    "wandb",
)
FINISHED = "finished"  # the last event of a finished run
# How long a lock may outlive a run: data workers hold it for some seconds, an NFSv4 server for a lease (90 s).
LOCK_TIMEOUT_S = 120.0
# Settings that may change between a stop and a resume, since none changes what is trained.
_FREE = (
    "machine.threads",  # only the order of rounding changes
    "machine.trackers",
    "machine.project",
    "data.workers",
    "runs",
    "cache",
    "hub",
    "prefix_budget_gb",
    "train.state",
    "train.step_minutes",
    "train.phase_hours",
    "train.on_nonfinite",  # such a step never changes a weight
)
_FREE_BEFORE_TEST = ("train.epochs",)  # training may get longer or shorter until test targets are ranked
_FREE_WITH_STATES = ("data.sources", "validation.domain")  # a domain may move: a state knows its fingerprint
_PACKAGES = ("pmmrec", "torch", "transformers", "timm", "accelerate", "peft", "deepspeed", "pyarrow", "duckdb", "numpy")


def refuse_taken(folder: Path) -> None:
    """RecipeError if a run of this name exists."""
    if folder.exists():
        raise RecipeError(
            f"{folder}: this run exists; choose another name=..., go on with it (--resume) or remove the folder"
        )


def make_run_folder(folder: Path) -> Path:
    """Make a new folder. RecipeError if it exists, MachineError if it cannot be made."""
    refuse_taken(folder)
    try:
        make_folder(folder, exist_ok=False)
    except FileExistsError as error:
        refuse_taken(folder)  # made by another run that started at the same moment
        raise MachineError(f"{folder}: cannot be made: {error.strerror}") from error
    except OSError as error:
        raise MachineError(f"{folder}: cannot be made: {error.strerror}") from error
    return folder


class RunStatus(str, Enum):
    """The status of a run when its folder is opened."""

    NEW = "new"
    STOPPED = "stopped"  # there are states to resume from
    FINISHED = "finished"


@contextmanager
def run_folder(
    folder: Path,
    recipe: str,
    *,
    resume: bool,
    reread: Callable[[str], str] = str,
    warn: Callable[[str], object] = warnings.warn,
) -> Iterator[RunStatus]:
    """Open the folder of a run and lock it against other runs; a new folder is made.

    `reread` writes a recipe of an earlier version as this one does.

    `resume`: go on with a stopped run. A run that was stopped before it saved a state starts again; what it has learned
    so far, if anything, is put aside with a warning. Raises RecipeError if the folder belongs to another run or the
    recipe has changed, MachineError if it cannot be made, or if its lock is held for longer than a dead run could hold
    it, so that a scheduler may try again.

    An error before the first step of a new run removes what the run has made, so that its name is free again, unless
    the run was stopped or has saved a state.
    """
    exists = resume and folder.exists()
    if exists and not (folder / LOCK_FILE).exists() and not _is_empty(folder):  # empty: killed before it locked
        raise RecipeError(f"{folder}: is not a resumable run; choose another name=...")
    if not exists:
        make_run_folder(folder)
    with _locked(folder, LOCK_TIMEOUT_S if exists else 0.0, warn):
        status = _status(folder, recipe, reread, warn) if exists else RunStatus.NEW
        try:
            yield status
        except BaseException as error:
            has_begun = _has_stepped(folder) or bool(StateFolder(folder / STATE_FOLDER).found())
            if status is RunStatus.NEW and not has_begun and not isinstance(error, StoppedError):
                _remove_started_run(folder)
            raise


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def is_requeued() -> bool:
    """Whether this command was started again, by Slurm after a requeue or by torchrun after a failure."""
    counts = (os.environ.get(name, "0") for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))
    return any(count.isdigit() and int(count) > 0 for count in counts)


@contextmanager
def _locked(folder: Path, timeout_s: float, warn: Callable[[str], object]) -> Iterator[None]:
    lock = folder / LOCK_FILE
    until_s = time.monotonic() + timeout_s
    with ExitStack() as stack:
        while True:
            holder = lock.read_text(encoding="utf-8", errors="replace").strip() if lock.exists() else ""
            try:
                held = stack.enter_context(folder_lock(folder, f"another run ({holder})"))
                break
            except RecipeError as error:
                if time.monotonic() > until_s:
                    raise MachineError(str(error)) from error
                warn(f"{folder}: another run ({holder}) seems to work here; waiting up to {timeout_s:g} s for its lock")
                time.sleep(0.2)
        with writing_to(lock):
            os.ftruncate(held, 0)
            os.pwrite(held, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield


def _has_stepped(folder: Path) -> bool:
    """Whether a step was trained, as far as the events say."""
    return any(re.search(r'"step": [1-9]', line) for line in _events(folder))


def _remove_started_run(folder: Path) -> None:
    """Remove what a failed start has made, and the folder if it holds nothing else."""
    _clear(folder)
    if all(path.name == LOCK_FILE for path in folder.iterdir()):
        shutil.rmtree(folder, ignore_errors=True)


def _status(folder: Path, recipe: str, reread: Callable[[str], str], warn: Callable[[str], object]) -> RunStatus:
    """The status of an existing folder, which is cleared for a new start if its run saved no state."""
    events, before = _events(folder), _recipe_before(folder)
    is_finished = bool(events) and f'"event": "{FINISHED}"' in events[-1]
    states = StateFolder(folder / STATE_FOLDER)
    has_states = bool(states.found())
    if before:
        is_ranked = is_finished or (folder / METRICS_NAME).exists()
        _refuse_other_recipe(folder, reread(before), recipe, has_states=has_states, is_ranked=is_ranked)
    if is_finished:
        states.clear()  # a kill may have left some
        return RunStatus.FINISHED
    if has_states and not before:
        raise RecipeError(f"{folder}: its {RECIPE_FILE} is gone or empty; put back the one that its states are of")
    if has_states:
        return RunStatus.STOPPED
    if (folder / METRICS_NAME).exists():
        raise RecipeError(f"{folder}: holds results and no state to go on from; choose another name=...")
    with writing_to(folder):
        if _has_learned(folder, events):
            aside = _put_aside(folder)
            warn(f"{folder}: its run saved no state to resume from and starts again; what it had learned is in {aside}")
        _clear(folder)
    return RunStatus.NEW


def _events(folder: Path) -> list[str]:
    path = folder / EVENTS_FILE
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []


def _has_learned(folder: Path, events: list[str]) -> bool:
    """Whether an epoch was trained to its end; True if that cannot be read, since it may be worth something."""
    best = files.current(folder / CHECKPOINT_FOLDER)
    try:
        is_of_start = not best.exists() or files.read_json(best / METRICS_NAME)["epoch"] == 0
    except (CheckpointError, LookupError, TypeError):
        is_of_start = False
    return not is_of_start or any('"event": "epoch"' in line for line in events)


def _put_aside(folder: Path) -> Path:
    numbers = (int(path.name.rpartition("-")[2]) for path in folder.glob(f"{PUT_ASIDE}-*") if path.name[7:].isdigit())
    aside = folder / f"{PUT_ASIDE}-{max(numbers, default=0) + 1}"
    aside.mkdir()
    for path in _made_in(folder):
        path.rename(aside / path.name)
    return aside


def _clear(folder: Path) -> None:
    for path in _made_in(folder):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _made_in(folder: Path) -> list[Path]:
    """The files that a run makes before its first state, and their drafts."""
    names = {name + end for name in _MADE_FIRST for end in ("", files.INCOMPLETE, files.PREVIOUS)}
    return [path for path in folder.iterdir() if path.name in names]


def _recipe_before(folder: Path) -> str:
    """The recipe that a run was started with; empty if it was stopped before that was written."""
    path = folder / RECIPE_FILE
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.exists() else ""


def _refuse_other_recipe(folder: Path, text_before: str, text_now: str, *, has_states: bool, is_ranked: bool) -> None:
    """RecipeError for changed settings that the progress of the run does not allow."""
    before = _leaves(parse_yaml(text_before, str(folder / RECIPE_FILE)))
    now = _leaves(parse_yaml(text_now, "recipe"))
    free = (*_FREE, *(_FREE_BEFORE_TEST if not is_ranked else ()), *(_FREE_WITH_STATES if has_states else ()))
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name) and not _is_free(name, free)]
    if not changed:
        return
    changes = "; ".join(f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in changed[:5])
    more = f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
    if all(_is_free(name, _FREE_BEFORE_TEST) for name in changed):
        raise RecipeError(
            f"{folder}: is finished, its test targets were ranked: {changes}; train on from its weights with `pmmrec "
            f"finetune RECIPE --from {folder / CHECKPOINT_FOLDER} ...`, or begin another run with another name=..."
        )
    raise RecipeError(f"{folder}: cannot go on with another recipe: {changes}{more}; begin another run for that")


def _is_free(name: str, free: Sequence[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in free)


def _leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """The values of a tree by dotted name."""
    if not isinstance(tree, Mapping):
        return {path: tree}
    return {
        name: leaf for key, entry in tree.items() for name, leaf in _leaves(entry, f"{path}.{key}".lstrip(".")).items()
    }


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    with whole_file(path) as draft:
        draft.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def environment(num_processes: int, device: torch.device) -> dict[str, Any]:
    """Versions, commit and hardware, for `environment.json`."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "versions": {name: package_version(name) for name in _PACKAGES},
        "commit": _commit(),
        "device": gpu or device.type,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": num_processes,
    }


@cache
def package_version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that this package is run from; None for an installed wheel."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed words
    return result.stdout.strip() or None
