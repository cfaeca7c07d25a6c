"""Dilated convolutions over the items that a user touched (NextItNet)."""
# Shapes: B users, L positions, K valid positions of all users, T taps of a convolution, D width.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pmmrec.adapters import Host, Sites
from pmmrec.context import BuildContext
from pmmrec.contracts import History, UserStates
from pmmrec.packing import HostArray
from pmmrec.settings import PartConfig
from pmmrec.users import UserEncoder, user_encoders
from pmmrec.users.packed import PackedHistory, refuse_longer

# A convolution takes the place of each sub-layer of a Transformer block.
SITES = Sites(
    query_value=r"(first|second)\.weights",
    key_value=r"first\.weights",
    attention=(r"first", r"first\.weights"),
    feed_forward=(r"second", r"second\.weights"),
)


class NextItNetConfig(PartConfig):
    """Settings of the NextItNet user encoder; the defaults are those of MoRec, MMSR and NineRec."""

    type: Literal["nextitnet"] = "nextitnet"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"dilations": (1, 2), "repeats": 1, "kernel_size": 2, "output_layer": True},
    )
    dilations: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(1, 4),
        min_length=1,
        description="Of the first convolution of a block, one block for each; the second has twice as much.",
    )
    repeats: int = Field(default=2, ge=1, le=1000, description="How often the blocks of `dilations` are stacked.")
    kernel_size: int = Field(default=3, ge=2, description="Positions that a convolution reads: its own and past ones.")
    norm_eps: float = Field(default=1e-8, gt=0)
    output_layer: bool = Field(default=False, description="Whether a linear layer follows the last block (RecBole).")
    max_inputs: int = Field(default=20, ge=1, description="The longest history it can read.")


class CausalConvolution(nn.Module):
    """A linear map of the items at `l - (T - 1) * dilation, ..., l - dilation, l`; zeros before the first item.

    `weights` is the convolution as a linear layer: its columns are those of the taps, oldest first, so that
    `weights.weight.view(D, T, D)` is `nn.Conv1d.weight.transpose(1, 2)`.
    """

    def __init__(self, width: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        self.kernel_size, self.dilation = kernel_size, dilation
        self.weights = nn.Linear(kernel_size * width, width)

    def forward(self, x_KD: Tensor, place_K: HostArray) -> Tensor:
        """`(K, D)` of packed histories -> `(K, D)`. `place_K`: how many items of its user lie before each place."""
        source = self._sources(place_K).on(x_KD.device)
        tap_KTD = F.pad(x_KD, (0, 0, 1, 0)).index_select(0, source)
        out_KD: Tensor = self.weights(tap_KTD.view(len(x_KD), -1))
        return out_KD

    def _sources(self, place_K: HostArray) -> HostArray:
        """Flat `(K, T)`: 1 + the place that each tap reads; 0, a row of zeros, where the history has not begun."""
        shift_T = np.arange(self.kernel_size)[::-1] * self.dilation
        own_K1 = np.arange(1, len(place_K) + 1)[:, None]
        return HostArray(np.where(place_K.values[:, None] >= shift_T, own_K1 - shift_T, 0).ravel())


class NextItNetBlock(nn.Module):
    """Two convolutions, each followed by LayerNorm and ReLU, and the residual sum (figure 3b of the paper)."""

    def __init__(self, width: int, kernel_size: int, dilation: int, norm_eps: float) -> None:
        super().__init__()
        self.first = CausalConvolution(width, kernel_size, dilation)
        self.first_norm = nn.LayerNorm(width, eps=norm_eps)
        self.second = CausalConvolution(width, kernel_size, 2 * dilation)
        self.second_norm = nn.LayerNorm(width, eps=norm_eps)

    def forward(self, x_KD: Tensor, place_K: HostArray) -> Tensor:
        """`(K, D)` of packed histories -> `(K, D)`."""
        inner_KD = F.relu(self.first_norm(self.first(x_KD, place_K)))
        return x_KD + F.relu(self.second_norm(self.second(inner_KD, place_K)))


@user_encoders.register("nextitnet", NextItNetConfig)
class NextItNet(UserEncoder):
    """Residual blocks of causal dilated convolutions over item vectors `(B, L, D)`; no positions, no dropout.

    A block is `x + relu(LN(conv(2q)(relu(LN(conv(q)(x))))))` with dilations q = 1, 4, 1, 4: NextItNet (arXiv
    1808.05163) as MoRec, MMSR and NineRec use it; PeterRec (arXiv 2001.04253) inserts adapters into it. A state sees
    `1 + 3 (T - 1) sum q` items, its own included: 61 by default. Differs from the released codes: they convolve padding
    as items of zeros, which biases turn into others, so that a state depends on how much padding there is. Here there
    are zeros before the first item of every convolution. Weights start as those of torch's convolutions.

    Example:
        model: {user_encoder: {type: nextitnet, dilations: [1, 4], repeats: 2}}
    """

    def __init__(self, config: NextItNetConfig, context: BuildContext) -> None:
        super().__init__()
        self.max_inputs = config.max_inputs
        self.blocks = nn.ModuleList(
            NextItNetBlock(context.width, config.kernel_size, dilation, config.norm_eps)
            for dilation in config.dilations * config.repeats
        )
        self.output = nn.Linear(context.width, context.width) if config.output_layer else nn.Identity()

    @property
    def host(self) -> Host:
        """Its blocks, which may carry adapters."""
        blocks = tuple(f"blocks.{place}" for place in range(len(self.blocks)))
        return Host(self, "", type(self).__name__, blocks, SITES, ("nextitnet",))

    def forward(self, history: History) -> UserStates:
        """States `(B, L, D)`. RecipeError where L is above `max_inputs`."""
        refuse_longer(history, self.max_inputs)
        packed = PackedHistory.of(history)
        hidden_KD = packed.packed(history.item_BLD)
        for block in self.blocks:
            hidden_KD = block(hidden_KD, packed.packing.place_K)
        return packed.states(self.output(hidden_KD))
