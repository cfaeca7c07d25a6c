"""Merge adapters into their base checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pmmrec.context import Catalogue, InteractionGraph, ItemFeature
from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.models.build import build
from pmmrec.row_table import catalogues_in
from pmmrec.zoo import files
from pmmrec.zoo.about import FORMAT, about_parts
from pmmrec.zoo.base import index_hash
from pmmrec.zoo.card import ITEM_TABLE, USER_TABLE
from pmmrec.zoo.checkpoint import AdapterCheckpoint, Checkpoint
from pmmrec.zoo.folder import CARD_NAME, PART_TENSORS, RECIPE_NAME
from pmmrec.zoo.index import Index
from pmmrec.zoo.parts import misfits, write_part
from pmmrec.zoo.save import write_documents


def merge_adapters(checkpoint: Checkpoint, out: Path) -> None:
    """Merge adapters into their base and write a whole checkpoint that computes the same.

    Raises RecipeError where `checkpoint` has no adapters, or adapters that cannot be merged.
    """
    if not isinstance(checkpoint, AdapterCheckpoint):
        raise RecipeError(f"{checkpoint.folder}: has no adapters, so there is nothing to merge")
    model_config, index = checkpoint.model_config, checkpoint.index
    catalogues = _catalogues_of(checkpoint)
    graphs = [InteractionGraph(c.num_users, c.num_items, _no_interactions, _no_vectors(c)) for c in catalogues]
    recommender = build(model_config, checkpoint.backbones(), catalogues, graphs)
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
    """The domains whose items or users the model looks up, needed to build it; empty for a model that knows no ids."""
    tables = [entry for name, entry in checkpoint.parts.items() if name == ITEM_TABLE or entry.type == USER_TABLE]
    found: list[Catalogue] = []
    for entry in sorted(tables, key=lambda entry: entry.type == USER_TABLE):  # the last one wins: it tells of both
        folder = checkpoint.sound_folder(entry)
        tensors = files.read_tensors(folder / PART_TENSORS)
        saved = next((tensor for name, tensor in tensors.items() if name.endswith("catalogue_bytes")), None)
        if saved is None:
            raise CheckpointError(f"{folder}: does not say which domains it was trained for; train it again")
        found = catalogues_in(saved)
    return found


def _no_interactions() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Those of a graph that is built and never read: adapters are in other parts."""
    return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)


def _no_vectors(catalogue: Catalogue) -> Callable[[str], ItemFeature]:
    """The features of such a graph: no item has a vector."""
    none_N = np.zeros(catalogue.num_items, dtype=bool)
    return lambda _: ItemFeature("", lambda: (np.zeros((len(none_N), 1)), none_N))
