"""Open a checkpoint, whole or made of adapters on a base, and read its tensors."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from pmmrec.adapters.plan import AdaptedPart, AdapterPlan, adapt, adapt_part
from pmmrec.context import Backbone, Catalogue, InteractionGraph
from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.models.build import ModelConfig, build
from pmmrec.models.recommender import Recommender
from pmmrec.models.stored import StoredItems
from pmmrec.settings import validate
from pmmrec.zoo import files
from pmmrec.zoo.base import AdapterBase, places_of
from pmmrec.zoo.folder import ADAPTER_TENSORS, PART_TENSORS, CheckpointFolder, read_index
from pmmrec.zoo.hub import fetch_entry, find_checkpoint
from pmmrec.zoo.hub.location import Warn
from pmmrec.zoo.index import BaseEntry, Index, PartEntry
from pmmrec.zoo.parts import fill, misfits, part_paths, read_part
from pmmrec.zoo.tensors import damages

HUB = Path("hub")
NONE = "none"  # in place of a checkpoint: start from scratch


class Checkpoint(CheckpointFolder):
    """A checkpoint whose tensors are read when they are asked for; their files are verified first."""

    def __init__(self, folder: Path, index: Index, model_config: ModelConfig) -> None:
        super().__init__(folder, index, model_config)
        self._verified: set[str] = set()  # folders of parts

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """The checkpoint in a folder; an `AdapterCheckpoint` where its index names a base.

        Raises what `read_index` raises.
        """
        here, index, model_config = read_index(folder)
        kind = Checkpoint if index.base is None else AdapterCheckpoint
        return kind(here, index, model_config)

    def backbones(self, parts: Collection[str] | None = None) -> dict[str, Backbone]:
        """Configuration and tokenizer of each encoder, or of those among `parts`, as `build` needs them."""
        names = [name for name in self.model_config.item_encoder.encoders if parts is None or name in parts]
        return {name: Backbone(self.sound_folder(self._entry(name)), is_pretrained=False) for name in names}

    def part_state(self, name: str, module: nn.Module) -> dict[str, Tensor]:
        """The tensors of a part under the names of `module`, with adapters merged into them.

        Raises CheckpointError where a file of the part is missing, unlisted, changed or not a safetensors file.
        """
        return read_part(self.sound_folder(self._entry(name)), module)

    def base_state(self, name: str, module: nn.Module) -> dict[str, Tensor]:
        """The tensors of a part before `complete` inserts adapters."""
        return self.part_state(name, module)

    def complete(self, recommender: Recommender) -> None:
        """Insert what a recommender has beside the tensors of `base_state`; a whole checkpoint has nothing more."""

    def objective_state(self, name: str) -> dict[str, Tensor]:
        """The tensors of an objective's head. Raises CheckpointError as `part_state` does."""
        return files.read_tensors(self.sound_folder(self.objectives[name]) / PART_TENSORS)

    def sizes(self, entry: PartEntry) -> list[int]:
        """Number of elements of each tensor of a part or head, read from the headers of its files.

        For a part that was not fetched they come from the index, if it lists them.
        """
        folder = self.folder_of(entry)
        if not _is_here(folder, entry):
            if entry.sizes is not None:
                return entry.sizes
            folder = self.sound_folder(entry)
        return files.sizes_in(folder, entry.files)

    def folder_of(self, entry: PartEntry) -> Path:
        """The folder with the files of a part or head."""
        return self.folder / entry.folder

    def sound_folder(self, entry: PartEntry) -> Path:
        """The folder of a part or head, after its files were fetched if needed and verified once.

        Raises CheckpointError where the files are not those of the index.
        """
        folder = self.folder / entry.folder
        if entry.folder not in self._verified:
            if not folder.resolve().is_relative_to(self.folder.resolve()):
                raise CheckpointError(f"{folder}: a link out of the checkpoint; copy the folder itself there")
            if not _is_here(folder, entry):
                self._fetch(entry)
            extra = set(files.files_below(folder)) - set(entry.files)
            problems = damages(folder, entry.promises)
            problems += [f"{name} is not in {files.INDEX_NAME}" for name in sorted(extra)]
            if problems:
                raise CheckpointError(f"{folder}: {'; '.join(problems)}; take a whole copy of the checkpoint")
            files.refuse_code(folder, entry.files)
            self._verified.add(entry.folder)
        return folder

    def _entry(self, name: str) -> PartEntry:
        if name not in self.parts:
            raise CheckpointError(f"{self.folder}: holds no part {name!r}; it holds {files.listed(self.parts)}")
        return self.parts[name]

    def _fetch(self, entry: PartEntry) -> None:
        """Fetch a part that was left out when the rest was fetched."""
        if self.origin.is_remote:
            fetch_entry(self.origin, entry)
        elif not (self.folder / entry.folder).exists():
            raise CheckpointError(
                f"{self.folder}: {entry.folder} is listed and not here: this copy holds some of the parts; take a "
                "copy that holds it too"
            )


class AdapterCheckpoint(Checkpoint):
    """A checkpoint that holds adapters and heads, and reads all other tensors from its base."""

    _given_place: str | None = None
    _hub = HUB

    def look_for_base(self, place: str | None, hub: Path) -> None:
        """Look for the base at `place` first, then at its recorded place, beside this checkpoint and in `hub`.

        Where the base is itself made of adapters, the same holds for their base.
        """
        self._given_place, self._hub = place, hub

    @property
    def parts(self) -> Mapping[str, PartEntry]:
        """All parts of the model: those stored in the base and those that were trained whole."""
        return {**self._base_entry.parts, **self.index.parts}

    @cached_property
    def plan(self) -> AdapterPlan:
        """Which parts have which adapters. Raises CheckpointError where the index has no valid plan."""
        try:
            return validate(AdapterPlan, self.index.adapters, f"{self.folder / files.INDEX_NAME}: adapters")
        except RecipeError as error:
            raise CheckpointError(str(error)) from error

    def part_state(self, name: str, module: nn.Module) -> dict[str, Tensor]:
        """See `Checkpoint.part_state`. Raises RecipeError for adapters that cannot be merged."""
        state = self.base_state(name, module)
        is_dry = any(tensor.is_meta for tensor in module.state_dict().values())
        if name not in self.index.adapted or is_dry or misfits(name, state, module):
            return state
        merged = copy.deepcopy(module)
        fill(merged, state)
        adapted_part = adapt_part(name, merged, self.plan)
        self._fill(name, adapted_part)
        try:
            adapted_part.merge()
        except RecipeError as error:
            raise RecipeError(f"{self.folder}: {name}: {error}") from error
        return merged.state_dict()

    def base_state(self, name: str, module: nn.Module) -> dict[str, Tensor]:
        """The tensors of a part: its own if it was trained whole, else those of the base."""
        if name in self.index.parts:
            return super().part_state(name, module)
        return self._base.read(lambda base: base.part_state(name, module))

    def complete(self, recommender: Recommender) -> None:
        """Insert the adapters into a recommender and load their tensors and heads. Raises CheckpointError."""
        try:
            adapted = adapt(recommender.parts, self.plan, fresh=self.index.parts)
        except RecipeError as error:
            raise CheckpointError(f"{self.folder}: its adapters do not suit its model: {error}") from error
        if set(adapted.parts) != set(self.index.adapted):
            raise CheckpointError(
                f"{self.folder}: holds what {files.listed(self.index.adapted)} learned, its plan adapts "
                f"{files.listed(adapted.parts)}"
            )
        for name, adapted_part in adapted.parts.items():
            self._fill(name, adapted_part)

    def folder_of(self, entry: PartEntry) -> Path:
        """See `Checkpoint.folder_of`; the folder may be in the base."""
        if self._is_of_base(entry):
            return self._base.read(lambda base: base.folder_of(entry))
        return super().folder_of(entry)

    def sound_folder(self, entry: PartEntry) -> Path:
        """See `Checkpoint.sound_folder`; the folder may be in the base."""
        if self._is_of_base(entry):
            return self._base.read(lambda base: base.sound_folder(entry))
        return super().sound_folder(entry)

    @cached_property
    def _base(self) -> AdapterBase[Checkpoint]:
        given = [] if self._given_place is None else [self._given_place]
        places = dict.fromkeys([*given, *places_of(self._base_entry, self)])
        return AdapterBase(self._base_entry, self.folder, list(places), self._open_base)

    def _open_base(self, place: str) -> Checkpoint:
        opened = open_checkpoint(place, self._hub, parts=(), warn=_ignore)
        if isinstance(opened, AdapterCheckpoint):
            opened.look_for_base(self._given_place, self._hub)
        return opened

    def _is_of_base(self, entry: PartEntry) -> bool:
        own = (*self.index.parts.values(), *self.index.objectives.values(), *self.index.adapted.values())
        return entry not in own and entry in self._base_entry.parts.values()

    @property
    def _base_entry(self) -> BaseEntry:
        if self.index.base is None:
            raise CheckpointError(f"{self.folder}: names no base")
        return self.index.base

    def _fill(self, name: str, adapted_part: AdaptedPart) -> None:
        """Load everything that was trained of a part into it; no tensor may be missing or left over."""
        folder = super().sound_folder(self.index.adapted[name])
        own = adapted_part.part.state_dict()
        wanted = {
            ADAPTER_TENSORS: {on_disk: own[key] for key, on_disk in adapted_part.adapter_names.items()},
            PART_TENSORS: {key: own[key] for key in adapted_part.head_names},
        }
        for file, targets in wanted.items():
            found = files.read_tensors(folder / file) if (folder / file).is_file() else {}
            _copy(found, targets, folder / file)


def open_checkpoint(
    place: str, hub: Path, parts: Collection[str] | None = None, *, warn: Warn = warnings.warn
) -> Checkpoint:
    """Open the checkpoint that `find_checkpoint` finds; its `origin` holds place and commit."""
    return Checkpoint.open(find_checkpoint(place, hub, parts, warn=warn))


def with_base(checkpoint: Checkpoint, base: str | None, hub: Path) -> Checkpoint:
    """The same checkpoint, after it was told where to look for its base.

    Raises RecipeError where a base is given for a checkpoint without adapters.
    """
    if isinstance(checkpoint, AdapterCheckpoint):
        checkpoint.look_for_base(base, hub)
    elif base is not None:
        raise RecipeError(f"--base {base}: has no effect, {checkpoint.folder} has no adapters; leave it out")
    return checkpoint


def starting_point(place: str, base: str | None, hub: Path, warn: Warn) -> Checkpoint | None:
    """The checkpoint that training starts from; None where `place` is `none`.

    Raises what `open_checkpoint` and `with_base` raise.
    """
    if place != NONE:
        return with_base(open_checkpoint(place, hub, parts=(), warn=warn), base, hub)
    if base is not None:
        raise RecipeError(f"--base {base}: has no effect with `--from none`; leave it out")
    return None


def load_recommender(
    checkpoint: Checkpoint,
    catalogues: Sequence[Catalogue] = (),
    graphs: Sequence[InteractionGraph] = (),
    item_encoder: StoredItems | None = None,
) -> Recommender:
    """The saved recommender in eval mode. Raises CheckpointError unless every tensor is accounted for.

    `catalogues` and `graphs` are those of the domain that it is to serve, for models that know ids or a graph.
    `item_encoder`: stands in for the item encoder, whose parts are not read.
    """
    backbones = checkpoint.backbones() if item_encoder is None else {}
    try:
        recommender = build(checkpoint.model_config, backbones, catalogues, graphs, item_encoder=item_encoder)
    except RecipeError as error:
        raise CheckpointError(f"{checkpoint.folder}: its model cannot be built: {error}") from error
    part_paths(recommender)
    if item_encoder is None and set(recommender.parts) != set(checkpoint.parts):
        raise CheckpointError(
            f"{checkpoint.folder}: holds the parts {files.listed(checkpoint.parts)}, "
            f"its model has {files.listed(recommender.parts)}"
        )
    states = {name: checkpoint.base_state(name, part) for name, part in recommender.parts.items()}
    problems = [line for name, part in recommender.parts.items() for line in misfits(name, states[name], part)]
    if problems:
        raise CheckpointError("\n".join([f"{checkpoint.folder}: does not fit its own model", *problems]))
    for name, part in recommender.parts.items():
        fill(part, states[name])
    checkpoint.complete(recommender)
    return recommender.eval()


def _is_here(folder: Path, entry: PartEntry) -> bool:
    return all((folder / name).is_file() for name in entry.files)


def _copy(found: Mapping[str, Tensor], targets: Mapping[str, Tensor], path: Path) -> None:
    """Copy the tensors found at `path` into `targets`. Raises CheckpointError unless names and shapes are the same."""
    reshaped = [
        f"{key} {tuple(found[key].shape)} for {tuple(target.shape)}"
        for key, target in targets.items()
        if key in found and found[key].shape != target.shape
    ]
    problems = {"missing": set(targets) - set(found), "unknown to the model": set(found) - set(targets)}
    problems["of another shape"] = set(reshaped)
    told = [f"{what}: {files.listed(names)}" for what, names in problems.items() if names]
    if told:
        raise CheckpointError(f"{path}: does not fit the model: {'; '.join(told)}")
    with torch.no_grad():
        for key, target in targets.items():
            target.copy_(found[key])


def _ignore(message: str) -> None:
    """Drop a warning: a base is checked by its hash, so a moving place does no harm."""
    del message
