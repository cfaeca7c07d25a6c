"""Collect the inputs that all trials of a search share: recipe, data, checkpoint and weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from pmmrec.data.domain import Domain
from pmmrec.errors import RecipeError
from pmmrec.homes import expanded
from pmmrec.recipe import FinetuneRecipe, PretrainRecipe
from pmmrec.settings import Tree
from pmmrec.zoo.base import index_hash
from pmmrec.zoo.checkpoint import NONE, open_checkpoint
from pmmrec.zoo.hub import find_weights, weights_hash
from pmmrec.zoo.transfer import FULL, Names

Say = Callable[[str], object]


class SearchArguments(Protocol):
    """The arguments of a search that decide which inputs it uses."""

    @property
    def recipe(self) -> str: ...
    @property
    def start_from(self) -> str | None: ...
    @property
    def on(self) -> Path | None: ...
    @property
    def weights(self) -> tuple[str, ...]: ...


def search_inputs(asked: SearchArguments, recipe: FinetuneRecipe | PretrainRecipe, say: Say) -> Tree:
    """The inputs that must be equal for trials to be comparable, by a name for people.

    Inputs are identified by content, so they may move. All are opened here, so that errors appear before any trial.
    Raises RecipeError if the arguments do not fit the recipe, and what opening raises.
    """
    checkpoint, loaded = None, Names()
    if isinstance(recipe, FinetuneRecipe):
        if asked.start_from is None or asked.on is None:
            raise RecipeError(f"{asked.recipe}: a fine-tuning needs --from CHECKPOINT (or none) and --on DOMAIN")
        if asked.start_from != NONE:
            checkpoint = open_checkpoint(asked.start_from, recipe.hub, parts=(), warn=say)
            loaded = (recipe.transfer or FULL).loads(checkpoint.part_groups)
        model, folders = recipe.model_from(checkpoint), [asked.on]
    else:
        if asked.start_from is not None or asked.on is not None:
            raise RecipeError(f"{asked.recipe}: a pretraining takes neither --from nor --on; leave them out")
        model, folders = recipe.model, list(recipe.data.sources)
    domains = [Domain.open(folder) for folder in folders]
    encoders = model.item_encoder.encoders.items()
    wanted = {encoder.weights for part, encoder in encoders if part not in loaded and encoder.weights is not None}
    return {
        "recipe": recipe.told(),
        "checkpoint": NONE if checkpoint is None else index_hash(checkpoint),
        "weights": _hashes(wanted, asked.weights, say),
        "data": {domain.name: domain.fingerprint for domain in domains},
    }


def _hashes(wanted: set[str], pairs: Iterable[str], say: Say) -> dict[str, str]:
    """Hashes of the weights that the user named, which a trial may use, and of those that the recipe uses."""
    named = {name: expanded(Path(folder)) for name, _, folder in (pair.partition("=") for pair in pairs)}
    return {name: weights_hash(find_weights(name, named, warn=say)) for name in sorted(wanted | named.keys())}
