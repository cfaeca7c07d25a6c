"""Users and items along their interactions, and items along a graph of similar items that is learned (LATTICE)."""
# Shapes: N items, F features, k neighbours in each, K places of a list, D width.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pmmrec.context import BuildContext
from pmmrec.contracts import Nodes
from pmmrec.precision import outside_autocast, widened
from pmmrec.propagations import propagations
from pmmrec.propagations.item_graph import ComparesItems, NeighborsConfig, side_by_side
from pmmrec.propagations.neighbors import cosines, nearest, normalized
from pmmrec.settings import FeatureName


class LearnedItemGraphConfig(NeighborsConfig):
    """Settings of a learned graph of similar items."""

    type: Literal["learned_item_graph"] = "learned_item_graph"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"features": {"clip": "image"}, "neighbors": 2},
        {
            "features": {"clip": "image", "audio": "sound"},
            "neighbors": 2,
            "item_layers": 2,
            "learned": 0.5,
            "interactions": {"normalization": "mean"},
        },
    )
    features: dict[FeatureName, str] = Field(
        min_length=1,
        description="Stored feature -> stream of items that is learned from it and compared anew. null: not read.",
    )
    learned: float = Field(default=0.1, gt=0, lt=1, description="Share of the learned graph; the rest is fixed.")


@propagations.register("learned_item_graph", LearnedItemGraphConfig)
class LearnedItemGraph(ComparesItems):
    """Pass vectors along interactions, and add to items what lists of learned similar items make of them.

    `S_f` holds cosines of a stored feature at the k nearest items of each, itself among them, `D^-1/2 S D^-1/2` by the
    sums of rows; `L_f` holds those of the stream that is learned from it. With `w` a softmax of learned numbers, one
    of each feature, `S = a norm(sum of w_f L_f) + (1 - a) sum of w_f S_f`, and the vector of an item is
    `LightGCN(x)_i + (S^n x)_i / |(S^n x)_i|` (LATTICE, arXiv 2104.09036). The lists of `L` are found at the first step
    of each epoch and kept with the model; before training they are those of the stored features. Differs from the
    released code: cosines and w have a gradient in every step, not in one of each epoch, and a row whose sum is not
    positive has zeros and not NaN. An item without the feature lists itself alone.

    Example:
        model:
          item_encoder:
            type: with_streams
            streams: {text: {features: {content: 384}}, image: {features: {image_content: 512}}}
          user_encoder: {type: user_table}
          propagation:
            type: learned_item_graph
            features: {content: text, image_content: image}
            interactions: {num_layers: 2, normalization: mean}
    """

    def __init__(self, config: LearnedItemGraphConfig, context: BuildContext) -> None:
        names = sorted(config.features)
        super().__init__(config, names, context)
        self.share, self.stream_names = config.learned, [config.features[name] for name in names]
        self.streams = frozenset(self.stream_names)
        self.logit = nn.Parameter(torch.zeros(len(names))) if len(names) > 1 else None
        self.register_buffer("learned_FNk", self.get_buffer("list_FNk").clone())
        self.register_buffer("listed_in", torch.zeros((), dtype=torch.int64))
        self._begun: int | None = None  # the epoch whose lists are still to be found

    @staticmethod
    def values(cosine_Nk: Tensor, list_Nk: Tensor) -> Tensor:
        return normalized(cosine_Nk, list_Nk)

    def begin_epoch(self, epoch: int) -> None:
        """Draw the edges of the epoch; its first step finds the lists, unless they were kept with the model."""
        super().begin_epoch(epoch)
        listed_in = self.get_buffer("listed_in")
        self._begun = epoch if not listed_in.is_meta and int(listed_in) != epoch else None

    def forward(self, nodes: Nodes) -> Nodes:
        """Vectors of all items and users. ValueError where they are not those of the graph, or a stream is missing."""
        passed: Nodes = self.interactions(nodes)
        item_ND = widened(nodes.items.fused_UD)
        missing = self.streams - nodes.items.streams_UD.keys()
        if missing:
            raise ValueError(f"learned_item_graph: items have no stream {', '.join(sorted(missing))}")
        with outside_autocast(item_ND.device):
            stream_FND = [widened(nodes.items.streams_UD[name]) for name in self.stream_names]
            if self.training and self._begun is not None:
                self._find_lists(stream_FND)
            similar_ND = self.passed(*self._matrix(stream_FND), item_ND)
            both_ND = passed.items.fused_UD + F.normalize(similar_ND, dim=1)
        return replace(passed, items=replace(passed.items, fused_UD=both_ND))

    def _find_lists(self, stream_FND: Sequence[Tensor]) -> None:
        learned_FNk, has_FN = self.get_buffer("learned_FNk"), self.get_buffer("has_FN")
        for place, (x_ND, has_N) in enumerate(zip(stream_FND, has_FN, strict=True)):
            learned_FNk[place] = nearest(x_ND, has_N, learned_FNk.shape[2])
        self.get_buffer("listed_in").fill_(self._begun or 0)
        self._begun = None

    def _matrix(self, stream_FND: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Values and places of S, `(N, 2 F k)` each."""
        fixed_FNk, learned_FNk = self.get_buffer("list_FNk"), self.get_buffer("learned_FNk")
        one = stream_FND[0].new_ones(1)
        weight_F11 = (one if self.logit is None else widened(self.logit).softmax(dim=0))[:, None, None]
        fixed_NK = side_by_side(weight_F11 * self.get_buffer("value_FNk").to(one.dtype))
        cosine_FNk = torch.stack([cosines(*both) for both in zip(stream_FND, learned_FNk, strict=True)])
        learned_NK = normalized(side_by_side(weight_F11 * cosine_FNk), side_by_side(learned_FNk))
        value_NK = torch.cat((self.share * learned_NK, (1 - self.share) * fixed_NK), dim=1)
        return value_NK, torch.cat((side_by_side(learned_FNk), side_by_side(fixed_FNk)), dim=1)
