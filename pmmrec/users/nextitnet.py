"""Dilated convolutions over the items that a user touched (NextItNet)."""
# Shapes: B users, L positions, K valid positions of all users, T taps of a convolution, D width.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
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
        {"repeats": 1, "cls": True},
    )
    dilations: tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...] = Field(
        default=(1, 4),
        min_length=1,
        description="Of the first convolution of a block, one block for each; the second has twice as much.",
    )
    repeats: int = Field(default=2, ge=1, le=1000, description="How often the blocks of `dilations` are stacked.")
    kernel_size: int = Field(
        default=3, ge=2, le=1000, description="Positions that a convolution reads: its own and past ones."
    )
    norm_eps: float = Field(default=1e-8, gt=0)
    output_layer: bool = Field(default=False, description="Whether a linear layer follows the last block (RecBole).")
    cls: bool = Field(
        default=False,
        description="Whether a state is that of a learned vector behind the item ([CLS] of PeterRec); twice the work.",
    )
    max_inputs: int = Field(default=20, ge=1, description="The longest history it can read.")


class Taps:
    """What convolutions over packed histories read: rows of their inputs, behind a row of zeros."""

    def __init__(self, place_K: HostArray, device: torch.device) -> None:
        """`place_K`: how many items of its user lie before each place."""
        self._place_K, self._device = place_K.values, device
        self._rows: dict[tuple[int, ...], Tensor] = {}

    def of(self, x_KD: Tensor, shift_T: Sequence[int]) -> Tensor:
        """`(K, T, D)`: for each place what lies so many places before it; zeros where the history has not begun."""
        shifts = tuple(shift_T)
        if shifts not in self._rows:
            own_K1 = np.arange(1, len(self._place_K) + 1)[:, None]
            row_KT = np.where(self._place_K[:, None] >= np.array(shifts), own_K1 - np.array(shifts), 0)
            self._rows[shifts] = HostArray(row_KT.ravel()).on(self._device)
        return F.pad(x_KD, (0, 0, 1, 0)).index_select(0, self._rows[shifts]).view(len(x_KD), len(shifts), -1)


class CausalConvolution(nn.Module):
    """A linear map of the items at `l - (T - 1) * dilation, ..., l - dilation, l`; zeros before the first item.

    `weights` is the convolution as a linear layer: its columns are those of the taps, oldest first, so that
    `weights.weight.view(D, T, D)` is `nn.Conv1d.weight.transpose(1, 2)`.
    """

    def __init__(self, width: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        self.shifts = [tap * dilation for tap in range(kernel_size)][::-1]
        self.weights = nn.Linear(kernel_size * width, width)

    def forward(self, x_KD: Tensor, taps: Taps, before_KD: Tensor | None = None) -> Tensor:
        """`(K, D)` of packed histories -> `(K, D)`.

        `before_KD`: None: x is what stands at the places, one item after another. Else `before_KD` is, and x follows
        each of them in place of the next one.
        """
        if before_KD is None:
            tap_KTD = taps.of(x_KD, self.shifts)
        else:
            past_KTD = taps.of(before_KD, [shift - 1 for shift in self.shifts[:-1]])
            tap_KTD = torch.cat((past_KTD, x_KD[:, None]), dim=1)
        out_KD: Tensor = self.weights(tap_KTD.flatten(1))
        return out_KD


class NextItNetBlock(nn.Module):
    """Two convolutions, each followed by LayerNorm and ReLU, and the residual sum (figure 3b of the paper)."""

    def __init__(self, width: int, kernel_size: int, dilation: int, norm_eps: float) -> None:
        super().__init__()
        self.first = CausalConvolution(width, kernel_size, dilation)
        self.first_norm = nn.LayerNorm(width, eps=norm_eps)
        self.second = CausalConvolution(width, kernel_size, 2 * dilation)
        self.second_norm = nn.LayerNorm(width, eps=norm_eps)

    def forward(self, x_KD: Tensor, taps: Taps, cls_KD: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """`(K, D)` of packed histories -> `(K, D)`; the same of what follows each place, if there is anything."""
        inner_KD = F.relu(self.first_norm(self.first(x_KD, taps)))
        out_KD = x_KD + F.relu(self.second_norm(self.second(inner_KD, taps)))
        if cls_KD is None:
            return out_KD, None
        inner_cls_KD = F.relu(self.first_norm(self.first(cls_KD, taps, x_KD)))
        return out_KD, cls_KD + F.relu(self.second_norm(self.second(inner_cls_KD, taps, inner_KD)))


@user_encoders.register("nextitnet", NextItNetConfig)
class NextItNet(UserEncoder):
    """Residual blocks of causal dilated convolutions over item vectors `(B, L, D)`; no positions, no dropout.

    A block is `x + relu(LN(conv(2q)(relu(LN(conv(q)(x))))))` with dilations q = 1, 4, 1, 4: NextItNet (arXiv
    1808.05163) as MoRec, MMSR and NineRec use it; PeterRec (arXiv 2001.04253) inserts adapters into it. A state sees
    `1 + 3 (T - 1) sum q` items, its own included: 61 by default. Differs from the released codes: they convolve padding
    as items of zeros, which biases turn into others, so that a state depends on how much padding there is. Here there
    are zeros before the first item of every convolution. Weights start as those of torch's convolutions.

    With `cls` the state of a position is what the blocks make of a learned vector that follows its item, as at the end
    of the histories of PeterRec; here it can be trained at every position, and so in pretraining too.

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
        self.cls = nn.Embedding(1, context.width) if config.cls else None
        if self.cls is not None:
            nn.init.normal_(self.cls.weight, std=0.02)
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
        cls_KD = (
            None if self.cls is None else self.cls(packed.place_K.new_zeros(1)).to(hidden_KD.dtype).expand_as(hidden_KD)
        )
        taps = Taps(packed.packing.place_K, hidden_KD.device)
        for block in self.blocks:
            hidden_KD, cls_KD = block(hidden_KD, taps, cls_KD)
        return packed.states(self.output(hidden_KD if cls_KD is None else cls_KD))
