"""Save states of a run, stop it when any process got a signal, and resume it from the newest state."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor
from typing_extensions import Self

from pmmrec.data.splits import Split
from pmmrec.errors import CheckpointError, MachineError, RecipeError, StoppedError
from pmmrec.train.prepare import Sources
from pmmrec.train.run import Run
from pmmrec.train.run_folder import CHECKPOINT_FOLDER, FINISHED, STATE_FOLDER
from pmmrec.train.state import Position, State, StateConfig, StateFolder, read_state, restore_best
from pmmrec.zoo import files


class Resumable(Protocol):
    """A training that can be saved and restored."""

    step: int
    epoch: int

    def snapshot(self) -> State:
        """All that it needs to resume, with tensors on the main process only. Every process must call it."""
        ...

    def restore(self, state: State) -> None:
        """Return to where `snapshot` was taken."""
        ...


class StopRequested(Exception):  # noqa: N818 - nothing is wrong
    """The run is to stop: raised in every process, during work that a resumed run starts again."""


class StoppableGroup:
    """A worker group for work that a stop may abandon: each `summed` also checks whether the run is to stop."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.rank, self.world = run.processes.rank, run.processes.world

    def summed(self, own: Tensor) -> Tensor:
        """The sum over all processes, on the device of `own`. All must call it; raises StopRequested."""
        self.check()
        return self._run.processes.summed(own)

    def check(self) -> None:
        """Raise StopRequested in all processes if any got a signal. All must call it."""
        stops = torch.tensor(float(self._run.signals.received is not None))
        if self._run.processes.summed(stops) > 0:
            raise StopRequested


class States:
    """The states of one run. All processes agree on when one is saved, and on when the run is to stop.

    A thread of the main process writes them: training goes on as soon as the tensors are copied. A state that cannot
    be written is a warning, since earlier states are kept; when the run is to stop it is an error.
    """

    def __init__(self, run: Run, config: StateConfig, about: Mapping[str, Any]) -> None:
        self._run, self._config, self._about = run, config, dict(about)
        self.group = StoppableGroup(run)
        self._folder = StateFolder(run.folder / STATE_FOLDER)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state")
        run.before_unlocking(self._thread.shutdown)  # waits for a state that is being written
        self._writing: Future[None] | None = None
        self._saved_s, self._saved_step = time.monotonic(), -1

    @classmethod
    def of(
        cls, run: Run, config: StateConfig, sources: Sources, *, started_from: str, judging: Sources | None = None
    ) -> Self:
        """`started_from`: the checkpoint that training started from, or "none". It and the domains may not change.

        `judging`: the domains whose validation targets judge the epochs; None: the sources.
        """
        domains = {domain.name: domain.fingerprint for domain in sources.domains}
        stored = {split.domain.name: _stored(split) for split in sources.splits}
        judges = {} if judging is None else {domain.name: domain.fingerprint for domain in judging.domains}
        about = {"domains": domains, "stored": stored, "started_from": started_from, "judges": judges or domains}
        return cls(run, config, about)

    def resume(self, loop: Resumable) -> bool:
        """Restore a loop from the newest intact state; False if the run is new.

        Raises CheckpointError if no state can be read, RecipeError if the domains or the start have changed.
        """
        if not self._run.resumes:
            return False
        place = self._agreed_place()
        state = read_state(place)
        self._refuse_other(state.facts["about"])
        loop.restore(state)
        self._saved_step = loop.step
        self._run.by_main(lambda: self._go_back(place, state))
        self._run.log.say(f"goes on after step {loop.step}, in epoch {loop.epoch}, from {place}")
        return True

    def _go_back(self, place: Path, state: State) -> None:
        """Return the run folder to where it was when a state was saved."""
        restore_best(place, self._run.folder / CHECKPOINT_FOLDER)
        self._folder.drop_newer(place)
        self._run.log.go_back(state.facts["log"])
        self._run.write_recipe()

    def stop_flags(self, device: torch.device) -> Tensor:
        """`(2,)` flags of this process: stop the run, save a state. Those of all processes are summed."""
        minutes = self._config.every_minutes if self._run.processes.is_main else None
        is_due = minutes is not None and time.monotonic() - self._saved_s > 60 * minutes
        stop_flags = (self._run.signals.received is not None, is_due)
        # Filled on the device: a copy from the host to a GPU would make the program wait.
        return torch.stack([torch.full((), float(flag), device=device) for flag in stop_flags])

    def step_ended(self, loop: Resumable, flags: Tensor | None) -> None:
        """Act on the stop flags of all processes, from the step before. StoppedError if the run is to stop."""
        stops, due = (False, False) if flags is None else (flags > 0).tolist()
        # Flags are read one step late: a state saved after the step before has answered them already.
        by_clock = due and loop.step > self._saved_step + 1
        by_steps = self._config.every_steps is not None and loop.step % self._config.every_steps == 0
        self._act(loop, stops=stops, saves=by_clock or by_steps)

    def epoch_ended(self, loop: Resumable) -> None:
        """As `step_ended`, after validation, for signals that arrived meanwhile."""
        flags = self.stop_flags(self._run.processes.device)
        stops, saves = (self._run.processes.accelerator.reduce(flags, "sum") > 0).tolist()
        self._act(loop, stops=stops, saves=saves)

    @contextmanager
    def stoppable(self, loop: Resumable) -> Iterator[None]:
        """Run work between steps; stop before it, or in a collective of `group`, if any process was asked to.

        A stop loses the work done so far: the state that is saved is the one before it.
        """
        try:
            self.group.check()
            yield
        except StopRequested:
            self._stop(loop)

    def _stop(self, loop: Resumable) -> NoReturn:
        """Save a state and stop: StoppedError, or MachineError if it could not be saved."""
        self._save(loop)
        problem = self._run.processes.from_main(self._settle())  # all processes end with the same exit code
        received = self._run.processes.gathered([self._run.signals.received])  # a launcher may kill the slower ones
        why = next(name for name in received if name is not None)
        if problem is not None:
            raise MachineError(f"step {loop.step}: ended by {why} and could not keep its state: {problem}")
        raise StoppedError(f"step {loop.step}: ended by {why}; its state is kept, --resume goes on from there")

    def training_ended(self, loop: Resumable) -> None:
        """Save a state, so that a stop while test targets are ranked loses no training."""
        self._save(loop)

    def finish(self) -> None:
        """Write the last event of the run and remove its states."""
        if self._run.processes.is_main:
            self._settle()
            self._run.log.event(FINISHED, max(0, self._saved_step))
            self._run.log.mark()  # on the disk before the states are removed
            self._folder.clear()
        self._thread.shutdown()

    def _act(self, loop: Resumable, *, stops: bool, saves: bool) -> None:
        if stops:
            self._stop(loop)
        if saves:
            self._save(loop)

    def _save(self, loop: Resumable) -> None:
        self._settle()
        self._saved_s, self._saved_step = time.monotonic(), loop.step
        state = loop.snapshot()
        refused = self._write_shares(state)
        if not self._run.processes.is_main:
            return
        facts = {**state.facts, "about": self._about, "log": self._run.log.mark()}
        position, state = Position(loop.step, loop.epoch), dataclasses.replace(state, facts=facts)
        try:
            if refused is not None:
                raise refused
            best = self._folder.hold_best(files.current(self._run.folder / CHECKPOINT_FOLDER))
        except MachineError as error:
            self._writing = Future()
            self._writing.set_exception(error)  # reported by `_settle`
        else:
            self._writing = self._thread.submit(self._write, position, state, best)

    def _write_shares(self, state: State) -> MachineError | None:
        """Let every process write its own files, and wait for all; the error of one that could not, if any."""
        if state.write_shares is None:
            return None
        processes, problems = self._run.processes, []
        try:
            draft = self._folder.make_shares_folder() if processes.is_main else None
        except MachineError as error:
            draft, problems = None, [str(error)]
        draft = processes.from_main(draft)
        if draft is not None:
            try:
                state.write_shares(draft)
            except MachineError as error:
                problems = [str(error)]
        return next((MachineError(problem) for problem in processes.gathered(problems)), None)

    def _write(self, position: Position, state: State, best: Path | None) -> None:
        self._folder.save(position, state, best)
        self._folder.keep_last(self._config.keep)

    def _settle(self) -> str | None:
        """Wait for the state that is being written; returns the error if that failed."""
        writing, self._writing = self._writing, None
        try:
            if writing is not None:
                writing.result()
        except (MachineError, OSError) as error:
            self._run.log.warn(f"step {self._saved_step}: no state is kept: {error}")
            return str(error)
        return None

    def _agreed_place(self) -> Path:
        newest = self._run.by_main(lambda: self._folder.newest_whole(self._run.log.warn))
        place: Path | None = self._run.processes.from_main(newest)
        if place is None:
            raise CheckpointError(f"{self._folder.folder}: its states have gone since the run was opened")
        return place

    def _refuse_other(self, kept: Mapping[str, Any]) -> None:
        """RecipeError if the run was started with other data, or from another checkpoint."""
        ours, theirs = self._about["domains"], kept["domains"]
        changed = _changed(ours, theirs) or _changed(self._about["judges"], kept.get("judges", theirs))
        if changed:
            raise RecipeError(
                f"{self._run.folder}: cannot go on: domain {changed[0]} is not what the run began with; give it the "
                "domain as it was, or begin another run"
            )
        for name, before in kept.get("stored", {}).items():  # states of earlier versions do not say
            now = self._about["stored"][name]
            if other := sorted(what for what in before if before[what] != now.get(what)):
                raise RecipeError(
                    f"{self._run.folder}: cannot go on: {other[0]} of domain {name} is not what the run began with; "
                    "store it as it was, or begin another run"
                )
        if list(ours) != list(theirs):  # domains are numbered, and batches drawn, in this order
            raise RecipeError(
                f"{self._run.folder}: cannot go on: data.sources was {', '.join(theirs)}, is {', '.join(ours)}; name "
                "the domains in the order that the run began with"
            )
        if self._about["started_from"] != kept["started_from"]:
            raise RecipeError(
                f"{self._run.folder}: cannot go on: it started from {kept['started_from']}, now --from says "
                f"{self._about['started_from']}"
            )


def _changed(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Names of domains whose fingerprints differ."""
    return sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))


def _stored(split: Split) -> dict[str, str]:
    """Hashes of what a domain stores beside its items and sequences: the split, if it is stored, and features."""
    features = {f"feature {name}": info.sha256 for name, info in split.domain.info.features.items()}
    stored = split.stored
    return features if stored is None else {"data.split": stored, **features}
