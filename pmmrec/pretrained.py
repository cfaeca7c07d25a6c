"""Vectors of items as a pretrained encoder gives them, before any training: what two-stage systems store."""
# N items of the domain, T layers, H width of a backbone.

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pmmrec.context import BuildContext
from pmmrec.data.contents import MAX_UNREADABLE
from pmmrec.data.domain import Domain
from pmmrec.data.items import ItemReader
from pmmrec.errors import RecipeError
from pmmrec.evaluation.item_features import LAYERS, POOLED, item_features
from pmmrec.homes import CACHE, expanded
from pmmrec.modality import Modality
from pmmrec.models import ItemEncoder, item_encoders
from pmmrec.models.build import ModelConfig
from pmmrec.progress import bars
from pmmrec.recipe import recipe_tree
from pmmrec.settings import validate
from pmmrec.shipped import find_recipe, shipped_recipes
from pmmrec.train.prepare import find_backbones
from pmmrec.train.threads import threads_for


def is_recipe(source: str) -> bool:
    """Whether a name is that of a recipe, in a file or shipped, and not of a folder."""
    return Path(source).suffix in (".yaml", ".yml") or (source in shipped_recipes() and not Path(source).is_dir())


def pretrained_features(
    recipe: str,
    domain: Domain,
    vectors: str,
    *,
    cache: Path | str | None = None,
    max_unreadable: float = MAX_UNREADABLE,
    weights: Mapping[str, Path] = MappingProxyType({}),
    warn: Callable[[str], None],
) -> NDArray[np.float32]:
    """What the pretrained encoder of a recipe says of all items: `FIELD.pooled` `(N, H)` or `FIELD.layers` `(N, T, H)`.

    NaN where an item lacks the field. `weights`: folders of pretrained weights, by the name that the recipe gives them.
    Raises RecipeError where the recipe has no such encoder with pretrained weights.
    """
    tree = recipe_tree(find_recipe(recipe)).get("model")
    if tree is None:
        raise RecipeError(f"{recipe}: has no model of its own; name a recipe with an encoder, such as zoo/small")
    config = _with_one_encoder(recipe, validate(ModelConfig, tree, f"{recipe}: model"), vectors)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with threads_for(config), bars() as progress:
        backbones = find_backbones(config, Path(), weights, warn=warn)
        encoder_class: Any = item_encoders.part_class(config.item_encoder)
        encoder: ItemEncoder = encoder_class(config.item_encoder, BuildContext(config.width, backbones)).to(device)
        for warning in encoder.warnings:
            warn(warning)
        reader = ItemReader([domain], encoder.reads, expanded(Path(cache or CACHE)), progress, max_unreadable, warn)
        for warning in reader.warnings:
            warn(warning)
        return item_features(encoder, reader, 0, vectors, device, progress)


def _with_one_encoder(recipe: str, model: ModelConfig, vectors: str) -> ModelConfig:
    """The model with the encoder alone that reads the field."""
    field, _, kind = vectors.rpartition(".")
    of_one_field = ("text_encoder", "vision_encoder")
    found = model.item_encoder.encoders.items()
    encoders = {name: one for name, one in found if one.weights is not None and name in of_one_field}
    part = "vision_encoder" if field == Modality.IMAGE else "text_encoder"
    if part not in encoders or f".{kind}" not in (POOLED, LAYERS):
        fields = [Modality.IMAGE.value if name == "vision_encoder" else Modality.TEXT.value for name in encoders]
        asked = " or ".join(f"{one}{suffix}" for one in fields for suffix in (POOLED, LAYERS))
        raise RecipeError(
            f"--vectors {vectors}: {recipe} has learned nothing yet, and gives what a pretrained encoder says alone: "
            f"{asked or 'it has none'}"
        )
    return model.model_copy(update={"item_encoder": model.item_encoder.keeping([part])})
