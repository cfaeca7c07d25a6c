"""Keep the vectors of users and items short (the L2 term of LightGCN and of matrix factorisation)."""
# Shapes: B users, K positions with a target, C negatives of a target, D width.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from pmmrec.context import BuildContext
from pmmrec.contracts import Term, Views
from pmmrec.objectives import Objective, objectives
from pmmrec.objectives.targets import TargetsConfig, TargetStates
from pmmrec.precision import outside_autocast, widened
from pmmrec.requests import DrawnNegatives, View


class EmbeddingL2Config(TargetsConfig):
    """Settings of the L2 term."""

    type: Literal["embedding_l2"] = "embedding_l2"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"targets": "last", "negatives": None},
        {"of": "propagated"},
    )
    negatives: DrawnNegatives | None = Field(
        DrawnNegatives(), description="Whose vectors count beside those of targets: as the objective beside draws them."
    )
    of: Literal["unpropagated", "propagated"] = Field(
        "unpropagated",
        description="Vectors as they are before a graph passes them on, or after (LATTICE; BM3, before its predictor).",
    )


@objectives.register("embedding_l2", EmbeddingL2Config)
class EmbeddingL2(Objective):
    """Half the mean squared length of the vectors that a target is about: of its user, itself and its negatives.

    The term of a target is `1/2 (|u|^2 + |i|^2 + sum over negatives of |j|^2)`, of vectors before a graph propagates
    them (LightGCN, arXiv 2002.02126, eq. 15, over a batch as in its released code), or after. Its `weight` is the
    paper's lambda. Differs from MMRec, whose term is for most systems the length and not its square. Users that are not
    known by id have no vector, and add nothing.

    Example:
        objectives: {bpr: {type: bpr}, l2: {type: embedding_l2, weight: 1e-4}}
    """

    shares_negatives = True

    def __init__(self, config: EmbeddingL2Config, context: BuildContext) -> None:  # noqa: ARG002  # every part is built so
        super().__init__()
        self.config = config
        self.requests = config.requests(negatives=config.negatives, views=(View.NODES,))

    def forward(self, views: Views) -> Term:
        """Sum over counted positions. ValueError where the views lack the pass or its negatives."""
        targets = TargetStates.read(views, self.config, self.config.type)
        index_K1, is_counted_K1 = targets.target_K[:, None], targets.is_counted_K[:, None]
        if self.config.negatives is not None:
            index_K1 = torch.cat((index_K1, targets.negatives(self.config.negatives, self.config.type)), dim=1)
        nodes = views.unpropagated if self.config.of == "unpropagated" else views.propagated
        if nodes is not None and nodes.targets is not None:
            nodes = nodes.targets
        items = views.items if nodes is None else nodes.items
        user_MD = None if nodes is None else nodes.user_MD
        with outside_autocast(index_K1.device):
            total = torch.where(is_counted_K1, _square(items.fused_UD)[index_K1], 0.0).sum()
            if user_MD is not None and views.windows.user_index_B is not None:
                square_K = _square(user_MD[views.windows.user_index_B])[targets.query.user_K]
                total = total + torch.where(targets.is_counted_K, square_K, 0.0).sum()
        return Term(total / 2, targets.count(total.dtype))


def _square(x_RD: Tensor) -> Tensor:
    """The squared length of each vector."""
    return widened(x_RD).square().sum(dim=-1)
