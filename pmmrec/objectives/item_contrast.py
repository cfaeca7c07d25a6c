"""Tell an item's image by its text, and its text by its image (CLIP's image-text contrast)."""
# Shapes: B examples, S window positions, U distinct items of the step, D width, A items at places that count.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pmmrec.context import BuildContext
from pmmrec.contracts import Modality, Term, Views
from pmmrec.objectives import Objective, ObjectiveConfig, objectives
from pmmrec.objectives.both_fields import closing, num_own, unit_vectors
from pmmrec.precision import outside_autocast
from pmmrec.requests import Requests, View

LEAST_TEMPERATURE = 0.01  # as in CLIP, which clips the scale at 100


class ItemContrastConfig(ObjectiveConfig):
    """Settings of the contrast of an item's text with its image."""

    type: Literal["item_contrast"] = "item_contrast"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"temperature": 0.5, "learns_temperature": False})
    temperature: float = Field(
        0.07, ge=LEAST_TEMPERATURE, description="Divides cosine similarities; at the start, where it learns."
    )
    learns_temperature: bool = Field(
        True, description="The temperature is a parameter, never below 0.01 (CLIP). False: it stays as it is."
    )


@objectives.register("item_contrast", ItemContrastConfig)
class ItemContrast(Objective):
    """Pull the text of each item to its own image and away from other images, and the image likewise.

    Fig. 3 of CLIP (arXiv 2103.00020), also called ITC: with s(t, v) = cosine / temperature, item i loses

        (-log softmax over images v of s(t_i, v), at v_i) / 2 + (-log softmax over texts t of s(t, v_i), at t_i) / 2

    Softmaxes run over the distinct items of the step that have the field, those of all processes where they are
    gathered. Counted is every place of a window whose item has both fields, of validation windows the last alone: with
    `data.examples: items` every item of the batch once. Nothing counts where there is but one text and one image, with
    nothing to compare them with. It reads no user: alone, it trains the encoders of text and image, and nothing else.

    Metrics: `chance`, the loss where all similarities are equal; `accuracy`, the share of texts whose own image is
    alone at the top; `temperature`.

    Example:
        objectives: {itc: {type: item_contrast, temperature: 0.07, learns_temperature: true}}
    """

    requests = Requests.of(views=(View.MODALITIES,))
    reads_fused = False

    def __init__(self, config: ItemContrastConfig, context: BuildContext) -> None:  # noqa: ARG002  # every objective is built so
        super().__init__()
        self.config = config
        self.log_scale: nn.Parameter | None = None
        if config.learns_temperature:  # of one dimension: FSDP2 shards no parameter without any
            self.log_scale = nn.Parameter(torch.full((1,), -math.log(config.temperature)))

    def forward(self, views: Views) -> Term:
        """Sum over counted places. ValueError where the views lack cls vectors of a field."""
        with outside_autocast(views.items.fused_UD.device):
            return self._term(views)

    def _term(self, views: Views) -> Term:
        (text_UD, has_text_U), (image_UD, has_image_U) = (
            unit_vectors(views, modality, "item_contrast") for modality in (Modality.TEXT, Modality.IMAGE)
        )
        num_own_U = num_own(views.windows, len(has_text_U))
        item_A = views.windows.counted_places.item_A
        is_counted_A = (has_text_U & has_image_U)[item_A] & ((has_text_U.sum() > 1) | (has_image_U.sum() > 1))
        weight_A = (num_own_U[item_A] * is_counted_A).to(text_UD.dtype)

        scale = self._scale(text_UD)
        to_image_AU = scale * (text_UD[item_A] @ image_UD.T) + closing(has_image_U, text_UD.dtype)
        to_text_AU = scale * (image_UD[item_A] @ text_UD.T) + closing(has_text_U, text_UD.dtype)
        loss_A = F.cross_entropy(to_image_AU, item_A, reduction="none")
        loss_A = (loss_A + F.cross_entropy(to_text_AU, item_A, reduction="none")) / 2
        loss_A = torch.where(is_counted_A, loss_A, 0.0)

        count = weight_A.sum()
        chance = count * (has_text_U.sum().log() + has_image_U.sum().log()) / 2
        figures = {
            "chance": torch.where(count > 0, chance, 0.0),
            "accuracy": (weight_A * _is_alone_at_the_top(to_image_AU.detach(), item_A)).sum(),
            "temperature": count / scale.detach(),
        }
        metrics = {name: torch.stack((figure.to(count.dtype), count)) for name, figure in figures.items()}
        return Term((weight_A * loss_A).sum(), count, metrics)

    def _scale(self, like: Tensor) -> Tensor:
        """What similarities are multiplied by, a scalar."""
        if self.log_scale is None:
            return like.new_full((), 1 / self.config.temperature)
        return self.log_scale[0].clamp(max=-math.log(LEAST_TEMPERATURE)).exp()


def _is_alone_at_the_top(score_AU: Tensor, item_A: Tensor) -> Tensor:
    return (score_AU >= score_AU.gather(1, item_A[:, None])).sum(dim=1) == 1
