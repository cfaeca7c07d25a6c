"""How much a user in a state would like an item."""
# Shapes: B users, N items, D width.

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from pmmrec.context import BuildContext
from pmmrec.models import Scorer, scorers
from pmmrec.settings import PartConfig


class DotConfig(PartConfig):
    """Settings of the dot product."""

    type: Literal["dot"] = "dot"
    popularity: float = Field(
        0.0, ge=0, description="Weight of log(1 + how often an item was touched) in the score; 1 undoes what DAP takes."
    )
    temperature: Annotated[float, Field(gt=0)] | Literal["sqrt_width"] = Field(
        1.0, description="Divides the dot product before popularity is added: the temperature of the objective."
    )

    @model_validator(mode="after")
    def _temperature_matters(self) -> Self:
        if self.temperature != 1 and not self.popularity:
            raise ValueError("temperature: has no effect on a ranking without popularity; leave it out")
        return self


@scorers.register("dot", DotConfig)
class Dot(Scorer):
    """The dot product of hidden state and item vector, what DAP (eq. 5) trains; with `popularity`, a prior beside it.

    In-batch negatives come as often as items are popular, so DAP without a log q correction learns
    log p(item | user) - log q(item): what this user wants more than others do. Its sum with log q ranks by
    p(item | user). With `logq` or `catalogue_ce` nothing is missing and `popularity` stays 0.
    """

    def __init__(self, config: DotConfig, context: BuildContext) -> None:
        super().__init__()
        self.popularity, self.reads_counts = config.popularity, config.popularity > 0
        self.temperature = math.sqrt(context.width) if isinstance(config.temperature, str) else config.temperature

    def forward(self, hidden_BD: Tensor, items_ND: Tensor, count_N: Tensor | None = None) -> Tensor:
        """Scores `(B, N)`; larger is better. ValueError when popularity is wanted and no counts are given."""
        score_BN = hidden_BD @ items_ND.T
        if not self.popularity:
            return score_BN
        if count_N is None:
            raise ValueError("popularity: the scorer needs how often each item was touched, found None")
        return score_BN / self.temperature + self.popularity * count_N.to(score_BN.dtype).log1p()

    def keys(self, items_ND: Tensor, count_N: Tensor) -> Tensor:
        """Items `(N, D)`; with popularity items over the temperature and their prior, `(N, D + 1)`."""
        if not self.popularity:
            return items_ND
        prior_N1 = self.popularity * count_N.to(items_ND.dtype).log1p()[:, None]
        return torch.cat((items_ND / self.temperature, prior_N1), dim=1)
