"""Guess what was hidden of an item: words of its text (MLM), patches of its image (MAE)."""
# Shapes: U distinct items of the step, A items at places that count.

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pmmrec.context import BuildContext
from pmmrec.contracts import Modality, Term, Views
from pmmrec.objectives import ItemHeads, Objective, ObjectiveConfig, objectives
from pmmrec.objectives.both_fields import num_own
from pmmrec.precision import widened
from pmmrec.requests import Hiding, Requests, View


class MLMConfig(ObjectiveConfig):
    """Settings of masked language modelling."""

    type: Literal["mlm"] = "mlm"
    share: float = Field(0.15, gt=0, lt=1, description="Share of a text's words that are hidden (BERT: 0.15).")


class MAEConfig(ObjectiveConfig):
    """Settings of masked autoencoding."""

    type: Literal["mae"] = "mae"
    share: float = Field(0.75, gt=0, lt=1, description="Share of an image's patches that are hidden (MAE: 0.75).")
    normalize: bool = Field(
        True, description="Each patch is painted with mean 0 and variance 1 (norm_pix_loss). False: as its pixels are."
    )


class _Restored(Objective):
    """The mean of what the item encoder says that guessing each item's hidden parts costs."""

    reads_fused = False
    view: View
    field: Modality

    def __init__(self, config: ObjectiveConfig, context: BuildContext) -> None:  # noqa: ARG002  # every objective is built so
        super().__init__()
        self.config = config
        self.head: nn.Module | None = None

    def forward(self, views: Views) -> Term:
        """Sum over counted places."""
        loss_U = widened(views.items.streams_UD[self.view.value][:, 0])
        item_A = views.windows.counted_places.item_A
        num_own_U = num_own(views.windows, len(loss_U))
        weight_A = (num_own_U * views.items.has_U[self.field])[item_A].to(loss_U.dtype)
        count = weight_A.sum()
        return Term((weight_A * loss_U[item_A]).sum(), count, self._metrics(count))

    def _metrics(self, count: Tensor) -> dict[str, Tensor]:
        del count
        return {}


@objectives.register("mlm", MLMConfig)
class MaskedWords(_Restored):
    """Guess the hidden words of an item's text from the others (MLM of BERT, arXiv 1810.04805).

    Of each text max(1, round(share x words)) tokens are hidden, special tokens never before words are used up: 80 % of
    them become the mask token, 10 % any token, 10 % stay. The loss is the cross-entropy over the whole vocabulary,
    scored by the input embedding above a linear layer, GELU and LayerNorm; a folder's own head is taken where it has
    one, and is left behind when the encoder is published. Which words are hidden depends on seed, step and item alone,
    in validation on the item. Differs from BERT: each text weighs the same, however many of its words are hidden, and
    there is no next-sentence loss. An item without a text counts nothing.

    It reads no user and no image: alone, it trains the text encoder without its projection, and nothing else. MoRec's
    second round of pretraining (arXiv 2303.13835) for texts.

    Metrics: `chance`, the loss of a model that takes all tokens for equally likely.

    Example:
        objectives: {mlm: {type: mlm, share: 0.15}}
    """

    requests = Requests.of(views=(View.WORDS,))
    view, field = View.WORDS, Modality.TEXT
    config: MLMConfig

    def meet(self, encoder: ItemHeads) -> None:
        self.head = encoder.restore(Hiding(self.view, self.config.share))

    def _metrics(self, count: Tensor) -> dict[str, Tensor]:
        bias = getattr(self.head, "bias", None)
        if bias is None:
            return {}
        return {"chance": torch.stack((count * math.log(len(bias)), count))}


@objectives.register("mae", MAEConfig)
class MaskedPatches(_Restored):
    """Paint the hidden patches of an item's image from the others (MAE, arXiv 2111.06377).

    `share` of the patches are hidden from the encoder; a decoder, which gets a learned vector in their place, paints
    them, and the loss is the mean squared error over their pixels. The decoder is that of the folder, or has the
    `decoder_` sizes of its configuration, and is left behind when the encoder is published. Which patches are hidden
    depends on seed, step and item alone, in validation on the item. `share` is that of this objective: what the
    encoder leaves out elsewhere is `mask_ratio` of its own settings. An item without an image counts nothing.

    It reads no user and no text: alone, it trains the image encoder (vit_mae) without its projection, and nothing else.
    MoRec's second round of pretraining (arXiv 2303.13835) for images.

    Example:
        model:
          item_encoder: {vision: {type: hf_vision, architecture: {model_type: vit_mae}}}
        objectives: {mae: {type: mae, share: 0.75}}
    """

    requests = Requests.of(views=(View.PATCHES,))
    view, field = View.PATCHES, Modality.IMAGE
    config: MAEConfig

    def meet(self, encoder: ItemHeads) -> None:
        self.head = encoder.restore(Hiding(self.view, self.config.share, self.config.normalize))
