"""Count the multiply-adds of one user's forward, as the papers' tables of costs do."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from pmmrec.bench.counted import MetaCounter
from pmmrec.errors import RecipeError
from pmmrec.models.build import build
from pmmrec.recipe import FinetuneRecipe, read_recipe
from pmmrec.shipped import find_recipe
from pmmrec.train.meta_items import item_inputs
from pmmrec.train.prepare import Sources, find_backbones, start_backbones


def multiply_adds(recipe_name: str, overrides: Sequence[str], domain: Path) -> int:
    """Of a window's items, each with one negative, with the longest texts, and of the user encoder over its inputs.

    As MoRec (https://arxiv.org/abs/2303.13835) counts them. Kept states and vectors do not count: every item passes its
    whole encoder. Only products are counted.
    """
    recipe = read_recipe(FinetuneRecipe, find_recipe(recipe_name), overrides)
    model = recipe.model
    if model is None:
        raise RecipeError(f"{recipe_name}: has no model of its own, so its work cannot be counted without a checkpoint")
    sources = Sources.open([domain], recipe.data)
    with tempfile.TemporaryDirectory() as scratch:
        start_backbones(model, Path(scratch), sources.train_texts)
        backbones = find_backbones(model, Path(scratch), {}, None, warn=lambda _: None)
        with torch.device("meta"):
            recommender = build(model, backbones, sources.catalogues, sources.graphs, recipe.seed)
    counter, num_inputs = MetaCounter(recommender, model.width), max(recipe.data.kind.num_inputs, 1)
    item = counter.items(item_inputs(recommender, num_items=1)).forward
    user = counter.history(min(num_inputs, recommender.user_encoder.max_inputs), last_alone=False).forward
    return round((2 * (num_inputs + 1) * item + user) / 2)
