"""States of a training on disk, below `state/` of its run; a stopped training resumes from the newest intact one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor

from pmmrec.atomic import flush
from pmmrec.errors import CheckpointError, MachineError
from pmmrec.settings import Config
from pmmrec.zoo import files

FORMAT = 1
FACTS_NAME, TENSORS_NAME, SUMS_NAME = "facts.json", "tensors.safetensors", "sha256.json"
BEST_FOLDER, SHARES_FOLDER = "best", "shares"


class StateConfig(Config):
    """How often states are saved. A run that gets a stop signal saves one in any case."""

    every_minutes: float | None = Field(15.0, gt=0, description="Save a state this often; null: not by the clock.")
    every_steps: int | None = Field(None, ge=1, description="Save a state after so many steps; null: not by steps.")
    keep: int = Field(2, ge=1, description="How many states are kept; older ones are removed.")


@dataclass(frozen=True, order=True)
class Position:
    """A boundary between two steps: the steps done so far, and the epoch that follows."""

    step: int
    epoch: int  # increases once an epoch has been validated

    @property
    def folder_name(self) -> str:
        return f"step-{self.step:08d}-epoch-{self.epoch:04d}"


@dataclass(frozen=True)
class State:
    """The state at one boundary."""

    facts: Mapping[str, Any]  # JSON
    tensors: Mapping[str, Tensor]  # on the CPU
    write_shares: Callable[[Path], None] | None = None  # writes this process's files below a folder
    shares: Path | None = None  # the folder of those files


class StateFolder:
    """The last few states of a run, each in a folder of its own that is written whole or not at all.

    `tensors.safetensors` holds all tensors, `facts.json` everything else, `best/` the best checkpoint so far (as hard
    links if possible), `sha256.json` a checksum of every other file. torch.distributed.checkpoint is not used:
    its metadata is a pickle, which is read before anything can be verified. Tensors are whole, so any number of
    processes can resume from them. Under DeepSpeed, model and optimizer are in `shares/` instead.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def found(self) -> list[Path]:
        """All complete folders, the newest first; none of them verified."""
        states = [path for path in self.folder.glob("step-*-epoch-*") if not files.is_leftover(path)]
        return sorted(states, reverse=True)

    def hold_best(self, checkpoint: Path) -> Path | None:
        """Link the files of the best checkpoint, so that a better one can replace it while a state is written.

        Returns the folder of links, or None if there is no checkpoint yet. Raises MachineError if the disk refuses.
        """
        held = self.folder / f"{BEST_FOLDER}{files.INCOMPLETE}"
        try:
            shutil.rmtree(held, ignore_errors=True)
            for name in files.files_below(checkpoint):
                files.link_or_copy(checkpoint / name, held / name)
        except OSError as error:
            raise MachineError(f"{held}: cannot be written: {error.strerror or error}") from error
        return held if held.exists() else None

    def make_shares_folder(self) -> Path:
        """An empty folder for the files of single processes. Raises MachineError if the disk refuses."""
        folder = self._shares_draft
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        except OSError as error:
            raise MachineError(f"{folder}: cannot be made: {error.strerror or error}") from error
        return folder

    @property
    def _shares_draft(self) -> Path:
        return self.folder / f"{SHARES_FOLDER}{files.INCOMPLETE}"

    def save(self, position: Position, state: State, best: Path | None) -> None:
        """Write a state, with the folder of `make_shares_folder` if the state has one.

        `best`: the result of `hold_best`. A position that exists is left as it is: the same steps lead to the same
        state. Raises MachineError if the disk refuses.
        """
        place = self.folder / position.folder_name
        if place.exists():
            return
        with files.writing(place, replace=False) as draft:
            if best is not None:
                best.rename(draft / BEST_FOLDER)
            if state.write_shares is not None:
                self._shares_draft.rename(draft / SHARES_FOLDER)
            files.write_tensors(draft / TENSORS_NAME, state.tensors)
            files.write_json(draft / FACTS_NAME, {"format": FORMAT, **state.facts})
            files.write_json(draft / SUMS_NAME, files.hashes_of(draft))
            flush(self.folder.parent)  # the run folder, with the events and this folder

    def keep_last(self, keep: int) -> None:
        """Remove all but the newest `keep`, and drafts of saves that were killed."""
        for path in self.found()[keep:]:
            _remove(path)
        for path in self.folder.glob(f"*{files.INCOMPLETE}"):
            shutil.rmtree(path, ignore_errors=True)

    def newest_whole(self, warn: Callable[[str], None]) -> Path | None:
        """The newest state whose files match their checksums; `warn` is called for each that does not.

        None if there is no state. Raises CheckpointError if there are some and all are damaged.
        """
        found = self.found()
        for path in found:
            problem = _problem(path)
            if problem is None:
                return path
            warn(f"{path}: cannot be read and is left out: {problem}; going on from the state before it")
        if found:
            raise CheckpointError(
                f"{self.folder}: none of {len(found)} states can be read; its best weights are in checkpoint/; remove "
                "the folder of the run to start again"
            )
        return None

    def clear(self) -> None:
        """Remove all states. If the folder is a link to another disk, the link stays."""
        for path in self.folder.iterdir() if self.folder.is_symlink() and self.folder.is_dir() else ():
            shutil.rmtree(path, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)  # leaves links alone

    def drop_newer(self, than: Path) -> None:
        """Remove states newer than `than`: they could not be read, and will be written again."""
        for path in self.found():
            if path.name > than.name:
                _remove(path)


def read_state(folder: Path) -> State:
    """Read a state that `newest_whole` has verified. Raises CheckpointError."""
    facts = files.read_json(folder / FACTS_NAME)
    if facts.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder}: format {facts.get('format')}, but this version reads {FORMAT}; go on with that one"
        )
    shares = folder / SHARES_FOLDER
    return State(facts, files.read_tensors(folder / TENSORS_NAME), shares=shares if shares.is_dir() else None)


def restore_best(state: Path, checkpoint: Path) -> None:
    """Restore the best checkpoint of a state over one that the run wrote after it."""
    best = state / BEST_FOLDER
    if not best.is_dir():
        return
    with files.writing(checkpoint, replace=True) as place:
        for name in files.files_below(best):
            files.link_or_copy(best / name, place / name)


def _problem(path: Path) -> str | None:
    """Describe the damage of a state; None if it is intact."""
    try:
        sums = files.read_json(path / SUMS_NAME)
    except CheckpointError as error:
        return str(error)
    is_known = isinstance(sums, dict) and {FACTS_NAME, TENSORS_NAME} <= sums.keys()
    if not is_known or not all(files.is_inside(name) and isinstance(sum_, str) for name, sum_ in sums.items()):
        return f"{SUMS_NAME} does not list its files"
    added = [name for name in files.files_below(path) if name.startswith(f"{SHARES_FOLDER}/") and name not in sums]
    if added:
        return f"{added[0]} was not written with it"
    return "; ".join(files.changes(path, sums)) or None


def _remove(path: Path) -> None:
    """Rename it first, so that a kill during the removal leaves nothing that looks like a state."""
    doomed = path.with_name(path.name + files.INCOMPLETE)
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
