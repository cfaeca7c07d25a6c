"""Insert adapters into a model, and write the trained ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pmmrec.adapters import adapters
from pmmrec.adapters.plan import AdaptedModel, AdapterPlan, adapt
from pmmrec.errors import CheckpointError
from pmmrec.models.recommender import Recommender
from pmmrec.zoo import files
from pmmrec.zoo.about import FORMAT
from pmmrec.zoo.base import base_entry
from pmmrec.zoo.folder import ADAPTER_TENSORS, PART_SETTINGS, PART_TENSORS, CheckpointFolder
from pmmrec.zoo.index import BaseEntry, PartEntry
from pmmrec.zoo.parts import part_entry

ADAPTERS = "adapters"
HEADS_ALONE = "heads"  # type of a part without adapters of which some modules were trained


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
    checkpoint: CheckpointFolder, recommender: Recommender, plan: AdapterPlan, loaded: Collection[str]
) -> AdapterSetup:
    """Insert adapters into a recommender whose parts `loaded` were loaded from a checkpoint.

    All other parts start fresh and are trained whole. Raises RecipeError where the plan does not fit the model.
    """
    fresh = [name for name in recommender.parts if name not in loaded]
    adapted = adapt(recommender.parts, plan, fresh)
    frozen = [name for name in recommender.parts if name not in adapted.whole]
    return AdapterSetup(plan, adapted, base_entry(checkpoint, frozen))


def write_adapters(
    root: Path, setup: AdapterSetup, state: Mapping[str, Tensor], prefixes: Mapping[str, str]
) -> dict[str, PartEntry]:
    """Write the adapters and trained modules of each part below `root`; their index entries by part.

    `prefixes`: what the names of a part begin with in `state`, by part. Raises CheckpointError for missing tensors.
    """
    return {name: _write_adapted_part(root, setup, name, state, prefixes[name]) for name in setup.adapted.parts}


def _write_adapted_part(
    root: Path, setup: AdapterSetup, name: str, state: Mapping[str, Tensor], prefix: str
) -> PartEntry:
    adapted_part, config = setup.adapted.parts[name], setup.plan.by_part.get(name)
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
    kind = HEADS_ALONE if config is None else config.type
    settings = {} if config is None else config.model_dump(mode="json")
    about = {"family": adapters.name, "type": kind, "settings": settings, "learns": list(adapted_part.heads)}
    files.write_json(folder / PART_SETTINGS, {"format": FORMAT, **about})
    return part_entry(root, folder_name, about)
