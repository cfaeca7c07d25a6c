"""Keep adapters on disk without the checkpoint they stand on, and stand them on it again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pmmrec.adapters import adapters
from pmmrec.adapters.plan import AdaptedModel, AdaptedPart, AdapterPlan, adapt, adapt_part
from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.models import Catalogue
from pmmrec.models.build import ModelConfig, build
from pmmrec.models.ids import catalogues_in
from pmmrec.models.recommender import Recommender
from pmmrec.settings import validate
from pmmrec.zoo import files
from pmmrec.zoo.about import FORMAT, OBJECTIVES, about_heads, about_parts
from pmmrec.zoo.base import AdapterBase, base_entry, index_hash, places_of
from pmmrec.zoo.checkpoint import (
    CARD_NAME,
    PART_SETTINGS,
    PART_TENSORS,
    RECIPE_NAME,
    Checkpoint,
    TensorOwner,
    describe,
    fill,
    misfits,
    owned_tensors,
    part_paths,
    write_papers,
    write_part,
)
from pmmrec.zoo.hub import open_checkpoint
from pmmrec.zoo.index import BaseEntry, Index, PartEntry

ADAPTERS = "adapters"
ADAPTER_TENSORS = "adapter_model.safetensors"  # the name that peft looks for
HEADS_ALONE = "heads"  # type of a part that learned beside its base without adapters
HUB = Path("hub")
ITEM_TABLE = "item_table"  # the part of a model that knows items by id
NONE = "none"  # what people write to start from no checkpoint


@dataclass(frozen=True)
class AdapterSetup:
    """A model that learns beside the parts of a base checkpoint."""

    plan: AdapterPlan
    adapted: AdaptedModel
    base: BaseEntry

    def lines(self) -> list[str]:
        """What learns of each part, for people."""
        told = dict.fromkeys(self.adapted.whole, "whole")
        for name, adapted_part in self.adapted.parts.items():
            config = self.plan.by_part.get(name)
            kinds = [] if config is None else [f"{config.type} in {len(adapted_part.holders)} places"]
            told[name] = ", ".join([*kinds, *(f"{head} whole" for head in adapted_part.heads)])
        frozen = [name for name in self.base.parts if name not in told]
        return [f"{name} learns: {words}" for name, words in told.items()] + [f"{name} is frozen" for name in frozen]


def insert_adapters(
    checkpoint: Checkpoint, recommender: Recommender, plan: AdapterPlan, loaded: Collection[str]
) -> AdapterSetup:
    """Insert adapters into a recommender whose parts `loaded` come from a checkpoint.

    All other parts start fresh and learn whole. RecipeError where the plan does not suit the model.
    """
    fresh = [name for name in recommender.parts if name not in loaded]
    adapted = adapt(recommender.parts, plan, fresh)
    frozen = [name for name in recommender.parts if name not in adapted.whole]
    return AdapterSetup(plan, adapted, base_entry(checkpoint, frozen))


def save_adapters(
    folder: Path,
    *,
    setup: AdapterSetup,
    system: str,
    model_config: ModelConfig,
    recommender: Recommender,
    objectives: Mapping[str, nn.Module],
    state: Mapping[str, Tensor],
    recipe: str,
    metrics: Mapping[str, Any],
    card: str,
    provenance: Mapping[str, Any],
    replace: bool = False,
) -> None:
    """Write what was learned, and the name of the base it was learned beside, as `save_checkpoint` writes all.

    Tensors of the base are left out; they are frozen, so those that `state` holds are those of the base.
    """
    prefixes = {name: f"recommender.{path}." for name, path in part_paths(recommender).items()}
    whole = setup.adapted.whole
    owners = {name: TensorOwner(prefixes[name], recommender.parts[name]) for name in whole}
    heads = {name: head for name, head in objectives.items() if head.state_dict()}
    owners |= {f"{OBJECTIVES}/{name}": TensorOwner(f"{OBJECTIVES}.{name}.", head) for name, head in heads.items()}
    on_base = tuple(prefix for name, prefix in prefixes.items() if name not in whole)
    states = owned_tensors({key: tensor for key, tensor in state.items() if not key.startswith(on_base)}, owners)
    about = about_parts(model_config, {name: recommender.parts[name] for name in whole})
    about |= about_heads(model_config, heads)
    with files.writing(folder, replace=replace) as place:
        entries = {name: write_part(place, name, owners[name].module, states[name], about[name]) for name in owners}
        adapted = {
            name: _write_adapted_part(place, name, adapted_part, setup.plan, state, prefixes[name])
            for name, adapted_part in setup.adapted.parts.items()
        }
        index = Index(
            format=FORMAT,
            system=system,
            width=model_config.width,
            model=model_config.model_dump(mode="json"),
            parts={name: entries[name] for name in whole},
            objectives={name: entries[f"{OBJECTIVES}/{name}"] for name in heads},
            files=write_papers(place, recipe, metrics, card),
            provenance=dict(provenance),
            base=setup.base,
            adapters=setup.plan.model_dump(mode="json"),
            adapted=adapted,
        )
        files.write_json(place / files.INDEX_NAME, index.written())


class AdapterCheckpoint(Checkpoint):
    """A checkpoint that holds what was learned beside a base, and finds the rest there."""

    _given_place: str | None = None
    _hub = HUB

    def look_for_base(self, place: str | None, hub: Path) -> None:
        """Where its base is to be found: at `place`, where it was, beside this checkpoint, or in `hub`.

        Where its base is adapters too, all this holds of what those stand on.
        """
        self._given_place, self._hub = place, hub

    @property
    def parts(self) -> Mapping[str, PartEntry]:
        """All parts of its model: those of the base as they stand there, and those that learned whole."""
        return {**self._base_entry.parts, **self.index.parts}

    @cached_property
    def plan(self) -> AdapterPlan:
        """Which parts carry which adapters. Raises CheckpointError where the index makes no sense."""
        try:
            return validate(AdapterPlan, self.index.adapters, f"{self.folder / files.INDEX_NAME}: adapters")
        except RecipeError as error:
            raise CheckpointError(str(error)) from error

    def base_state(self, name: str, module: nn.Module) -> dict[str, Tensor]:
        """The tensors of a part that learned whole, else those of the base."""
        if name in self.index.parts:
            return super().part_state(name, module)
        return self._base.take(lambda base: base.part_state(name, module))

    def complete(self, recommender: Recommender) -> None:
        """Insert the adapters, and put in all that was learned. Raises CheckpointError."""
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

    def part_state(self, name: str, module: nn.Module) -> dict[str, Tensor]:
        """The tensors of a part as one without adapters, into which they are merged.

        Raises RecipeError for adapters that cannot be merged, CheckpointError as `Checkpoint.part_state` does.
        """
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

    def folder_of(self, entry: PartEntry) -> Path:
        """Where the files of a part or head stand: here or in the base."""
        if self._is_of_base(entry):
            return self._base.take(lambda base: base.folder_of(entry))
        return super().folder_of(entry)

    def sound_folder(self, entry: PartEntry) -> Path:
        """The folder of a part or head after its files were verified, here or in the base."""
        if self._is_of_base(entry):
            return self._base.take(lambda base: base.sound_folder(entry))
        return super().sound_folder(entry)

    @cached_property
    def _base(self) -> AdapterBase:
        said = [] if self._given_place is None else [self._given_place]
        places = dict.fromkeys([*said, *places_of(self._base_entry, self)])
        return AdapterBase(self._base_entry, self.folder, list(places), self._open_base)

    def _open_base(self, place: str) -> Checkpoint:
        opened = open_checkpoint(place, self._hub, parts=(), warn=_unheard)
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
        """Copy what was learned of a part, every tensor of it, into the part."""
        folder = super().sound_folder(self.index.adapted[name])
        own = adapted_part.part.state_dict()
        wanted = {
            ADAPTER_TENSORS: {on_disk: own[key] for key, on_disk in adapted_part.adapter_names.items()},
            PART_TENSORS: {key: own[key] for key in adapted_part.head_names},
        }
        for file, targets in wanted.items():
            found = files.read_tensors(folder / file) if (folder / file).is_file() else {}
            _copy(found, targets, folder / file)


def starting_point(place: str, base: str | None, hub: Path, warn: Callable[[str], object]) -> Checkpoint | None:
    """The checkpoint that a training starts from, of adapters with their base; None for `none`.

    Raises what `open_checkpoint` and `with_base` raise.
    """
    if place != NONE:
        return with_base(open_checkpoint(place, hub, parts=(), warn=warn), base, hub)
    if base is not None:
        raise RecipeError(f"--base {base}: has no effect with `--from none`; leave it out")
    return None


def with_base(checkpoint: Checkpoint, base: str | None, hub: Path) -> Checkpoint:
    """The same checkpoint, told where its base is. RecipeError for a base where the checkpoint is whole."""
    if isinstance(checkpoint, AdapterCheckpoint):
        checkpoint.look_for_base(base, hub)
    elif base is not None:
        raise RecipeError(f"--base {base}: has no effect, {checkpoint.folder} carries no adapters; leave it out")
    return checkpoint


def merge_adapters(checkpoint: Checkpoint, out: Path) -> None:
    """Write a whole checkpoint that computes what `checkpoint` computes on its base.

    Raises RecipeError where it carries no adapters, or such as cannot be merged into weights.
    """
    if not isinstance(checkpoint, AdapterCheckpoint):
        raise RecipeError(f"{checkpoint.folder}: carries no adapters, so there is nothing to merge")
    model_config, index = checkpoint.model_config, checkpoint.index
    recommender = build(model_config, checkpoint.backbones(), _catalogues_of(checkpoint))
    adapted = {name: recommender.parts[name] for name in index.adapted}
    states = {name: checkpoint.part_state(name, part) for name, part in adapted.items()}
    about = about_parts(model_config, adapted)
    problems = [line for name, part in adapted.items() for line in misfits(name, states[name], part)]
    if problems:
        raise CheckpointError("\n".join([f"{checkpoint.folder}: does not fit its own model", *problems]))
    with files.writing(out, replace=False) as place:
        for entry in (*checkpoint.parts.values(), *checkpoint.objectives.values()):
            if entry.folder not in adapted:
                for name in entry.files:
                    files.link_or_copy(checkpoint.sound_folder(entry) / name, place / entry.folder / name)
        merged = {name: write_part(place, name, part, states[name], about[name]) for name, part in adapted.items()}
        papers = {name: (checkpoint.folder / name).read_text("utf-8") for name in (RECIPE_NAME, CARD_NAME)}
        whole = Index(
            format=FORMAT,
            system=index.system,
            width=index.width,
            model=index.model,
            parts={name: merged.get(name, entry) for name, entry in checkpoint.parts.items()},
            objectives=dict(checkpoint.objectives),
            files=write_papers(place, papers[RECIPE_NAME], checkpoint.metrics, papers[CARD_NAME]),
            provenance={**index.provenance, "merged_from": index_hash(checkpoint)},
        )
        files.write_json(place / files.INDEX_NAME, whole.written())


def _catalogues_of(checkpoint: Checkpoint) -> list[Catalogue]:
    """The catalogues that a model knows by id, which it cannot be built without; none of a model that reads items."""
    entry = checkpoint.parts.get(ITEM_TABLE)
    if entry is None:
        return []
    folder = checkpoint.sound_folder(entry)
    saved = files.read_tensors(folder / PART_TENSORS).get("catalogue_bytes")
    if saved is None:
        raise CheckpointError(f"{folder}: says not which items it was learned for; train it again")
    return catalogues_in(saved)


def _write_adapted_part(
    place: Path, name: str, adapted_part: AdaptedPart, plan: AdapterPlan, state: Mapping[str, Tensor], prefix: str
) -> PartEntry:
    """Write what one part learned beside its base."""
    folder_name = f"{ADAPTERS}/{name}"
    folder = place / folder_name
    folder.mkdir(parents=True)
    names = [*adapted_part.adapter_names, *adapted_part.head_names]
    if missing := [key for key in names if prefix + key not in state]:
        raise CheckpointError(f"{name}: the state to save lacks {files.listed(missing)}")
    if adapted_part.adapter is not None and adapted_part.host is not None:
        learned = {disk: files.standalone(state[prefix + key]) for key, disk in adapted_part.adapter_names.items()}
        files.write_tensors(folder / ADAPTER_TENSORS, learned)
        adapted_part.adapter.write_settings(adapted_part.host, folder)
    if adapted_part.heads:
        kept = {key: files.standalone(state[prefix + key]) for key in adapted_part.head_names}
        files.write_tensors(folder / PART_TENSORS, kept)
    config = plan.by_part.get(name)
    kind = HEADS_ALONE if config is None else config.type
    settings = {} if config is None else config.model_dump(mode="json")
    about = {"family": adapters.name, "type": kind, "settings": settings, "learns": list(adapted_part.heads)}
    files.write_json(folder / PART_SETTINGS, {"format": FORMAT, **about})
    return describe(place, folder_name, about)


def _copy(found: Mapping[str, Tensor], targets: Mapping[str, Tensor], where: Path) -> None:
    """Copy tensors that are exactly those wanted. Raises CheckpointError."""
    reshaped = [
        f"{key} {tuple(found[key].shape)} for {tuple(target.shape)}"
        for key, target in targets.items()
        if key in found and found[key].shape != target.shape
    ]
    problems = {"missing": set(targets) - set(found), "unknown to the model": set(found) - set(targets)}
    problems["of another shape"] = set(reshaped)
    told = [f"{what}: {files.listed(names)}" for what, names in problems.items() if names]
    if told:
        raise CheckpointError(f"{where}: does not fit the model: {'; '.join(told)}")
    with torch.no_grad():
        for key, target in targets.items():
            target.copy_(found[key])


def _unheard(told: str) -> None:
    """A base is known by its hash, so no place of it can have moved."""
    del told
