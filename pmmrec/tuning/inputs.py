"""What all trials of a search have in common: settings, data, checkpoint and weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from pmmrec.data.domain import Domain
from pmmrec.errors import RecipeError
from pmmrec.homes import expanded
from pmmrec.recipe import FinetuneRecipe, PretrainRecipe
from pmmrec.settings import Tree
from pmmrec.zoo.adapters import NONE
from pmmrec.zoo.base import index_hash
from pmmrec.zoo.checkpoint import open_checkpoint
from pmmrec.zoo.hub import find_weights, weights_hash
from pmmrec.zoo.transfer import FULL, Names

Say = Callable[[str], object]


class SearchArguments(Protocol):
    """What must be known of the arguments of a search."""

    @property
    def recipe(self) -> str: ...
    @property
    def start_from(self) -> str | None: ...
    @property
    def on(self) -> Path | None: ...
    @property
    def weights(self) -> tuple[str, ...]: ...


def search_inputs(asked: SearchArguments, recipe: FinetuneRecipe | PretrainRecipe, say: Say) -> Tree:
    """What makes trials comparable besides the space, by a word for people; told by content, so that it may move.

    All of it is opened, so that what is wrong is told now. Raises RecipeError where the arguments do not fit the
    recipe, and what opening raises.
    """
    checkpoint, loaded = None, Names()
    if isinstance(recipe, FinetuneRecipe):
        if asked.start_from is None or asked.on is None:
            raise RecipeError(f"{asked.recipe}: a fine-tuning needs --from CHECKPOINT (or none) and --on DOMAIN")
        if asked.start_from != NONE:
            checkpoint = open_checkpoint(asked.start_from, recipe.hub, parts=(), warn=say)
            loaded = (recipe.transfer or FULL).loads(checkpoint.parts)
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
    """Of the weights that people name, since a trial may ask for them, and of those that the recipe asks for."""
    named = {name: expanded(Path(folder)) for name, _, folder in (pair.partition("=") for pair in pairs)}
    return {name: weights_hash(find_weights(name, named, warn=say)) for name in sorted(wanted | named.keys())}
