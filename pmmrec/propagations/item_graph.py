"""Users and items along their interactions, and items along a fixed graph of similar items (FREEDOM)."""
# Shapes: N items, F features, k neighbours in each, K = F k places of a list, D width.

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from pmmrec.context import BuildContext
from pmmrec.contracts import Nodes
from pmmrec.errors import CheckpointError
from pmmrec.precision import outside_autocast, widened
from pmmrec.propagations import Propagation, propagations
from pmmrec.propagations.lightgcn import LightGCN, LightGCNConfig, only
from pmmrec.propagations.neighbors import check_lists, fingerprints, gathered, list_of
from pmmrec.settings import FeatureName, PartConfig

Weight = Annotated[float, Field(gt=0)]


class NeighborsConfig(PartConfig):
    """Settings of every propagation that lists similar items."""

    neighbors: int = Field(default=10, ge=1, description="Items in a list; the item itself is one of them.")
    item_layers: int = Field(
        default=1, ge=1, le=100, description="How many lists away the vector of an item is passed."
    )
    interactions: LightGCNConfig = Field(
        default_factory=lambda: LightGCNConfig(num_layers=2), description="How vectors are passed along interactions."
    )

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nulls(cls, value: Any) -> Any:
        """`features: {NAME: null}` leaves a feature out that a recipe below it reads."""
        if not isinstance(value, Mapping) or not isinstance(value.get("features"), Mapping):
            return value
        return {**value, "features": {name: one for name, one in value["features"].items() if one is not None}}


class ItemGraphConfig(NeighborsConfig):
    """Settings of a fixed graph of similar items."""

    type: Literal["item_graph"] = "item_graph"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"features": {"clip": 1.0}, "neighbors": 2},
        {"features": {"clip": 0.9, "audio": 0.1}, "neighbors": 1, "item_layers": 2, "interactions": {"prune": 0.5}},
    )
    features: dict[FeatureName, Weight] = Field(
        min_length=1,
        description="Stored feature -> weight of its lists; they are divided by their sum. null: not read.",
    )


class ComparesItems(Propagation):
    """A propagation along interactions, and along lists of items that stored features make.

    Its state says by which stored vectors items were compared; it serves no others.
    """

    reads_graph = True

    def __init__(self, config: NeighborsConfig, features: Sequence[str], context: BuildContext) -> None:
        super().__init__()
        self.graph, self.features, self.item_layers = only(context.graphs), tuple(features), config.item_layers
        check_lists(self.graph, config.neighbors, len(features))
        self.interactions = LightGCN(config.interactions, context)
        stored = [self.graph.feature(name) for name in features]
        self.register_buffer("feature_bytes", fingerprints(stored))
        shape = len(stored), self.graph.num_items, config.neighbors
        list_FNk = torch.zeros(shape, dtype=torch.int64)
        value_FNk, has_FN = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape[:2], dtype=torch.bool)
        for place, feature in enumerate(stored if not list_FNk.is_meta else ()):
            list_FNk[place], cosine_Nk, has_FN[place] = list_of(feature, config.neighbors)
            value_FNk[place] = self.values(cosine_Nk, list_FNk[place])
        self.register_buffer("list_FNk", list_FNk, persistent=False)
        self.register_buffer("value_FNk", value_FNk, persistent=False)
        self.register_buffer("has_FN", has_FN, persistent=False)
        self.register_load_state_dict_pre_hook(_refuse_other_features)  # type: ignore[no-untyped-call]  # in torch

    @staticmethod
    @abstractmethod
    def values(cosine_Nk: Tensor, list_Nk: Tensor) -> Tensor:
        """The fixed matrix of one feature at the places of its lists."""

    def begin_epoch(self, epoch: int) -> None:
        """Draw the edges of the epoch."""
        self.interactions.begin_epoch(epoch)

    def passed(self, value_NK: Tensor, list_NK: Tensor, item_ND: Tensor) -> Tensor:
        """What the lists make of vectors of items, `(N, D)`."""
        for _ in range(self.item_layers):
            item_ND = gathered(value_NK, list_NK, item_ND)
        return item_ND


@propagations.register("item_graph", ItemGraphConfig)
class ItemGraph(ComparesItems):
    """Pass vectors along interactions, and add to items what lists of similar items make of them.

    With `S = sum over features of w_f S_f`, where row i of `S_f` holds `1 / k` at the k items whose stored vectors have
    the largest cosines to that of i, itself among them, the vector of an item is `LightGCN(x)_i + (S^n x)_i` (FREEDOM,
    arXiv 2211.06924; its rows of ones have the sum k, so `1 / k` is its symmetric normalisation). An item without the
    feature lists itself alone. No matrix of all pairs is made: lists are found in blocks and kept as `(N, k)`.

    Example:
        model:
          user_encoder: {type: user_table}
          propagation:
            type: item_graph
            features: {content: 0.9, image_content: 0.1}
            interactions: {num_layers: 2, prune: 0.8}
    """

    def __init__(self, config: ItemGraphConfig, context: BuildContext) -> None:
        names = sorted(config.features)
        super().__init__(config, names, context)
        total = sum(config.features.values())
        self.weights = [config.features[name] / total for name in names]

    @staticmethod
    def values(cosine_Nk: Tensor, list_Nk: Tensor) -> Tensor:
        del list_Nk
        return torch.full_like(cosine_Nk, 1 / cosine_Nk.shape[1])

    def forward(self, nodes: Nodes) -> Nodes:
        """Vectors of all items and users. ValueError where they are not those of the graph."""
        passed: Nodes = self.interactions(nodes)
        item_ND = widened(nodes.items.fused_UD)
        with outside_autocast(item_ND.device):
            weight_F11 = item_ND.new_tensor(self.weights)[:, None, None]
            value_NK = side_by_side(weight_F11 * self.get_buffer("value_FNk").to(item_ND.dtype))
            similar_ND = self.passed(value_NK, side_by_side(self.get_buffer("list_FNk")), item_ND)
        return replace(passed, items=replace(passed.items, fused_UD=passed.items.fused_UD + similar_ND))


def side_by_side(x_FNk: Tensor) -> Tensor:
    """The lists of all features as one, `(N, F k)`."""
    return x_FNk.transpose(0, 1).flatten(1)


def _refuse_other_features(part: ComparesItems, state: dict[str, Any], prefix: str, *_: Any) -> None:
    saved = state.get(f"{prefix}feature_bytes")
    if saved is not None and not torch.equal(saved.cpu(), part.get_buffer("feature_bytes").cpu()):
        raise CheckpointError(
            f"propagation: was learned with other vectors of {' and '.join(part.features)} than this domain stores, so "
            "its lists of similar items are others; give the domain it was trained on, with its features"
        )
