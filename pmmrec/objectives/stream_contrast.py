"""Tell an item's stored streams by its id (SLMRec's contrast of streams)."""
# Shapes: K positions with a target, U distinct items of the step, D width.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from pmmrec.context import BuildContext
from pmmrec.contracts import Term, Views
from pmmrec.objectives import Objective, objectives
from pmmrec.objectives.in_batch import num_targets
from pmmrec.objectives.targets import TargetsConfig, TargetStates
from pmmrec.precision import outside_autocast

IDS = "ids"


class StreamContrastConfig(TargetsConfig):
    """Settings of the contrast of streams."""

    type: Literal["stream_contrast"] = "stream_contrast"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"streams": ["image"]},
        {"streams": ["image", "text"], "temperature": 0.5, "targets": "last"},
    )
    streams: list[str] = Field(
        min_length=1, description="The streams that are told, in this order; each is compared behind one more layer."
    )
    temperature: float = Field(0.2, gt=0, description="Divides products; SLMRec chooses from 0.1 to 1.")


@objectives.register("stream_contrast", StreamContrastConfig)
class StreamContrast(Objective):
    """Pull what the id says of an item to what its streams say, and away from streams of other targets of the batch.

    With x_0 = g(id) and x_s = g(x_(s-1)), item i loses, summed over streams s, a cross-entropy over the targets j of
    the batch of `h(x_s of i) . h'(stream s of j) / temperature`, with linear layers g, h and h'. For the first stream h
    is the identity; for others h and h' halve the width (SLMRec, https://doi.org/10.1109/TMM.2022.3187556, task FAC,
    whose vectors are not divided by their lengths). An item is as often a negative as it is a target elsewhere;
    positions with the same target are left out of the sum, where the released code counts them as negatives. Counted
    are targets that can be read and are told from anything. An item that lacks a stream has zeros there.

    Example:
        model:
          item_encoder:
            type: with_streams
            streams: {text: {features: {content: 384}}, image: {features: {image_content: 512}}}
          user_encoder: {type: user_table}
          propagation: {type: stream_graph, streams: [text, image]}
        objectives: {streams: {type: stream_contrast, streams: [image, text], temperature: 0.2, weight: 0.1}}
    """

    def __init__(self, config: StreamContrastConfig, context: BuildContext) -> None:
        super().__init__()
        self.config, width = config, context.width
        self.requests = config.requests(streams=config.streams)
        half = max(1, width // 2)
        widths = [width, *[half] * (len(config.streams) - 1)]
        self.passes = nn.ModuleList(nn.Linear(width, width) for _ in config.streams)
        self.of_ids = nn.ModuleList(nn.Linear(width, half) for _ in config.streams[1:])
        self.of_streams = nn.ModuleList(nn.Linear(width, to) for to in widths)

    def forward(self, views: Views) -> Term:
        """Sum over positions that count. ValueError where the views lack the pass."""
        targets = TargetStates.read(views, self.config, "stream_contrast")
        target_K, streams_UD = targets.target_K, views.items.streams_UD
        with outside_autocast(target_K.device):
            dtype = next(self.parameters()).dtype
            x_KD = streams_UD.get(IDS, views.items.fused_UD)[target_K].to(dtype)
            weight_U = num_targets(views, targets, x_KD.dtype)
            num_negative_K = weight_U.sum() - weight_U[target_K]
            bias_KU = weight_U.log().expand(len(target_K), -1).scatter(1, target_K[:, None], 0.0)
            loss_K = x_KD.new_zeros(len(x_KD))
            for place, name in enumerate(self.config.streams):
                x_KD = self.passes[place](x_KD)
                told_KE = self.of_ids[place - 1](x_KD) if place else x_KD
                stream_UE = self.of_streams[place](streams_UD[name].to(dtype))
                score_KU = told_KE @ stream_UE.T / self.config.temperature
                loss_K = loss_K + F.cross_entropy(score_KU + bias_KU, target_K, reduction="none")
            is_counted_K = targets.is_counted_K & (num_negative_K > 0)
            loss = torch.where(is_counted_K, loss_K, 0.0).sum()
            count = is_counted_K.sum().to(loss.dtype)
            chance = torch.where(is_counted_K, num_negative_K.log1p(), 0.0).sum() * len(self.config.streams)
        return Term(loss, count, {"chance": torch.stack((chance, count))})
