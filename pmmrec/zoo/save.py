"""Save a trained recommender as a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pmmrec.models.build import ModelConfig
from pmmrec.models.recommender import Recommender
from pmmrec.zoo import files
from pmmrec.zoo.about import FORMAT, OBJECTIVES, about_heads, about_parts
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

    Raises RecipeError where `folder` exists, CheckpointError where tensors are missing, belong to no part or share
    memory, MachineError where the disk cannot be written.
    """
    owners = {
        name: TensorOwner(f"recommender.{path}.", recommender.parts[name])
        for name, path in part_paths(recommender).items()
    }
    heads = {name: head for name, head in objectives.items() if head.state_dict()}
    owners |= {f"{OBJECTIVES}/{name}": TensorOwner(f"{OBJECTIVES}.{name}.", head) for name, head in heads.items()}
    states = owned_tensors(state, owners)
    about = about_parts(model_config, recommender.parts) | about_heads(model_config, heads)
    with files.writing(folder, replace=replace) as draft:
        entries = {name: write_part(draft, name, owners[name].module, states[name], about[name]) for name in owners}
        index = Index(
            format=FORMAT,
            system=system,
            width=model_config.width,
            model=model_config.model_dump(mode="json"),
            parts={name: entries[name] for name in recommender.parts},
            objectives={name: entries[f"{OBJECTIVES}/{name}"] for name in heads},
            files=write_documents(draft, recipe, metrics, card),
            provenance=dict(provenance),
        )
        files.write_json(draft / files.INDEX_NAME, index.written())


def write_documents(folder: Path, recipe: str, metrics: Mapping[str, Any], card: str) -> dict[str, str]:
    """Write recipe, metrics and card of a checkpoint; the SHA-256 of each file by name."""
    (folder / RECIPE_NAME).write_text(recipe, encoding="utf-8")
    (folder / CARD_NAME).write_text(card, encoding="utf-8")
    files.write_json(folder / METRICS_NAME, metrics)
    return {name: files.sha256_of(folder / name) for name in (RECIPE_NAME, METRICS_NAME, CARD_NAME)}
