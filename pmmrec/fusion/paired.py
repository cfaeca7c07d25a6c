"""Fuse two fields of an item, each pooled to one vector: sum, concat, gate and film (MMSR, section 3.3)."""
# Shapes: U distinct items, D width.

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pmmrec.context import BuildContext
from pmmrec.contracts import TokenStates
from pmmrec.fusion import Fusion, fusions, in_order
from pmmrec.head import blocks_of
from pmmrec.packing import HostArray
from pmmrec.rows import all_tokens, joined
from pmmrec.settings import PartConfig

FieldPool = Literal["mean", "mean_without_cls", "cls"]


class PairedConfig(PartConfig):
    """Settings that all fusions of two pooled fields have."""

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"pool": "cls", "layers": 2},
        {"pool": "mean_without_cls"},
        {"pool": "cls", "norm": False, "init": "torch"},
    )
    pool: FieldPool = Field(
        default="mean",
        description="The vector of a field: the mean of its tokens, the cls token among them or not, or what its "
        "encoder pools (cls, or a mean of its own).",
    )
    norm: bool = Field(default=True, description="Whether one LayerNorm, which both fields share, comes first.")
    init: Literal["xavier", "torch"] = Field(
        default="xavier", description="How linear layers start: xavier, normal and without bias (MMSR); torch."
    )
    layers: int = Field(default=0, ge=0, description="Blocks of dropout, linear layer and ReLU above it (+DNN: 3).")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="Of the blocks; without effect where there is none.")


class Paired(Fusion):
    """Two pooled fields under one LayerNorm that both share, joined by a formula, below blocks of a DNN.

    x is the text and y the image; of two texts, x is the first by name. A field that an item lacks is 0 behind the
    LayerNorm. NineRec leaves the LayerNorm out (`norm: false`) and starts from the weights of torch (`init: torch`).
    """

    num_fields = 2

    def __init__(self, config: PairedConfig, context: BuildContext) -> None:
        super().__init__()
        width = context.width
        self.pool, self.reads_tokens = config.pool, config.pool != "cls"
        self.norm: nn.Module = nn.LayerNorm(width, eps=1e-6) if config.norm else nn.Identity()
        self.make(width)
        self.blocks = nn.Sequential(*blocks_of(config.layers, width, width, "relu", config.dropout))
        for module in self.modules():
            if isinstance(module, nn.Linear) and config.init == "xavier":
                nn.init.xavier_normal_(module.weight)
                nn.init.zeros_(module.bias)

    @abstractmethod
    def make(self, width: int) -> None:
        """Make the linear layers of the formula."""

    @abstractmethod
    def join(self, x_UD: Tensor, y_UD: Tensor) -> Tensor:
        """The formula, of fields under their LayerNorm."""

    def forward(self, states: Mapping[str, TokenStates]) -> Tensor:
        """States of the same U items by field -> `(U, D)`. ValueError unless there are two fields."""
        x_UD, y_UD = (self._normed(states[field]) for field in in_order(states))
        fused_UD: Tensor = self.blocks(self.join(x_UD, y_UD))
        return fused_UD

    def _normed(self, states: TokenStates) -> Tensor:
        has_U1 = HostArray(states.is_there_R).on(states.cls_RD.device)[:, None]
        return torch.where(has_U1, self.norm(pooled(states, self.pool)), 0.0)


def pooled(states: TokenStates, pool: FieldPool) -> Tensor:
    """One vector `(U, D)` of each item; any finite one where it lacks the field."""
    if pool == "cls":
        return states.cls_RD
    items = joined(None, [states] if pool == "mean_without_cls" else all_tokens(states))
    return items.mean(items.token_KD)


class SumConfig(PairedConfig):
    """Settings of the sum."""

    type: Literal["sum"] = "sum"


@fusions.register("sum", SumConfig)
class Sum(Paired):
    """The sum of a linear map of the text and one of the image: W_x N(x) + W_y N(y), of vectors `(U, D)`.

    Of MMSR (https://arxiv.org/abs/2403.17372); `layers: 3` is its +DNN. N is one LayerNorm for both. Differs from the
    paper: an item may lack a modality.

    Example:
        model: {item_encoder: {fusion: {type: sum, layers: 3}}}
    """

    def make(self, width: int) -> None:
        self.of_x, self.of_y = nn.Linear(width, width), nn.Linear(width, width)

    def join(self, x_UD: Tensor, y_UD: Tensor) -> Tensor:
        joined_UD: Tensor = self.of_x(x_UD) + self.of_y(y_UD)
        return joined_UD


class ConcatConfig(PairedConfig):
    """Settings of the concatenation."""

    type: Literal["concat"] = "concat"


@fusions.register("concat", ConcatConfig)
class Concat(Paired):
    """A linear map of the text beside the image: W [N(x); N(y)], of vectors `(U, D)`.

    Of MMSR (https://arxiv.org/abs/2403.17372); the rest is as in `sum`.

    Example:
        model: {item_encoder: {fusion: {type: concat}}}
    """

    def make(self, width: int) -> None:
        self.out = nn.Linear(2 * width, width)

    def join(self, x_UD: Tensor, y_UD: Tensor) -> Tensor:
        joined_UD: Tensor = self.out(torch.cat((x_UD, y_UD), dim=1))
        return joined_UD


class GateConfig(PairedConfig):
    """Settings of the gate."""

    type: Literal["gate"] = "gate"


@fusions.register("gate", GateConfig)
class Gate(Paired):
    """The text decides what passes of the image: W_o (sigmoid(W_x N(x)) * W_y N(y)), of vectors `(U, D)`.

    Of MMSR (https://arxiv.org/abs/2403.17372), whose gate is no mean of both: the text itself does not pass. With
    `norm: false, init: torch, pool: cls` it is that of NineRec (https://arxiv.org/abs/2309.07705). The rest is as in
    `sum`.

    Example:
        model: {item_encoder: {fusion: {type: gate}}}
    """

    def make(self, width: int) -> None:
        self.of_x, self.of_y, self.out = (nn.Linear(width, width) for _ in range(3))

    def join(self, x_UD: Tensor, y_UD: Tensor) -> Tensor:
        joined_UD: Tensor = self.out(self.of_x(x_UD).sigmoid() * self.of_y(y_UD))
        return joined_UD


class FilmConfig(PairedConfig):
    """Settings of FiLM."""

    type: Literal["film"] = "film"


@fusions.register("film", FilmConfig)
class Film(Paired):
    """The text scales and shifts the image: W_o (g * N(y) + b) with (g, b) = W N(x), of vectors `(U, D)`.

    Of MMSR (https://arxiv.org/abs/2403.17372), after FiLM (https://arxiv.org/abs/1709.07871), whose 1 + g it leaves
    out. The rest is as in `sum`.

    Example:
        model: {item_encoder: {fusion: {type: film}}}
    """

    def make(self, width: int) -> None:
        self.of_x, self.out = nn.Linear(width, 2 * width), nn.Linear(width, width)

    def join(self, x_UD: Tensor, y_UD: Tensor) -> Tensor:
        scale_UD, shift_UD = self.of_x(x_UD).chunk(2, dim=1)
        joined_UD: Tensor = self.out(scale_UD * y_UD + shift_UD)
        return joined_UD
