"""What checkpoints hold, laid out for people."""

from __future__ import annotations

from pathlib import Path

from pmmrec.errors import CheckpointError
from pmmrec.report.tables import Cell, PlainTable
from pmmrec.zoo.checkpoint import Checkpoint, load_recommender
from pmmrec.zoo.hub import find_checkpoint, list_checkpoints


def hub_table(hub: Path) -> PlainTable:
    """The checkpoints of a folder hub: system, width, parts, what they learned from."""
    rows: list[list[Cell]] = []
    for name in list_checkpoints(hub):
        try:
            checkpoint = Checkpoint.open(hub / name)
        except CheckpointError:
            rows.append([name, "cannot be read; see zoo verify", None, None, None])
            continue
        learned_from = ", ".join(checkpoint.learned_from)
        rows.append([name, checkpoint.system, checkpoint.index.width, ", ".join(checkpoint.held), learned_from])
    return PlainTable(str(hub), ["name", "system", "width", "parts", "learned from"], rows)


def checkpoint_table(place: str, hub: Path) -> PlainTable:
    """The parts of one checkpoint, with their tensors and parameters."""
    checkpoint = Checkpoint.open(find_checkpoint(place, hub))
    entries = {**checkpoint.held, **{f"objectives/{name}": entry for name, entry in checkpoint.objectives.items()}}
    rows: list[list[Cell]] = [
        [name, entry.type, len(checkpoint.sizes(entry)), sum(checkpoint.sizes(entry))]
        for name, entry in entries.items()
    ]
    learned_from = ", ".join(checkpoint.learned_from) or "nothing"
    title = (
        f"{checkpoint.folder}: {checkpoint.system}, width {checkpoint.index.width}, learned from {learned_from}, "
        f"started from {checkpoint.provenance.get('started_from', 'unknown')}"
    )
    if checkpoint.index.base is not None:
        title += f", stands on {checkpoint.index.base.place} (sha256 {checkpoint.index.base.sha256})"
    return PlainTable(title, ["part", "type", "tensors", "parameters"], rows)


def checkpoint_problems(place: str, hub: Path) -> tuple[Path, list[str]]:
    """What is wrong with the files of a checkpoint, or with its tensors where all files are sound.

    A model that knows items by id is built for its catalogue alone, so there the files are all that is checked.
    """
    checkpoint = Checkpoint.open(find_checkpoint(place, hub))
    problems = checkpoint.verify()
    if not problems and "item_table" not in checkpoint.parts:
        try:
            load_recommender(checkpoint)
        except CheckpointError as error:
            problems = str(error).splitlines()
    return checkpoint.folder, problems
