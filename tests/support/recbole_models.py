"""Models of RecBole with random weights, and the same weights in ours."""
# Shapes: B users, L inputs, N items, D width.

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from pmmrec.context import Catalogue
from pmmrec.contracts import History, ItemVectors
from pmmrec.models.build import ModelConfig, build
from pmmrec.models.recommender import Recommender

NUM_ITEMS, WIDTH, LENGTH = 30, 16, 6
FIELDS = {
    "USER_ID_FIELD": "user_id",
    "ITEM_ID_FIELD": "item_id",
    "LIST_SUFFIX": "_list",
    "ITEM_LIST_LENGTH_FIELD": "item_length",
    "NEG_PREFIX": "neg_",
    "MAX_ITEM_LIST_LENGTH": LENGTH,
    "device": "cpu",
    "MASK_ITEM_SEQ": "mask_item_seq",
    "POS_ITEMS": "pos_items",
    "NEG_ITEMS": "neg_items",
    "MASK_INDEX": "mask_index",
}
SIZES = {"hidden_size": WIDTH, "embedding_size": WIDTH, "inner_size": 4 * WIDTH}
EPS = {"layer_norm_eps": 1e-12}  # its default, which a plain reader of YAML takes for a string


class Items:
    """All that a model of RecBole asks of a data set: how many items there are, padding among them."""

    def num(self, field: str) -> int:
        return NUM_ITEMS + 1


def peer(name: str, **settings: Any) -> Any:
    """A model of RecBole with its own default settings but for its sizes, in float64, with weights that all matter."""
    models = importlib.import_module("recbole.model.sequential_recommender")
    folder = Path(importlib.import_module("recbole").__path__[0])
    defaults = yaml.safe_load((folder / "properties/model" / f"{name}.yaml").read_text())
    torch.manual_seed(0)
    model = getattr(models, name)({**defaults, **FIELDS, **SIZES, **EPS, **settings}, Items()).double().eval()
    with torch.no_grad():
        for name_of, weight in model.named_parameters():
            is_norm = weight.dim() == 1 and name_of.endswith("weight")
            weight.normal_(float(is_norm), 0.3)
    return model


def ours(user_encoder: Mapping[str, Any]) -> Recommender:
    """Our model of item ids with this user encoder, in float64."""
    config = ModelConfig.model_validate(
        {"width": WIDTH, "item_encoder": {"type": "ids"}, "user_encoder": dict(user_encoder)}
    )
    return build(config, {}, [Catalogue("films", NUM_ITEMS, "")]).double().eval()


def copied(weights: Mapping[str, Tensor], module: nn.Module) -> None:
    """Load weights into a module: every one of its weights must be given."""
    module.load_state_dict(dict(weights))


def transformer_weights(theirs: Any, encoder: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """The blocks of a `TransformerEncoder` of RecBole under the names of our `TransformerBlock`s."""
    weights: dict[str, Tensor] = {}
    for place, layer in enumerate(encoder.layer):
        attention, feed_forward, block = layer.multi_head_attention, layer.feed_forward, f"{prefix}blocks.{place}."
        maps = (attention.query, attention.key, attention.value)
        for kind in ("weight", "bias"):
            weights[f"{block}attention.qkv.{kind}"] = torch.cat([getattr(one, kind) for one in maps])
            weights[f"{block}attention.out.{kind}"] = getattr(attention.dense, kind)
            weights[f"{block}attention_norm.{kind}"] = getattr(attention.LayerNorm, kind)
            weights[f"{block}expand.{kind}"] = getattr(feed_forward.dense_1, kind)
            weights[f"{block}contract.{kind}"] = getattr(feed_forward.dense_2, kind)
            weights[f"{block}feed_forward_norm.{kind}"] = getattr(feed_forward.LayerNorm, kind)
    return weights | {"norm.weight": theirs.LayerNorm.weight, "norm.bias": theirs.LayerNorm.bias}


def histories(lengths: Sequence[int]) -> list[Tensor]:
    """Random histories of these lengths; items count from 0."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(NUM_ITEMS, (length,), generator=generator) for length in lengths]


def left_padded(rows: Sequence[Tensor], length: int = LENGTH) -> Tensor:
    """The items of RecBole, `(B, L)`: they count from 1, and 0 is padding on the left."""
    padded = torch.zeros(len(rows), length, dtype=torch.int64)
    for row, items in zip(padded, rows, strict=True):
        row[length - len(items) :] = items + 1
    return padded


def right_padded(rows: Sequence[Tensor], length: int = LENGTH) -> Tensor:
    """The items of RecBole, `(B, L)`, with the padding on the right as its data sets have it."""
    padded = torch.zeros(len(rows), length, dtype=torch.int64)
    for row, items in zip(padded, rows, strict=True):
        row[: len(items)] = items + 1
    return padded


def our_scores(model: Recommender, rows: Sequence[Tensor]) -> Tensor:
    """Scores of all items for each history, `(B, N)`."""
    padded_BL = left_padded(rows, max(1, *map(len, rows)))
    items = ItemVectors(model.item_encoder.item_table.vector.weight)
    history = History.of(items, (padded_BL - 1).clamp(min=0), padded_BL > 0)
    return model.score(model.query(history), items)


def their_scores(model: Any, padded_BL: Tensor, lengths: Sequence[int]) -> Tensor:
    """Scores of all items for each history, `(B, N)`, without that of the padding, which RecBole scores as an item."""
    interaction = {"item_id_list": padded_BL, "item_length": torch.tensor(lengths)}
    return model.full_sort_predict(interaction)[:, 1:]
