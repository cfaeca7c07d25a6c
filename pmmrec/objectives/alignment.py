"""Align an item's text with its image, and with the next item (PMMRec, eq. 6-9)."""
# Shapes: B users, S window positions, U distinct items, D width, K positions with a next item, A items at those.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self

from pmmrec.context import BuildContext
from pmmrec.contracts import ItemVectors, Modality, Term, Views, Windows
from pmmrec.objectives import Objective, ObjectiveConfig, objectives
from pmmrec.objectives.negatives import Columns, NegativeRule
from pmmrec.precision import outside_autocast, widened
from pmmrec.requests import Requests, View


class AlignmentConfig(ObjectiveConfig):
    """Settings of NICL (both switches, eq. 8), ICL (`intra_negatives` alone, eq. 7), VCL (neither, eq. 6) and NCL."""

    type: Literal["alignment"] = "alignment"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"negatives": "other_users", "temperature": 0.1, "positives_in_denominator": True},
        {"next_item_positives": False, "intra_negatives": False},
    )
    negatives: NegativeRule = Field(
        "unseen", description="unseen: batch items outside the user's window. other_users: all slots of others."
    )
    temperature: float = Field(
        1.0,
        ge=0.02,  # exp(1 / 0.02) and its inverse, over any number of slots, stay far inside float32
        description="Divides cosine similarities; the paper has none (1.0).",
    )
    next_item_positives: bool = Field(True, description="Pull an item to the next item too (NICL, NCL).")
    intra_negatives: bool = Field(True, description="Push away by the same modality too (NICL, ICL).")
    positives_in_denominator: bool = Field(
        False, description="Next-item terms stand in the denominator as well; eq. 8 has them in the numerator only."
    )

    @model_validator(mode="after")
    def _next_items_are_bounded(self) -> Self:
        if self.positives_in_denominator and not self.next_item_positives:
            raise ValueError(
                "positives_in_denominator has no effect without next_item_positives; "
                "leave it out or set next_item_positives: true"
            )
        if self.temperature < 1 and self.next_item_positives and not self.positives_in_denominator:
            raise ValueError(
                f"temperature {self.temperature} with next-item terms in the numerator only can push an item's text "
                "away from its own image; set positives_in_denominator: true, temperature: 1.0 or more, "
                "or next_item_positives: false"
            )
        return self


@dataclass(frozen=True)
class _Anchors:
    """The positions with a next item: whose they are, which item stands there and which comes next."""

    user_K: Tensor
    item_K: Tensor
    next_K: Tensor
    item_A: Tensor  # the items of `item_K`, each once
    which_K: Tensor  # where `item_A` holds them
    is_counted_K: Tensor  # False where the loss of a position is not defined

    @classmethod
    def of(cls, windows: Windows, has_both_U: Tensor, has_negative_B: Tensor) -> _Anchors:
        at, index_BS = windows.next_places, windows.item_index_BS
        item_K, next_K = at.of(index_BS), at.of(index_BS[:, 1:])
        is_counted_K = has_both_U[item_K] & has_negative_B[at.user_K]
        return cls(at.user_K, item_K, next_K, at.item_A, at.which_K, is_counted_K)


@dataclass(frozen=True)
class _Side:
    """Items as one modality shows them: unit vectors, and which items have one."""

    unit_UD: Tensor
    has_U: Tensor

    @property
    def weight_U(self) -> Tensor:
        return self.has_U.to(self.unit_UD.dtype)


@objectives.register("alignment", AlignmentConfig)
class Alignment(Objective):
    """Pull an item's text to its image and to the next item; push other users' items away.

    Eq. 6-9 of https://arxiv.org/abs/2312.09602 over l2-normalised cls vectors, half the sum of both directions. With
    delta(a, b) = exp(a.b / temperature), the text of item i, followed by n, at a position of user b loses

        -log (delta(t_i,v_i) + delta(t_i,v_n) + delta(t_i,t_n)) / (delta(t_i,v_i) + negatives of b)

    where each negative slot j adds delta(t_i,v_j) + delta(t_i,t_j), and terms of vectors that an item lacks are left
    out. Counted are positions with a next item whose own item has both modalities and whose user has a negative term
    in either direction. VCL, ICL, NICL and NCL (VCL with next items) differ by two switches, over the same positions.

    As printed, a text is pulled to its own image only while negatives outweigh next-item terms: with own term o, next
    terms p and negatives N, dL/do = 1/(o + N) - 1/(o + p) < 0 exactly when N > p. Since p <= 2 exp(1/temperature) and
    each negative term >= exp(-1/temperature), more than exp(2/temperature) negative slots that have both modalities
    (twice as many without `intra_negatives`) make sure of it, whatever the vectors: 8 at temperature 1, 5e8 at 0.1.
    `positives_in_denominator` makes the pull certain.

    Metrics: `chance`, the loss where all similarities are equal; `own_cosine`, of a text and its own image.

    Example:
        objectives: {nicl: {type: alignment, temperature: 0.1, positives_in_denominator: true}}
    """

    requests = Requests.of(views=(View.MODALITIES, View.ORDER))
    reads_fused = False

    def __init__(self, config: AlignmentConfig, context: BuildContext) -> None:  # noqa: ARG002  # every objective is built so
        super().__init__()
        self.config = config

    def forward(self, views: Views) -> Term:
        """Sum over counted positions. ValueError when the views lack cls vectors of a modality."""
        with outside_autocast(views.items.fused_UD.device):
            return self._term(views)

    def _term(self, views: Views) -> Term:
        text, image = _side(views.items, Modality.TEXT), _side(views.items, Modality.IMAGE)
        windows = views.windows
        columns = Columns.of(windows, text.has_U.shape[0], views.num_slots_U)
        weight_BU = columns.negatives(self.config.negatives, text.unit_UD.dtype).weight_BU
        text_terms_B, image_terms_B = self._num_terms(weight_BU, text, image), self._num_terms(weight_BU, image, text)

        at = _Anchors.of(windows, text.has_U & image.has_U, (text_terms_B > 0) & (image_terms_B > 0))
        loss_K = (self._loss(text, image, weight_BU, at) + self._loss(image, text, weight_BU, at)) / 2
        count = at.is_counted_K.sum().to(loss_K.dtype)
        num_next_K = (text.weight_U + image.weight_U)[at.next_K] * self.config.next_item_positives
        num_extra_K = num_next_K * self.config.positives_in_denominator
        num_denominators = torch.stack((text_terms_B, image_terms_B))[:, at.user_K] + num_extra_K
        chance_K = num_denominators.log1p().mean(dim=0) - num_next_K.log1p()
        cosine_K = (text.unit_UD * image.unit_UD).detach().sum(dim=1)[at.item_K]
        loss, chance, cosine = (torch.where(at.is_counted_K, x_K, 0.0).sum() for x_K in (loss_K, chance_K, cosine_K))
        metrics = {"chance": torch.stack((chance, count)), "own_cosine": torch.stack((cosine, count))}
        return Term(loss, count, metrics)

    def _num_terms(self, weight_BU: Tensor, anchor: _Side, other: _Side) -> Tensor:
        """`(B,)`: how many negative terms a denominator of each user holds in one direction."""
        return weight_BU @ (other.weight_U + anchor.weight_U * self.config.intra_negatives)

    def _loss(self, anchor: _Side, other: _Side, weight_BU: Tensor, at: _Anchors) -> Tensor:
        """`(K,)`: one direction (eq. 8 with text as anchor, eq. 9 with image).

        exp of all similarities of items with a next one is taken once; a product with the weights sums it for
        every such item and user, and each position picks its own sum. Nothing is subtracted from a total, so nothing
        cancels.
        """
        config, scaled_AD = self.config, anchor.unit_UD[at.item_A] / self.config.temperature
        across_AU = scaled_AD @ other.unit_UD.T
        mass_AU = across_AU.exp() * other.weight_U
        own_K, across_next_K = across_AU[at.which_K, torch.stack((at.item_K, at.next_K))]
        next_terms: list[Tensor] = []
        if config.next_item_positives or config.intra_negatives:
            within_AU = scaled_AD @ anchor.unit_UD.T
            if config.intra_negatives:
                mass_AU = mass_AU + within_AU.exp() * anchor.weight_U
            if config.next_item_positives:
                within_next_K = within_AU[at.which_K, at.next_K]
                next_terms = [_open(across_next_K, other, at), _open(within_next_K, anchor, at)]
        negative_K = (mass_AU @ weight_BU.T)[at.which_K, at.user_K]
        negative_K = torch.where(at.is_counted_K, negative_K, 1.0).log()  # log 0 has no gradient
        numerator = torch.stack([own_K, *next_terms])
        denominator = torch.stack([own_K, negative_K, *(next_terms if config.positives_in_denominator else [])])
        return denominator.logsumexp(dim=0) - numerator.logsumexp(dim=0)


def _side(items: ItemVectors, modality: Modality) -> _Side:
    if modality not in items.cls_UD:
        raise ValueError(f"alignment: items have no {modality.value} vectors; it needs an encoder of text and of image")
    # an absent item is a row of zeros: it stays zero, and its gradient is zero since no term holds it
    return _Side(F.normalize(widened(items.cls_UD[modality]), dim=1), items.has_U[modality])


def _open(similarity_K: Tensor, side: _Side, at: _Anchors) -> Tensor:
    """Similarities to next items; -inf where one lacks the modality."""
    return torch.where(side.has_U[at.next_K], similarity_K, -math.inf)
