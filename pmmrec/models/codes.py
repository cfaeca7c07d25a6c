"""Items by the codes of a stored vector, each with a row of a learned table (VQRec)."""
# Shapes: R rows that have the feature, U distinct items, M parts of a code, V values of a part, D width.

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pmmrec.context import BuildContext
from pmmrec.contracts import FieldSpec, ItemInputs, ItemVectors, StoredInputs
from pmmrec.modality import VectorSpec
from pmmrec.models import ItemEncoder, ItemEncoderConfig, item_encoders
from pmmrec.requests import View
from pmmrec.rows import laid_out
from pmmrec.settings import Config, FeatureName

PERMUTATION = "permutation"


class PermutationConfig(Config):
    """Settings of a permutation that learns; the defaults are those of VQRec."""

    sinkhorn: int = Field(3, ge=1, description="How often rows and columns are normalised.")
    temperature: float = Field(0.7, gt=0, description="Divides logits and their Gumbel noise.")


class CodesConfig(ItemEncoderConfig):
    """Settings of items by codes; the defaults are those of VQRec."""

    type: Literal["codes"] = "codes"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({"feature": "codes", "parts": 3, "values": 4},)
    feature: FeatureName = Field(description="Name of the stored codes; `pmmrec data codes` makes them.")
    parts: int = Field(32, ge=1, description="Codes of an item.")
    values: int = Field(256, ge=2, description="How many values each of them has.")
    permutation: PermutationConfig | None = Field(
        None, description="Settings of a permutation of the table's rows that learns; null: there is none."
    )
    synthetic_share: float = Field(
        0.75, gt=0, le=1, description="Chance of each code to be drawn anew in an item that an objective asks for."
    )

    @property
    def fields(self) -> frozenset[str]:
        return frozenset((self.feature,))

    @property
    def for_objectives(self) -> Mapping[str, str]:
        is_default = self.synthetic_share == type(self).model_fields["synthetic_share"].default
        return {} if is_default else {"synthetic_share": View.SYNTHETIC.value}

    @property
    def reads_new_items(self) -> bool:
        return False


class CodeTable(nn.Module):
    """A learned vector `(D,)` for each value of each part of a code."""

    def __init__(self, parts: int, values: int, width: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.empty(parts, values, width))
        nn.init.normal_(self.vector, std=0.02)

    def forward(self, code_RM: Tensor, permutation_MVV: Tensor | None = None) -> Tensor:
        """The mean of the vectors of a code's parts, `(R, D)`; row v of part m is `permutation[m, v] @ vector[m]`."""
        parts, values, width = self.vector.shape
        vector_MVD = self.vector if permutation_MVV is None else permutation_MVV @ self.vector
        place_RM = code_RM + values * torch.arange(parts, device=code_RM.device)
        return F.embedding_bag(place_RM, vector_MVD.view(parts * values, width), mode="mean")


class Permutation(nn.Module):
    """A permutation of the values of each part: logits that learn, and the assignment that was made of them.

    In an epoch in which it learns, training draws `S = Sinkhorn((logits + Gumbel noise) / temperature)` and uses the
    largest entry of each row of S, with the gradient of S (straight-through). All else uses the assignment.
    """

    place_MV: Tensor

    def __init__(self, config: PermutationConfig, parts: int, values: int) -> None:
        super().__init__()
        self.config, self.is_in_stage = config, True
        self.logit = nn.Parameter(torch.randn(parts, values, values))
        self.register_buffer("place_MV", torch.arange(values).repeat(parts, 1))

    @property
    def is_learning(self) -> bool:
        """Whether it learns in the epoch that began last."""
        return self.is_in_stage and self.logit.requires_grad

    def drawn(self) -> Tensor | None:
        """`(M, V, V)`, a one in each row; None where the assignment is to be used."""
        if not (self.is_learning and self.training):
            return None
        noise_MVV = -torch.empty_like(self.logit).exponential_().log()
        soft_MVV = sinkhorn((self.logit + noise_MVV) / self.config.temperature, self.config.sinkhorn)
        best_MV1 = soft_MVV.argmax(dim=2, keepdim=True)
        hard_MVV = torch.zeros_like(soft_MVV).scatter(2, best_MV1, 1.0)
        return hard_MVV + (soft_MVV - soft_MVV.detach())

    def forward(self, code_RM: Tensor) -> Tensor:
        """Codes under the assignment."""
        return self.place_MV[torch.arange(code_RM.shape[1], device=code_RM.device), code_RM]

    @torch.no_grad()
    def assign(self) -> None:
        """Make the assignment whose logits have the largest sum, in each part."""
        from scipy.optimize import linear_sum_assignment  # a third of a second that no other model should wait for

        logit_MVV = self.logit.clone().float().cpu().numpy()  # a view would keep FSDP2 from freeing what it gathered
        places = [linear_sum_assignment(logit_VV, maximize=True)[1] for logit_VV in logit_MVV]
        self.place_MV.copy_(torch.from_numpy(np.stack(places)))


def sinkhorn(logit_MVV: Tensor, num_rounds: int) -> Tensor:
    """Exp of the logits after rows and columns were made to add up to 1, in this order, so many times."""
    for _ in range(num_rounds):
        logit_MVV = logit_MVV - logit_MVV.logsumexp(dim=2, keepdim=True)
        logit_MVV = logit_MVV - logit_MVV.logsumexp(dim=1, keepdim=True)
    return logit_MVV.exp()


@item_encoders.register("codes", CodesConfig)
class Codes(ItemEncoder):
    """Codes `(M,)` of a stored vector, such as that of a text, look up M vectors whose mean is the item.

    The items of VQRec (https://arxiv.org/abs/2210.12316), of which nothing but the codes of their texts is read.
    Differs from the released code: no row pads, and an item without codes is the zero vector. Objectives that ask for
    synthetic items get for each item the vector of one that does not exist: each of its codes is drawn anew with a
    chance of `synthetic_share`.

    With `permutation` the part `permutation` aligns the table of a pretraining with the codes of another domain: it
    learns in a stage of its own (`train.stages`), and after each epoch an assignment is made of it, by which items are
    looked up from then on. Differs from the released code: its `ceil` has no gradient, so that the permutation keeps
    what was drawn first, and it takes the best of each row, which need not be a permutation.

    Example:
        model:
          width: 300
          item_encoder: {type: codes, feature: codes, parts: 32, values: 256, permutation: {sinkhorn: 3}}
    """

    def __init__(self, config: CodesConfig, context: BuildContext) -> None:
        super().__init__()
        self._feature, self._share, self._width = config.feature, config.synthetic_share, context.width
        self._parts, self._values = config.parts, config.values
        self.code_table = CodeTable(config.parts, config.values, context.width)
        self.permutation: Permutation | None = None
        if config.permutation is not None:
            self.permutation = Permutation(config.permutation, config.parts, config.values)

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        return dict(self.named_children())

    @property
    def reads(self) -> Mapping[str, FieldSpec]:
        return {self._feature: VectorSpec((self._parts,), self._values)}

    @property
    def training_streams(self) -> Mapping[str, int]:
        return {View.SYNTHETIC.value: self._width}

    def begin_epoch(self, frozen: Collection[str]) -> None:
        if self.permutation is not None:
            self.permutation.is_in_stage = PERMUTATION not in frozen

    def end_epoch(self) -> None:
        if self.permutation is not None and self.permutation.is_learning:
            self.permutation.assign()

    def forward(self, items: ItemInputs) -> ItemVectors:
        """Vectors of U distinct items."""
        rows = items.fields.get(self._feature)
        if not isinstance(rows, StoredInputs):
            raise TypeError(f"items hold no {self._feature}, but the model reads it; the batch builder must supply it")
        code_RM = rows.vector_RF.to(torch.int64)
        drawn_MVV = None if self.permutation is None else self.permutation.drawn()
        fused_UD = self._looked_up(code_RM, drawn_MVV, rows, items.num_items)
        streams_UD = {}
        if self.asked:
            streams_UD[View.SYNTHETIC.value] = self._looked_up(self._redrawn(code_RM), drawn_MVV, rows, items.num_items)
        return ItemVectors(fused_UD, {}, {self._feature: items.has_U[self._feature]}, streams_UD)

    def _looked_up(self, code_RM: Tensor, drawn_MVV: Tensor | None, rows: StoredInputs, num_items: int) -> Tensor:
        if self.permutation is not None and drawn_MVV is None:
            code_RM = self.permutation(code_RM)
        vector_RD = self.code_table(code_RM, drawn_MVV)
        if self.training and self.permutation is not None and drawn_MVV is None:
            vector_RD = vector_RD + 0.0 * self.permutation.logit.sum()  # a process group waits for every gradient
        return laid_out(vector_RD, rows.item_index_R, num_items)

    def _redrawn(self, code_RM: Tensor) -> Tensor:
        """Codes of which some are drawn anew; the same ones at each call where nothing is trained."""
        generator = None
        if not self.training and code_RM.device.type != "meta":
            generator = torch.Generator(code_RM.device).manual_seed(0)
        is_new_RM = torch.rand(code_RM.shape, generator=generator, device=code_RM.device) < self._share
        new_RM = torch.randint(0, self._values, code_RM.shape, generator=generator, device=code_RM.device)
        return torch.where(is_new_RM, new_RM, code_RM)
