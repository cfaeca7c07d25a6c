"""Tell the item that a user touched from those of others, in views of a graph that lacks edges or nodes (MMGCL)."""
# Shapes: N items, K positions with a target, C negatives of a target, D width.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pmmrec.context import BuildContext
from pmmrec.contracts import GraphView, Term, Views
from pmmrec.objectives import Objective, objectives
from pmmrec.objectives.in_batch import num_targets, told_apart
from pmmrec.objectives.targets import TargetsConfig, TargetStates
from pmmrec.precision import outside_autocast, widened
from pmmrec.requests import DrawnNegatives, View


class GraphContrastConfig(TargetsConfig):
    """Settings of the contrast in views of a graph."""

    type: Literal["graph_contrast"] = "graph_contrast"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"negatives": {"count": 2}, "temperature": 0.5, "targets": "last"},
    )
    temperature: float = Field(0.2, gt=0, description="Divides cosines.")
    negatives: DrawnNegatives = Field(
        DrawnNegatives(), description="Whose streams make challenging negatives: as the objective beside draws them."
    )


@objectives.register("graph_contrast", GraphContrastConfig)
class GraphContrast(Objective):
    """Score the item that a user touched above those of the batch, and above itself with a stream of another item.

    In each view of the graph a target loses a cross-entropy of `cos(u, i) / temperature` over the targets of the batch
    and its challenging negatives: the vector of the target, to which one stream gives what it gives to a drawn negative
    in place of what it gives to the target. The losses of all views are added (MMGCL,
    https://arxiv.org/abs/2205.15155). Positions with the same target are left out of the sum. Differs from the released
    code, where the second view never enters the loss and challenging negatives are computed and left out. Counted are
    targets that can be read. What the views lack is a setting of the propagation.

    Metrics: `chance`, the loss of equal scores; `accuracy`, the share of positions, of all views together, whose target
    scores strictly above all that it is told from.

    Example:
        model:
          item_encoder: {type: with_streams, streams: {text: {features: {content: 384}}}}
          user_encoder: {type: user_table}
          propagation: {type: stream_graph, streams: [text], views: {edges: 0.05, nodes: 0.05}}
        objectives: {bpr: {type: bpr}, contrast: {type: graph_contrast, temperature: 0.2, weight: 0.4}}
    """

    def __init__(self, config: GraphContrastConfig, context: BuildContext) -> None:  # noqa: ARG002  # every part is built so
        super().__init__()
        self.config = config
        self.requests = config.requests(negatives=config.negatives, views=(View.NODES, View.GRAPH_VIEWS))

    def forward(self, views: Views) -> Term:
        """Sum over counted positions. ValueError where the views lack the pass or its negatives."""
        targets = TargetStates.read(views, self.config, "graph_contrast")
        negative_KC = targets.negatives(self.config.negatives, "graph_contrast")
        with outside_autocast(negative_KC.device):
            weight_N = num_targets(views, targets, widened(views.items.fused_UD).dtype)
            terms = [
                told_apart(*self._scores(one, views, targets, negative_KC), weight_N, targets)
                for one in graph_views(views)
            ]
            loss = torch.stack([term.sum for term in terms]).sum()
            chance = torch.stack([term.metrics["chance"][0] for term in terms]).sum()
            accuracy = torch.stack([term.metrics["accuracy"] for term in terms]).sum(dim=0)
        count = terms[0].count
        return Term(loss, count, {"chance": torch.stack((chance, count)), "accuracy": accuracy})

    def _scores(
        self, view: GraphView, views: Views, targets: TargetStates, negative_KC: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of all items, `(K, N)`, and of challenging negatives, `(K, C)`."""
        item_ND, share_ND, temperature = widened(view.item_ND), widened(view.share_ND), self.config.temperature
        user_KD = widened(targets.query.hidden_KD)
        if view.user_MD is not None and views.windows.user_index_B is not None:
            user_KD = widened(view.user_MD)[views.windows.user_index_B][targets.query.user_K]
        user_KD = F.normalize(user_KD, dim=1)
        score_KN = user_KD @ F.normalize(item_ND, dim=1).T / temperature
        rest_KD = (item_ND - share_ND)[targets.target_K]
        made_KCD = F.normalize(rest_KD[:, None] + share_ND[negative_KC], dim=2)
        made_KC = (user_KD[:, None] * made_KCD).sum(dim=2) / temperature
        return score_KN, made_KC


def graph_views(views: Views) -> Sequence[GraphView]:
    """Those of the graph. Where targets are counted before there is a graph, vectors of items stand for a view."""
    found = () if views.propagated is None else views.propagated.views
    return found or (GraphView(views.items.fused_UD, None, views.items.fused_UD),)
