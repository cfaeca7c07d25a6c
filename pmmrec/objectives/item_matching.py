"""Tell whether a text and an image belong to the same item (ITM, with hard negatives)."""
# Shapes: U distinct items of the step, A items at places that count, D width.

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
from pmmrec.hashed import mixed, uniform
from pmmrec.objectives import Objective, ObjectiveConfig, objectives
from pmmrec.objectives.both_fields import closing, num_own, unit_vectors
from pmmrec.precision import outside_autocast, widened
from pmmrec.requests import Requests, View

PAIRS = 3  # of an item: its own, its text with another image, its image with another text


class ItemMatchingConfig(ObjectiveConfig):
    """Settings of matching texts with images."""

    type: Literal["itm"] = "itm"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"temperature": 0.5})
    temperature: float = Field(
        0.07, gt=0, description="Divides the cosines by which negatives are drawn; smaller: harder ones."
    )


@objectives.register("itm", ItemMatchingConfig)
class ItemMatching(Objective):
    """Score the fused vector of each item's own text and image up, and of two wrong pairs down.

    ITM of ALBEF (arXiv 2107.07651) and VLMo (arXiv 2111.02358): with f the fused vector and p = softmax(W f + b), item
    i loses the mean of

        -log p_1(t_i, v_i),   -log p_0(t_i, v_j),   -log p_0(t_k, v_i)

    The image v_j is drawn among those of all other items of the step, with a chance proportional to
    exp(cosine(t_i, v_j) / temperature), as `item_contrast` scores them, and the text t_k likewise: the more alike, the
    more likely. They are those of all processes where items are gathered; a draw depends on seed, step and place
    alone. Scores give no gradient; give `item_contrast` too, so that they mean something. Counted are places as by
    `item_contrast`, where there is another text and another image. Differs from ALBEF: the temperature is fixed, and
    each item has one negative each way.

    It reads no user: it trains the encoders, the fusion, and its own head, which is left behind.

    Metrics: `chance`, log 2; `accuracy`, the share of the three pairs told right.

    Example:
        objectives: {itc: {type: item_contrast}, itm: {type: itm}}
    """

    requests = Requests.of(views=(View.MODALITIES, View.TOKENS))

    def __init__(self, config: ItemMatchingConfig, context: BuildContext) -> None:
        super().__init__()
        self.config = config
        self.head = nn.Linear(context.width, 2)

    def forward(self, views: Views) -> Term:
        """Sum over counted places. ValueError where the views lack cls vectors, or fuse nothing."""
        if views.fuse is None:
            raise ValueError("itm: the views fuse no pairs; ask for them in the requests")
        item_A, weight_A = self._counted(views)
        with torch.no_grad(), outside_autocast(item_A.device):
            image_A, text_A = self._drawn(views, item_A)
        both_P = views.fuse(torch.cat((item_A, item_A, text_A)), torch.cat((item_A, image_A, item_A)))
        is_own_P = torch.cat((torch.ones_like(item_A), torch.zeros_like(item_A), torch.zeros_like(item_A)))
        score_P2 = widened(self.head(both_P.to(self.head.weight.dtype)))
        with outside_autocast(item_A.device):
            loss_PA = F.cross_entropy(score_P2, is_own_P, reduction="none").view(PAIRS, -1)
        count = weight_A.sum()
        is_right_PA = (score_P2.detach().argmax(dim=1) == is_own_P).view(PAIRS, -1)
        figures = {
            "chance": count * math.log(2),
            "accuracy": (weight_A * is_right_PA.to(weight_A.dtype).mean(dim=0)).sum(),
        }
        metrics = {name: torch.stack((figure, count)) for name, figure in figures.items()}
        # An item that does not count may lack both fields, but its vectors are finite.
        return Term((weight_A * loss_PA.mean(dim=0)).sum(), count, metrics)

    def _counted(self, views: Views) -> tuple[Tensor, Tensor]:
        """The items at places that count, and how much each weighs."""
        has_text_U, has_image_U = views.items.has_U[Modality.TEXT], views.items.has_U[Modality.IMAGE]
        has_others = (has_text_U.sum() > 1) & (has_image_U.sum() > 1)
        num_own_U = num_own(views.windows, len(has_text_U)) * (has_text_U & has_image_U & has_others)
        item_A = views.windows.counted_places.item_A
        dtype = torch.promote_types(views.items.fused_UD.dtype, torch.float32)
        return item_A, num_own_U[item_A].to(dtype)

    def _drawn(self, views: Views, item_A: Tensor) -> tuple[Tensor, Tensor]:
        """For each item at a counted place the item of another image, and that of another text."""
        text_UD, has_text_U = unit_vectors(views, Modality.TEXT, "itm")
        image_UD, has_image_U = unit_vectors(views, Modality.IMAGE, "itm")
        draw = item_A.new_zeros(()) if views.draw is None else views.draw
        to_image_AU = text_UD[item_A] @ image_UD.T + closing(has_image_U, text_UD.dtype)
        to_text_AU = image_UD[item_A] @ text_UD.T + closing(has_text_U, text_UD.dtype)
        return self._other(to_image_AU, item_A, draw + 1), self._other(to_text_AU, item_A, draw + 2)

    def _other(self, cosine_AU: Tensor, item_A: Tensor, draw: Tensor) -> Tensor:
        """An item for each row that is not its own, with a chance proportional to exp(cosine / temperature).

        The largest sum of a score and a number of Gumbel's distribution is such a draw.
        """
        num_items = cosine_AU.shape[1]
        number_AU = uniform(mixed(item_A + mixed(draw)), num_items).clamp(min=1e-15, max=1 - 1e-15)
        is_own_AU = item_A[:, None] == torch.arange(num_items, device=item_A.device)
        sum_AU = cosine_AU.double() / self.config.temperature - (-number_AU.log()).log()
        return sum_AU.masked_fill(is_own_AU, -math.inf).argmax(dim=1)
