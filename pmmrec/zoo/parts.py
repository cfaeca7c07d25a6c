"""Write the tensors of one part to disk, read them back, and fit them to a module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from pmmrec.encoders import Encoder
from pmmrec.encoders.weights import is_finite
from pmmrec.errors import CheckpointError
from pmmrec.models.recommender import Recommender
from pmmrec.row_table import RowTable
from pmmrec.zoo import files
from pmmrec.zoo.about import FORMAT
from pmmrec.zoo.folder import PART_SETTINGS, PART_TENSORS
from pmmrec.zoo.index import PartEntry
from pmmrec.zoo.tensors import promises_of

BACKBONE = "backbone."


@dataclass(frozen=True)
class TensorOwner:
    """The module that owns the tensors of a state dict whose names start with `prefix`."""

    prefix: str
    module: nn.Module


def part_paths(recommender: Recommender) -> dict[str, str]:
    """Module path of each part of a recommender, by name. Raises CheckpointError for tensors outside every part."""
    path_of = {id(module): path for path, module in recommender.named_modules()}
    paths = {name: path_of[id(part)] for name, part in recommender.parts.items()}
    owned = tuple(f"{path}." for path in paths.values())
    stray = [name for name in recommender.state_dict() if not name.startswith(owned)]
    if stray:
        raise CheckpointError(
            f"tensors of the model belong to no part: {files.listed(stray)}; name their part in `parts`"
        )
    return paths


def owned_tensors(state: Mapping[str, Tensor], owners: Mapping[str, TensorOwner]) -> dict[str, dict[str, Tensor]]:
    """Split a state dict by owner, with the names that each owner's module uses.

    Raises CheckpointError where a tensor is missing, has no owner, or shares memory with another.
    """
    split: dict[str, dict[str, Tensor]] = {}
    owned: set[str] = set()
    for name, owner in owners.items():
        keys = {key: owner.prefix + key for key in owner.module.state_dict()}
        if missing := set(keys.values()) - set(state):
            raise CheckpointError(f"{name}: the state to save lacks {files.listed(missing)}")
        split[name] = {key: files.standalone(state[full]) for key, full in keys.items()}
        if shared := files.sharing({key: state[full] for key, full in keys.items()}):
            raise CheckpointError(f"{name}: tensors share memory: {files.listed(shared)}; give each its own copy")
        owned |= set(keys.values())
    if stray := set(state) - owned:
        raise CheckpointError(f"the state to save holds tensors of no part and no objective: {files.listed(stray)}")
    return split


def write_part(
    root: Path, folder_name: str, part: nn.Module, tensors: Mapping[str, Tensor], about: Mapping[str, Any]
) -> PartEntry:
    """Write the tensors of a part to `root/folder_name`; a backbone is written in the format of its own library."""
    folder = root / folder_name
    folder.mkdir(parents=True)
    if isinstance(part, Encoder):
        inner = {key.removeprefix(BACKBONE): tensor for key, tensor in tensors.items() if key.startswith(BACKBONE)}
        part.save_backbone(folder, inner)
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(BACKBONE)}
    files.write_tensors(folder / PART_TENSORS, tensors)
    files.write_json(folder / PART_SETTINGS, {"format": FORMAT, **about})
    return part_entry(root, folder_name, about)


def part_entry(root: Path, folder_name: str, about: Mapping[str, Any]) -> PartEntry:
    """The index entry of a part or adapter whose files are in `root/folder_name`."""
    found = promises_of(root / folder_name)
    return PartEntry(
        family=about["family"],
        type=about["type"],
        folder=folder_name,
        files={name: promise.sha256 for name, promise in found.items()},
        tensors={name: dict(promise.tensors) for name, promise in found.items() if promise.tensors is not None},
    )


def read_part(folder: Path, module: nn.Module) -> dict[str, Tensor]:
    """The tensors that `write_part` wrote, under the names of `module`. Raises CheckpointError."""
    state = files.read_tensors(folder / PART_TENSORS)
    for path, table in module.named_modules():
        name = f"{path}.catalogue_bytes".lstrip(".")
        if isinstance(table, RowTable) and name in state:
            table.check_catalogues(state[name])
            state[name] = table.get_buffer("catalogue_bytes")  # the same rows; their domain may be renamed
    if not isinstance(module, Encoder):
        return state
    on_disk = [
        name for path in folder.glob("*.safetensors") if path.name != PART_TENSORS for name in files.shapes_in(path)
    ]
    try:
        backbone = module.read_backbone(folder)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: the backbone cannot be read: {error}") from error
    if len(on_disk) != len(backbone):  # libraries skip tensors that they do not know
        unread = files.listed(set(on_disk) - set(backbone))
        raise CheckpointError(f"{folder}: the backbone has no place for {unread or 'some tensors'} of its files")
    return {**state, **{f"{BACKBONE}{key}": tensor for key, tensor in backbone.items()}}


def misfits(name: str, state: Mapping[str, Tensor], module: nn.Module) -> list[str]:
    """Why `state` cannot be loaded into `module`, one line per reason; empty if it can."""
    own = module.state_dict()
    missing, extra = set(own) - set(state), set(state) - set(own)
    reshaped = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in set(own) & set(state)
        if state[key].shape != own[key].shape
    ]
    retyped = [
        f"{key} {state[key].dtype} for {own[key].dtype}"
        for key in set(own) & set(state)
        if state[key].is_floating_point() != own[key].is_floating_point()
    ]
    if "mask" in missing and getattr(module, "attends", None) == "all":
        return [f"  {name}: was trained with is_causal: false and without masks; train it again with attends: all"]
    broken = [key for key in set(own) & set(state) if not is_finite(state[key])]
    found = {"missing in": missing, "unknown to the model in": extra, "of another shape in": reshaped}
    found |= {"of another kind in": retyped, "NaN or infinite in": broken}
    return [f"  {name}: {what} the checkpoint: {files.listed(names)}" for what, names in found.items() if names]


def fill(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a fitting state into a module, in place; does nothing on the meta device, where a dry run builds models."""
    if any(tensor.is_meta for tensor in module.state_dict().values()):
        return
    module.load_state_dict(dict(state), strict=True)
