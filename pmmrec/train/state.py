"""States of a training, kept below `state/` of its run. A stopped training goes on from the newest that is whole."""

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
    """How much work a stop can cost at most. A run that is asked to end keeps a state in any case."""

    every_minutes: float | None = Field(15.0, gt=0, description="Keep a state this often; null: not by the clock.")
    every_steps: int | None = Field(None, ge=1, description="Keep a state after so many steps; null: not by steps.")
    keep: int = Field(2, ge=1, description="How many states are kept; older ones give way.")


@dataclass(frozen=True, order=True)
class Position:
    """A boundary between two steps: steps done in all, and the epoch they go on in."""

    step: int
    epoch: int  # one ahead of the epoch before once that has been judged

    @property
    def folder_name(self) -> str:
        return f"step-{self.step:08d}-epoch-{self.epoch:04d}"


@dataclass(frozen=True)
class State:
    """What was kept at one boundary."""

    facts: Mapping[str, Any]  # JSON
    tensors: Mapping[str, Tensor]  # on the CPU
    write_shares: Callable[[Path], None] | None = None  # what every process must yet write below a folder
    shares: Path | None = None  # where what they wrote is found


class StateFolder:
    """The last few states of a run, each in a folder of its own that is written whole or not at all.

    `facts.json` holds what is no tensor, `tensors.safetensors` the rest, `best/` the best checkpoint so far (hard links
    where the disk has them), `sha256.json` a checksum of every other file. The layout is ours: the metadata of
    torch.distributed.checkpoint is a pickle, which is read before anything could be verified. Tensors are whole, so
    that any number of processes can go on from them. Under DeepSpeed, model and optimiser stand in `shares/` instead.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def found(self) -> list[Path]:
        """Every state that was renamed into place, the newest first; none of them verified."""
        states = [path for path in self.folder.glob("step-*-epoch-*") if not files.is_leftover(path)]
        return sorted(states, reverse=True)

    def hold_best(self, checkpoint: Path) -> Path | None:
        """Links to the files of the best checkpoint, so that a better one may take its place while a state is written.

        None where there is no checkpoint yet. Raises MachineError when the disk refuses.
        """
        held = self.folder / f"{BEST_FOLDER}{files.INCOMPLETE}"
        try:
            shutil.rmtree(held, ignore_errors=True)
            for name in files.files_below(checkpoint):
                files.link_or_copy(checkpoint / name, held / name)
        except OSError as error:
            raise MachineError(f"{held}: cannot be written: {error.strerror or error}") from error
        return held if held.exists() else None

    def make_room(self) -> Path:
        """An empty folder into which processes write what is their own. Raises MachineError when the disk refuses."""
        room = self.room
        try:
            shutil.rmtree(room, ignore_errors=True)
            room.mkdir(parents=True)
        except OSError as error:
            raise MachineError(f"{room}: cannot be made: {error.strerror or error}") from error
        return room

    @property
    def room(self) -> Path:
        return self.folder / f"{SHARES_FOLDER}{files.INCOMPLETE}"

    def save(self, position: Position, state: State, best: Path | None) -> None:
        """Write a state; `best` is what `hold_best` gave. Raises MachineError when the disk refuses.

        What processes wrote into the room becomes part of it.

        A position that is kept already is left as it is: the same steps lead to the same state.
        """
        place = self.folder / position.folder_name
        if place.exists():
            return
        with files.writing(place, replace=False) as draft:
            if best is not None:
                best.rename(draft / BEST_FOLDER)
            if state.write_shares is not None:
                self.room.rename(draft / SHARES_FOLDER)
            files.write_tensors(draft / TENSORS_NAME, state.tensors)
            files.write_json(draft / FACTS_NAME, {"format": FORMAT, **state.facts})
            files.write_json(draft / SUMS_NAME, files.hashes_of(draft))
            flush(self.folder.parent)  # which holds what else a run needs to go on: this folder, and the events

    def keep_last(self, keep: int) -> None:
        """Take away all but the newest `keep`, and what killed saves left."""
        for path in self.found()[keep:]:
            _take_away(path)
        for path in self.folder.glob(f"*{files.INCOMPLETE}"):
            shutil.rmtree(path, ignore_errors=True)

    def newest_whole(self, warn: Callable[[str], None]) -> Path | None:
        """The newest state whose files are as they were written. `warn` hears of each that is not.

        None where there is no state at all. Raises CheckpointError where there are some and none is whole.
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
                "the folder of the run to begin anew"
            )
        return None

    def clear(self) -> None:
        """Take all states away. Where the folder is a link to another disk, the link stays."""
        for path in self.folder.iterdir() if self.folder.is_symlink() and self.folder.is_dir() else ():
            shutil.rmtree(path, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)  # which leaves links alone

    def drop_newer(self, than: Path) -> None:
        """Take away states newer than one: they could not be read, and their places will be written again."""
        for path in self.found():
            if path.name > than.name:
                _take_away(path)


def read_state(folder: Path) -> State:
    """What a state holds that `newest_whole` has verified. Raises CheckpointError."""
    facts = files.read_json(folder / FACTS_NAME)
    if facts.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder}: format {facts.get('format')}, but this version reads {FORMAT}; go on with that one"
        )
    shares = folder / SHARES_FOLDER
    return State(facts, files.read_tensors(folder / TENSORS_NAME), shares=shares if shares.is_dir() else None)


def restore_best(state: Path, checkpoint: Path) -> None:
    """Put the best checkpoint of a state back: one that a lost future of the run wrote gives way."""
    best = state / BEST_FOLDER
    if not best.is_dir():
        return
    with files.writing(checkpoint, replace=True) as place:
        for name in files.files_below(best):
            files.link_or_copy(best / name, place / name)


def _problem(path: Path) -> str | None:
    """What is wrong with a state, in words."""
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


def _take_away(path: Path) -> None:
    """Under another name first, so that a kill during the removal leaves nothing that looks like a state."""
    doomed = path.with_name(path.name + files.INCOMPLETE)
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
