"""Items by a stored vector that a mixture of whitening experts maps (UniSRec)."""
# Shapes: R rows that have the feature, U distinct items, F length of a stored vector, E experts, D width.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from pmmrec.context import BuildContext
from pmmrec.contracts import FieldSpec, ItemInputs, ItemVectors, StoredInputs
from pmmrec.dropout import Dropout
from pmmrec.modality import VectorSpec
from pmmrec.models import ItemEncoder, ItemEncoderConfig, item_encoders
from pmmrec.requests import View
from pmmrec.rows import laid_out
from pmmrec.settings import FeatureName

LEAST_NOISE = 0.01  # the least standard deviation of the noise at the gate


class MixtureConfig(ItemEncoderConfig):
    """Settings of a mixture of experts over a stored vector; the defaults are those of UniSRec."""

    type: Literal["mixture"] = "mixture"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"feature": "content", "length": 5, "noise": False},
        {"feature": "content", "length": 5, "experts": 2, "dropout": 0, "noise": False, "reworded": "dropped"},
    )
    feature: FeatureName = Field(description="Name of the stored feature; `pmmrec data features` stores it.")
    length: int = Field(ge=1, description="Length of its vectors.")
    experts: int = Field(8, ge=1)
    dropout: float = Field(0.2, ge=0, lt=1, description="Of the stored vector, drawn for each expert.")
    noise: bool = Field(True, description="Whether training adds learned noise to the gate.")
    reworded: FeatureName | None = Field(
        None, description="A second feature of the same length: texts with words left out. Read by training alone."
    )

    @model_validator(mode="after")
    def _reads_two_features(self) -> Self:
        if self.reworded == self.feature:
            raise ValueError("reworded: is the feature itself; name a second one, or leave it out")
        return self

    @property
    def fields(self) -> frozenset[str]:
        return frozenset((self.feature,))

    @property
    def for_objectives(self) -> Mapping[str, str]:
        return {} if self.reworded is None else {"reworded": View.REWORDED.value}

    @property
    def reads_new_items(self) -> bool:
        return False


class MixtureOfExperts(nn.Module):
    """The mixture of E parametric whitenings `(x - b_e) W_e`; the gate sees all experts, its softmax is dense."""

    def __init__(self, config: MixtureConfig, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.experts, config.length, width))
        nn.init.normal_(self.weight, std=0.02)
        self.bias = nn.Parameter(torch.zeros(config.experts, config.length))
        self.gate = nn.Parameter(torch.zeros(config.length, config.experts))
        self.noise = nn.Parameter(torch.zeros(config.length, config.experts)) if config.noise else None
        self.dropout = Dropout(config.dropout)

    def forward(self, x_RF: Tensor) -> Tensor:
        """`(R, F)` -> `(R, D)`."""
        share_RE = self._logits(x_RF).softmax(dim=1)
        experts = zip(self.bias, self.weight, share_RE.T, strict=True)
        weighted = [share_R[:, None] * ((self.dropout(x_RF) - bias_F) @ map_FD) for bias_F, map_FD, share_R in experts]
        return torch.stack(weighted).sum(dim=0)

    def _logits(self, x_RF: Tensor) -> Tensor:
        logit_RE = x_RF @ self.gate
        if self.noise is None or not self.training:
            return logit_RE
        spread_RE = F.softplus(x_RF @ self.noise) + LEAST_NOISE
        return logit_RE + torch.randn_like(logit_RE) * spread_RE


@item_encoders.register("mixture", MixtureConfig)
class Mixture(ItemEncoder):
    """A stored vector `(F,)`, such as the cls vector of a frozen text encoder, mapped by a mixture of experts.

    The items of UniSRec (https://arxiv.org/abs/2206.05941): expert e whitens, `(dropout(x) - b_e) W_e`, and a softmax
    over `x W_g` weighs the experts; in training `x W_g` has normal noise of deviation `softplus(x W_n) + 0.01`. W_g and
    W_n start at 0. An item without the feature is the zero vector. Differs from the released code: the weights of all
    experts are one tensor.

    Under `reworded` an objective that asks for it gets the vectors of the same items by a second text, whose words were
    partly left out; an item without one keeps its own.

    Example:
        model:
          width: 300
          item_encoder: {type: mixture, feature: content, length: 768, experts: 8, dropout: 0.2, reworded: dropped}
    """

    def __init__(self, config: MixtureConfig, context: BuildContext) -> None:
        super().__init__()
        self._feature, self._reworded, self._length = config.feature, config.reworded, config.length
        self._width = context.width
        self.mixture = MixtureOfExperts(config, context.width)

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        return {"mixture": self.mixture}

    @property
    def reads(self) -> Mapping[str, FieldSpec]:
        second = () if self._reworded is None or not self.asked else (self._reworded,)
        return dict.fromkeys((self._feature, *second), VectorSpec((self._length,)))

    @property
    def training_streams(self) -> Mapping[str, int]:
        return {} if self._reworded is None else {View.REWORDED.value: self._width}

    def forward(self, items: ItemInputs) -> ItemVectors:
        """Vectors of U distinct items."""
        has_U = {name: items.has_U[name] for name in self.reads}
        fused_UD = self._mapped(items, self._feature)
        if not self.asked or self._reworded is None:
            return ItemVectors(fused_UD, {}, has_U)
        reworded_UD = torch.where(has_U[self._reworded][:, None], self._mapped(items, self._reworded), fused_UD)
        return ItemVectors(fused_UD, {}, has_U, {View.REWORDED.value: reworded_UD})

    def _mapped(self, items: ItemInputs, name: str) -> Tensor:
        rows = items.fields.get(name)
        if not isinstance(rows, StoredInputs):
            raise TypeError(f"items hold no {name}, but the model reads it; the batch builder must supply it")
        mapped_RD = self.mixture(rows.vector_RF.to(self.mixture.weight.dtype))
        return laid_out(mapped_RD, rows.item_index_R, items.num_items)
