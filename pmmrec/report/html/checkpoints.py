"""Choose the checkpoints of a report: those named by the user, or those that the runs kept, best first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pmmrec.evaluation.outcome import Outcome
from pmmrec.report.comparison import ComparedSystem
from pmmrec.report.epochs import judged_by
from pmmrec.zoo.checkpoint import AdapterCheckpoint, Checkpoint, with_base
from pmmrec.zoo.files import current
from pmmrec.zoo.hub import find_checkpoint

CHECKPOINT_FOLDER = "checkpoint"


@dataclass(frozen=True)
class MeasuredRun:
    """A run of a system and its outcome."""

    name: str  # name of the system
    folder: Path
    outcome: Outcome


@dataclass(frozen=True)
class ShownCheckpoint:
    """A checkpoint in the report, and its run if the report includes it."""

    name: str
    checkpoint: Checkpoint
    run: MeasuredRun | None


def shown_checkpoints(
    systems: Sequence[ComparedSystem], places: Sequence[str], base: str | None, hub: Path
) -> list[ShownCheckpoint]:
    """The checkpoints in the order of `places` ([NAME=]PLACE); if none is given, one per system, best first.

    The best is chosen by validation, on the metric of the first run. `base`: the base checkpoint of adapters. Raises
    RecipeError for an invalid place or base, CheckpointError for broken checkpoints.
    """
    runs = [
        MeasuredRun(system.name, folder, outcome)
        for system in systems
        for folder, outcome in zip(system.folders, system.outcomes, strict=True)
    ]
    found = [_named(place, runs, hub) for place in places] if places else _kept(runs)
    carry = [isinstance(entry.checkpoint, AdapterCheckpoint) for entry in found]
    for entry, is_adapter in zip(found, carry, strict=True):
        with_base(entry.checkpoint, base if is_adapter or not any(carry) else None, hub)
    return found


def _named(word: str, runs: Sequence[MeasuredRun], hub: Path) -> ShownCheckpoint:
    run = next((run for run in runs if word.startswith(f"{run.name}=")), None)
    place = find_checkpoint(word.removeprefix(f"{run.name}=" if run else ""), hub)
    if run is None:
        run = next((run for run in runs if _place(run).resolve() == place.resolve()), None)
    return ShownCheckpoint(word if run is None else run.name, Checkpoint.open(place), run)


def _kept(runs: Sequence[MeasuredRun]) -> list[ShownCheckpoint]:
    kept = {run.name: run for run in reversed(runs) if current(_place(run)).is_dir()}  # the first run of each system
    firsts = [run for run in runs if kept.get(run.name) is run]
    metric = judged_by(firsts[0].folder) if firsts else ""
    firsts.sort(key=lambda run: -run.outcome.validation.get(metric, 0.0))
    return [ShownCheckpoint(run.name, Checkpoint.open(_place(run)), run) for run in firsts]


def _place(run: MeasuredRun) -> Path:
    return run.folder / CHECKPOINT_FOLDER
