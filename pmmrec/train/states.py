"""Keep states of a run, end it early when it is asked to, and bring it back to where it was."""

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

from pmmrec.errors import CheckpointError, MachineError, RecipeError, StoppedError
from pmmrec.train.prepare import Sources
from pmmrec.train.run import Run
from pmmrec.train.run_folder import CHECKPOINT_FOLDER, FINISHED, STATE_FOLDER
from pmmrec.train.state import Position, State, StateConfig, StateFolder, read_state, restore_best
from pmmrec.zoo import files


class Resumable(Protocol):
    """What a training must save and restore."""

    step: int
    epoch: int

    def snapshot(self) -> State:
        """All that it needs to go on; tensors on the main process alone. Every process must call it."""
        ...

    def restore(self, state: State) -> None:
        """Go back to where `snapshot` was taken."""
        ...


class StopRequested(Exception):  # noqa: N818 - nothing is wrong
    """The run is to end: raised in all processes alike, during work that is done again from its beginning."""


class StoppableGroup:
    """The processes, for work that may be abandoned: wherever they meet, they learn whether the run is to end."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.rank, self.world = run.processes.rank, run.processes.world

    def summed(self, own: Tensor) -> Tensor:
        """The sum over all processes, where `own` lies. All must call it; raises StopRequested."""
        self.hear()
        return self._run.processes.summed(own)

    def hear(self) -> None:
        """All processes must call it; raises StopRequested in all where one has got a signal."""
        asked = torch.tensor(float(self._run.signals.heard is not None))
        if self._run.processes.summed(asked) > 0:
            raise StopRequested


class States:
    """The states of one run. All processes agree on when one is kept, and on when the run is to end.

    Writing is left to a thread of the main process: training goes on as soon as the tensors are copied. A state that
    cannot be written is a warning, for those before it are kept; when the run is asked to end it is an error.
    """

    def __init__(self, run: Run, config: StateConfig, about: Mapping[str, Any]) -> None:
        self._run, self._config, self._about = run, config, dict(about)
        self.group = StoppableGroup(run)
        self._folder = StateFolder(run.folder / STATE_FOLDER)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state")
        run.before_unlocking(self._thread.shutdown)  # which waits for a state that is being written
        self._writing: Future[None] | None = None
        self._kept_s, self._kept_step = time.monotonic(), -1

    @classmethod
    def of(cls, run: Run, config: StateConfig, sources: Sources, *, started_from: str) -> Self:
        """`started_from`: the checkpoint that training began with, or "none". Neither it nor a domain may change."""
        domains = {domain.name: domain.fingerprint for domain in sources.domains}
        return cls(run, config, {"domains": domains, "started_from": started_from})

    def resume(self, loop: Resumable) -> bool:
        """Bring a loop to the newest state that is whole; False where the run begins.

        Raises CheckpointError where no state can be read, RecipeError where domains or start are others.
        """
        if not self._run.resumes:
            return False
        place = self._agreed_place()
        state = read_state(place)
        self._refuse_other(state.facts["about"])
        loop.restore(state)
        self._kept_step = loop.step
        self._run.by_main(lambda: self._go_back(place, state))
        self._run.log.say(f"goes on after step {loop.step}, in epoch {loop.epoch}, from {place}")
        return True

    def _go_back(self, place: Path, state: State) -> None:
        """Bring the folder of the run to where it was when a state was kept."""
        restore_best(place, self._run.folder / CHECKPOINT_FOLDER)
        self._folder.drop_newer(place)
        self._run.log.go_back(state.facts["log"])
        self._run.write_recipe()

    def stop_flags(self, device: torch.device) -> Tensor:
        """`(2,)` what this process wants: that the run ends, that a state is kept. The sum over all counts."""
        minutes = self._config.every_minutes if self._run.processes.is_main else None
        is_due = minutes is not None and time.monotonic() - self._kept_s > 60 * minutes
        stop_flags = (self._run.signals.heard is not None, is_due)
        # Filled on the device: for a copy from here to a GPU the program would wait.
        return torch.stack([torch.full((), float(flag), device=device) for flag in stop_flags])

    def step_ended(self, loop: Resumable, heard: Tensor | None) -> None:
        """Act on the stop_flags of a step that all have heard. StoppedError where the run is to end."""
        asked, due = (False, False) if heard is None else (heard > 0).tolist()
        # The stop_flags of the step before last were uttered before a state of the last step was kept.
        by_clock = due and loop.step > self._kept_step + 1
        by_steps = self._config.every_steps is not None and loop.step % self._config.every_steps == 0
        self._act(loop, ends=asked, keeps=by_clock or by_steps)

    def epoch_ended(self, loop: Resumable) -> None:
        """As `step_ended`, after validation: signals that came meanwhile are heard here."""
        stop_flags = self.stop_flags(self._run.processes.device)
        ends, keeps = (self._run.processes.accelerator.reduce(stop_flags, "sum") > 0).tolist()
        self._act(loop, ends=ends, keeps=keeps)

    @contextmanager
    def ending_when_asked(self, loop: Resumable) -> Iterator[None]:
        """Run work between steps; stop before it, or where its `group` meets, if any process was asked to.

        What was done of that work is lost: the state that is kept is the one before it.
        """
        try:
            self.group.hear()
            yield
        except StopRequested:
            self._end(loop)

    def _end(self, loop: Resumable) -> NoReturn:
        """Keep a state and end: StoppedError, or MachineError where it could not be kept."""
        self._keep(loop)
        problem = self._run.processes.from_main(self._settle())  # so that all end with one exit code
        heard = self._run.processes.gathered([self._run.signals.heard])  # a launcher may kill who is slower than others
        why = next(name for name in heard if name is not None)
        if problem is not None:
            raise MachineError(f"step {loop.step}: ended by {why} and could not keep its state: {problem}")
        raise StoppedError(f"step {loop.step}: ended by {why}; its state is kept, --resume goes on from there")

    def training_ended(self, loop: Resumable) -> None:
        """Keep the end, so that a stop while test targets are ranked costs no training."""
        self._keep(loop)

    def finish(self) -> None:
        """Nothing is left to do: say so in the events, and take the states away."""
        if self._run.processes.is_main:
            self._settle()
            self._run.log.event(FINISHED, max(0, self._kept_step))
            self._run.log.mark()  # on the disk before the states go
            self._folder.clear()
        self._thread.shutdown()

    def _act(self, loop: Resumable, *, ends: bool, keeps: bool) -> None:
        if ends:
            self._end(loop)
        if keeps:
            self._keep(loop)

    def _keep(self, loop: Resumable) -> None:
        self._settle()
        self._kept_s, self._kept_step = time.monotonic(), loop.step
        state = loop.snapshot()
        refused = self._let_write_shares(state)
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
            self._writing.set_exception(error)  # told of when the state is asked for
        else:
            self._writing = self._thread.submit(self._write, position, state, best)

    def _let_write_shares(self, state: State) -> MachineError | None:
        """Let every process write what is its own, and wait for all; what the disk refused to one of them, if so."""
        if state.write_shares is None:
            return None
        processes, problems = self._run.processes, []
        try:
            room = self._folder.make_room() if processes.is_main else None
        except MachineError as error:
            room, problems = None, [str(error)]
        room = processes.from_main(room)
        if room is not None:
            try:
                state.write_shares(room)
            except MachineError as error:
                problems = [str(error)]
        return next((MachineError(problem) for problem in processes.gathered(problems)), None)

    def _write(self, position: Position, state: State, best: Path | None) -> None:
        self._folder.save(position, state, best)
        self._folder.keep_last(self._config.keep)

    def _settle(self) -> str | None:
        """Wait for the state that is being written; why it could not be, if so."""
        writing, self._writing = self._writing, None
        try:
            if writing is not None:
                writing.result()
        except (MachineError, OSError) as error:
            self._run.log.warn(f"step {self._kept_step}: no state is kept: {error}")
            return str(error)
        return None

    def _agreed_place(self) -> Path:
        newest = self._run.by_main(lambda: self._folder.newest_whole(self._run.log.warn))
        place: Path | None = self._run.processes.from_main(newest)
        if place is None:
            raise CheckpointError(f"{self._folder.folder}: its states have gone since the run was opened")
        return place

    def _refuse_other(self, kept: Mapping[str, Any]) -> None:
        """RecipeError where the run was begun on other data, or from another checkpoint."""
        ours, theirs = self._about["domains"], kept["domains"]
        changed = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
        if changed:
            raise RecipeError(
                f"{self._run.folder}: cannot go on: domain {changed[0]} is not what the run began with; give it the "
                "domain as it was, or begin another run"
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
