"""Save a trained recommender as a checkpoint, whole or as adapters on a base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pmmrec.models.build import ModelConfig
from pmmrec.models.recommender import Recommender
from pmmrec.zoo import files
from pmmrec.zoo.about import FORMAT, OBJECTIVES, about_heads, about_parts
from pmmrec.zoo.adapters import AdapterSetup, write_adapters
from pmmrec.zoo.folder import CARD_NAME, METRICS_NAME, RECIPE_NAME
from pmmrec.zoo.index import Index
from pmmrec.zoo.parts import TensorOwner, owned_tensors, part_paths, write_part


def save_checkpoint(
    folder: Path,
    *,
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
    setup: AdapterSetup | None = None,
) -> None:
    """Write a checkpoint to `folder`, completely or not at all.

    Args:
        folder: A new folder; with `replace` it may hold a checkpoint, which is kept until the new one is complete.
        system: Name of the recommender system.
        model_config: Settings that `recommender` was built from.
        recommender: The model. Its tensors are taken from `state`, since a sharded module holds only its own share.
        objectives: Modules of the objectives by name; those with tensors are saved as heads.
        state: State dict of the whole run, with names `recommender.<path>` and `objectives.<name>.<path>`.
        recipe: YAML of the run.
        metrics: Figures of the run.
        card: Markdown of the model card.
        provenance: What the run records about itself.
        replace: Whether an existing checkpoint may be replaced.
        setup: For a model trained with adapters. Of a part with adapters only what was trained is written, and the
            index names the base, which holds the frozen tensors.

    Raises RecipeError where `folder` exists, CheckpointError where tensors are missing, belong to no part or share
    memory, MachineError where the disk cannot be written.
    """
    prefixes = {name: f"recommender.{path}." for name, path in part_paths(recommender).items()}
    whole = {name: part for name, part in recommender.parts.items() if setup is None or name in setup.adapted.whole}
    heads = {name: head for name, head in objectives.items() if head.state_dict()}
    owners = {name: TensorOwner(prefixes[name], part) for name, part in whole.items()}
    owners |= {f"{OBJECTIVES}/{name}": TensorOwner(f"{OBJECTIVES}.{name}.", head) for name, head in heads.items()}
    in_base = tuple(prefix for name, prefix in prefixes.items() if name not in whole)
    states = owned_tensors({key: tensor for key, tensor in state.items() if not key.startswith(in_base)}, owners)
    about = about_parts(model_config, whole) | about_heads(model_config, heads)
    with files.writing(folder, replace=replace) as draft:
        entries = {name: write_part(draft, name, owners[name].module, states[name], about[name]) for name in owners}
        index = Index(
            format=FORMAT,
            system=system,
            width=model_config.width,
            model=model_config.model_dump(mode="json"),
            parts={name: entries[name] for name in whole},
            objectives={name: entries[f"{OBJECTIVES}/{name}"] for name in heads},
            files=write_documents(draft, recipe, metrics, card),
            provenance=dict(provenance),
            base=None if setup is None else setup.base,
            adapters={} if setup is None else setup.plan.model_dump(mode="json"),
            adapted={} if setup is None else write_adapters(draft, setup, state, prefixes),
        )
        files.write_json(draft / files.INDEX_NAME, index.written())


def write_documents(folder: Path, recipe: str, metrics: Mapping[str, Any], card: str) -> dict[str, str]:
    """Write recipe, metrics and card of a checkpoint; the SHA-256 of each file by name."""
    (folder / RECIPE_NAME).write_text(recipe, encoding="utf-8")
    (folder / CARD_NAME).write_text(card, encoding="utf-8")
    files.write_json(folder / METRICS_NAME, metrics)
    return {name: files.sha256_of(folder / name) for name in (RECIPE_NAME, METRICS_NAME, CARD_NAME)}
