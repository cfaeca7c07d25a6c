"""List the differences between two checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pmmrec.settings import read_yaml
from pmmrec.tables import Cell, PlainTable
from pmmrec.zoo import files
from pmmrec.zoo.checkpoint import Checkpoint
from pmmrec.zoo.folder import PART_TENSORS, RECIPE_NAME
from pmmrec.zoo.index import PartEntry

MAX_TENSORS = 20  # listed per part: those that differ most
_SAME = "the same"


def differences(first: Checkpoint, second: Checkpoint) -> list[PlainTable]:
    """Tables of the differences in parts, tensors, settings and provenance; empty tables after the first are left out.

    Parts whose files have equal SHA-256 are neither read nor downloaded.
    """
    parts, tensors = _parts(first, second)
    names = [first.origin.pinned, second.origin.pinned]
    settings = [_settings(first), _settings(second)]
    provenance = [_flat(first.provenance), _flat(second.provenance)]
    tables = [
        PlainTable(f"parts: {' and '.join(names)}", ["part", "", "tensors that differ", "most, absolute"], parts),
        PlainTable("tensors and files that differ", ["part", "tensor or file", "", "most, absolute"], tensors),
        PlainTable("settings", ["setting", "first", "second"], _unlike(*settings)),
        PlainTable("provenance", ["", "first", "second"], _unlike(*provenance)),
    ]
    return [tables[0], *(table for table in tables[1:] if table.rows)]


def _parts(first: Checkpoint, second: Checkpoint) -> tuple[list[list[Cell]], list[list[Cell]]]:
    ours, theirs = _entries(first), _entries(second)
    parts: list[list[Cell]] = []
    tensors: list[list[Cell]] = []
    for name in dict.fromkeys([*ours, *theirs]):
        if name not in ours or name not in theirs:
            parts.append([name, f"only in the {'first' if name in ours else 'second'}", None, None])
            continue
        mine, other = ours[name], theirs[name]
        if mine.files == other.files:
            parts.append([name, _SAME, 0, None])
            continue
        found = list(_unlike_tensors(_tensors(first, mine), _tensors(second, other)))
        gaps = [gap for _, _, gap in found if gap is not None]
        kind = f"{mine.type} and {other.type}" if mine.type != other.type else "differs"
        parts.append([name, kind, len(found), max(gaps, default=None)])
        found.sort(key=lambda line: -(line[2] if line[2] is not None else float("inf")))
        tensors += [[name, *line] for line in found[:MAX_TENSORS]]
        if len(found) > MAX_TENSORS:
            tensors.append([name, f"and {len(found) - MAX_TENSORS} more", "", None])
        tensors += [[name, file, "differs", None] for file in _unlike_files(mine, other)]
    return parts, tensors


def _entries(checkpoint: Checkpoint) -> dict[str, PartEntry]:
    return {**checkpoint.held, **{f"objectives/{name}": entry for name, entry in checkpoint.objectives.items()}}


def _tensors(checkpoint: Checkpoint, entry: PartEntry) -> dict[str, Tensor]:
    """The tensors of a part from all of its files; those in files of a library get the prefix `backbone.`."""
    folder = checkpoint.sound_folder(entry)
    found: dict[str, Tensor] = {}
    for name in entry.files:
        if name.endswith(".safetensors"):
            prefix = "" if name == PART_TENSORS else "backbone."
            found |= {f"{prefix}{key}": tensor for key, tensor in files.read_tensors(folder / name).items()}
    return found


def _unlike_tensors(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor]
) -> Iterator[tuple[str, str, float | None]]:
    """For each tensor that differs: its name, how it differs, and by how much."""
    for name in dict.fromkeys([*first, *second]):
        if name not in first or name not in second:
            yield name, f"only in the {'first' if name in first else 'second'}", None
            continue
        a, b = first[name], second[name]
        if a.shape != b.shape:
            yield name, f"{tuple(a.shape)} and {tuple(b.shape)}", None
        elif a.dtype != b.dtype:
            yield name, f"{a.dtype} and {b.dtype}".replace("torch.", ""), _gap(a, b)
        elif not torch.equal(a, b):
            yield name, "values", _gap(a, b)


def _gap(a: Tensor, b: Tensor) -> float | None:
    return float((a.double() - b.double()).abs().max()) if a.numel() else None


def _unlike_files(mine: PartEntry, other: PartEntry) -> list[str]:
    names = {*mine.files, *other.files}
    return sorted(
        name for name in names if not name.endswith(".safetensors") and mine.files.get(name) != other.files.get(name)
    )


def _settings(checkpoint: Checkpoint) -> dict[str, str]:
    """The settings of system, model and recipe, by path."""
    recipe = read_yaml(checkpoint.folder / RECIPE_NAME)
    tree = {"system": checkpoint.system, "model": checkpoint.index.model}
    return _flat(tree) | _flat({"recipe": {key: value for key, value in recipe.items() if key != "model"}})


def _flat(tree: Any, path: str = "") -> dict[str, str]:
    """The values of a tree as text, by path."""
    if isinstance(tree, Mapping) and tree:
        below = [_flat(value, f"{path}.{key}" if path else str(key)) for key, value in tree.items()]
        return {key: value for flat in below for key, value in flat.items()}
    return {path: str(tree)} if path else {}


def _unlike(first: Mapping[str, str], second: Mapping[str, str]) -> list[list[Cell]]:
    names = dict.fromkeys([*first, *second])
    return [[name, first.get(name), second.get(name)] for name in names if first.get(name) != second.get(name)]
