"""Save a model trained with adapters, and merge adapters into a whole checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pmmrec.adapters import adapters
from pmmrec.adapters.plan import AdaptedModel, AdaptedPart, AdapterPlan, adapt
from pmmrec.context import Catalogue
from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.models.build import ModelConfig, build
from pmmrec.models.ids import catalogues_in
from pmmrec.models.recommender import Recommender
from pmmrec.zoo import files
from pmmrec.zoo.about import FORMAT, OBJECTIVES, about_heads, about_parts
from pmmrec.zoo.base import base_entry, index_hash
from pmmrec.zoo.card import ITEM_TABLE
from pmmrec.zoo.checkpoint import ADAPTER_TENSORS, AdapterCheckpoint, Checkpoint, open_checkpoint, with_base
from pmmrec.zoo.folder import CARD_NAME, PART_SETTINGS, PART_TENSORS, RECIPE_NAME
from pmmrec.zoo.index import BaseEntry, Index, PartEntry
from pmmrec.zoo.parts import TensorOwner, describe, misfits, owned_tensors, part_paths, write_part
from pmmrec.zoo.save import write_documents

ADAPTERS = "adapters"
HEADS_ALONE = "heads"  # type of a part without adapters of which some modules were trained
NONE = "none"  # in place of a checkpoint: start from scratch


@dataclass(frozen=True)
class AdapterSetup:
    """The adapters that were inserted into a model, and the base checkpoint they are trained on."""

    plan: AdapterPlan
    adapted: AdaptedModel
    base: BaseEntry

    def lines(self) -> list[str]:
        """One line per part that says what of it is trained."""
        trained = dict.fromkeys(self.adapted.whole, "whole")
        for name, adapted_part in self.adapted.parts.items():
            config = self.plan.by_part.get(name)
            kinds = [] if config is None else [f"{config.type} in {len(adapted_part.holders)} places"]
            trained[name] = ", ".join([*kinds, *(f"{head} whole" for head in adapted_part.heads)])
        frozen = [name for name in self.base.parts if name not in trained]
        return [f"{name} learns: {words}" for name, words in trained.items()] + [f"{name} is frozen" for name in frozen]


def insert_adapters(
    checkpoint: Checkpoint, recommender: Recommender, plan: AdapterPlan, loaded: Collection[str]
) -> AdapterSetup:
    """Insert adapters into a recommender whose parts `loaded` were loaded from a checkpoint.

    All other parts start fresh and are trained whole. Raises RecipeError where the plan does not fit the model.
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
    """Write the tensors that were trained and a reference to the base; arguments and errors as for `save_checkpoint`.

    The frozen tensors of the base are not written, since the base holds them.
    """
    prefixes = {name: f"recommender.{path}." for name, path in part_paths(recommender).items()}
    whole = setup.adapted.whole
    owners = {name: TensorOwner(prefixes[name], recommender.parts[name]) for name in whole}
    heads = {name: head for name, head in objectives.items() if head.state_dict()}
    owners |= {f"{OBJECTIVES}/{name}": TensorOwner(f"{OBJECTIVES}.{name}.", head) for name, head in heads.items()}
    base_prefixes = tuple(prefix for name, prefix in prefixes.items() if name not in whole)
    states = owned_tensors({key: tensor for key, tensor in state.items() if not key.startswith(base_prefixes)}, owners)
    about = about_parts(model_config, {name: recommender.parts[name] for name in whole})
    about |= about_heads(model_config, heads)
    with files.writing(folder, replace=replace) as draft:
        entries = {name: write_part(draft, name, owners[name].module, states[name], about[name]) for name in owners}
        adapted = {
            name: _write_adapted_part(draft, name, adapted_part, setup.plan, state, prefixes[name])
            for name, adapted_part in setup.adapted.parts.items()
        }
        index = Index(
            format=FORMAT,
            system=system,
            width=model_config.width,
            model=model_config.model_dump(mode="json"),
            parts={name: entries[name] for name in whole},
            objectives={name: entries[f"{OBJECTIVES}/{name}"] for name in heads},
            files=write_documents(draft, recipe, metrics, card),
            provenance=dict(provenance),
            base=setup.base,
            adapters=setup.plan.model_dump(mode="json"),
            adapted=adapted,
        )
        files.write_json(draft / files.INDEX_NAME, index.written())


def starting_point(place: str, base: str | None, hub: Path, warn: Callable[[str], object]) -> Checkpoint | None:
    """The checkpoint that training starts from; None where `place` is `none`.

    Raises what `open_checkpoint` and `with_base` raise.
    """
    if place != NONE:
        return with_base(open_checkpoint(place, hub, parts=(), warn=warn), base, hub)
    if base is not None:
        raise RecipeError(f"--base {base}: has no effect with `--from none`; leave it out")
    return None


def merge_adapters(checkpoint: Checkpoint, out: Path) -> None:
    """Merge adapters into their base and write a whole checkpoint that computes the same.

    Raises RecipeError where `checkpoint` has no adapters, or adapters that cannot be merged.
    """
    if not isinstance(checkpoint, AdapterCheckpoint):
        raise RecipeError(f"{checkpoint.folder}: has no adapters, so there is nothing to merge")
    model_config, index = checkpoint.model_config, checkpoint.index
    recommender = build(model_config, checkpoint.backbones(), _catalogues_of(checkpoint))
    adapted = {name: recommender.parts[name] for name in index.adapted}
    states = {name: checkpoint.part_state(name, part) for name, part in adapted.items()}
    about = about_parts(model_config, adapted)
    problems = [line for name, part in adapted.items() for line in misfits(name, states[name], part)]
    if problems:
        raise CheckpointError("\n".join([f"{checkpoint.folder}: does not fit its own model", *problems]))
    with files.writing(out, replace=False) as draft:
        for entry in (*checkpoint.parts.values(), *checkpoint.objectives.values()):
            if entry.folder not in adapted:
                for name in entry.files:
                    files.link_or_copy(checkpoint.sound_folder(entry) / name, draft / entry.folder / name)
        merged = {name: write_part(draft, name, part, states[name], about[name]) for name, part in adapted.items()}
        documents = {name: (checkpoint.folder / name).read_text("utf-8") for name in (RECIPE_NAME, CARD_NAME)}
        whole = Index(
            format=FORMAT,
            system=index.system,
            width=index.width,
            model=index.model,
            parts={name: merged.get(name, entry) for name, entry in checkpoint.parts.items()},
            objectives=dict(checkpoint.objectives),
            files=write_documents(draft, documents[RECIPE_NAME], checkpoint.metrics, documents[CARD_NAME]),
            provenance={**index.provenance, "merged_from": index_hash(checkpoint)},
        )
        files.write_json(draft / files.INDEX_NAME, whole.written())


def _catalogues_of(checkpoint: Checkpoint) -> list[Catalogue]:
    """The catalogues whose ids the model looks up, needed to build it; empty for a model that reads content."""
    entry = checkpoint.parts.get(ITEM_TABLE)
    if entry is None:
        return []
    folder = checkpoint.sound_folder(entry)
    saved = files.read_tensors(folder / PART_TENSORS).get("catalogue_bytes")
    if saved is None:
        raise CheckpointError(f"{folder}: does not say which items it was trained for; train it again")
    return catalogues_in(saved)


def _write_adapted_part(
    root: Path, name: str, adapted_part: AdaptedPart, plan: AdapterPlan, state: Mapping[str, Tensor], prefix: str
) -> PartEntry:
    """Write the adapters and trained modules of one part."""
    folder_name = f"{ADAPTERS}/{name}"
    folder = root / folder_name
    folder.mkdir(parents=True)
    names = [*adapted_part.adapter_names, *adapted_part.head_names]
    if missing := [key for key in names if prefix + key not in state]:
        raise CheckpointError(f"{name}: the state to save lacks {files.listed(missing)}")
    if adapted_part.adapter is not None and adapted_part.host is not None:
        tensors = {disk: files.standalone(state[prefix + key]) for key, disk in adapted_part.adapter_names.items()}
        files.write_tensors(folder / ADAPTER_TENSORS, tensors)
        adapted_part.adapter.write_settings(adapted_part.host, folder)
    if adapted_part.heads:
        kept = {key: files.standalone(state[prefix + key]) for key in adapted_part.head_names}
        files.write_tensors(folder / PART_TENSORS, kept)
    config = plan.by_part.get(name)
    kind = HEADS_ALONE if config is None else config.type
    settings = {} if config is None else config.model_dump(mode="json")
    about = {"family": adapters.name, "type": kind, "settings": settings, "learns": list(adapted_part.heads)}
    files.write_json(folder / PART_SETTINGS, {"format": FORMAT, **about})
    return describe(root, folder_name, about)
