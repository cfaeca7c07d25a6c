"""Dilated convolutions over the items that a user touched (NextItNet)."""
# Shapes: B users, L positions, K valid positions of all users or some of them, T taps of a convolution, D width.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pmmrec.adapters import Host, Sites
from pmmrec.context import BuildContext
from pmmrec.contracts import History, UserStates
from pmmrec.packing import HostArray, Ints, Packing
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


Ages = frozenset[int] | None  # places by how many items of their user follow, of all users; None: every place


class Taps:
    """What layers over packed histories read of the one below, whose numbers may be there at some places alone."""

    def __init__(self, packing: Packing, device: torch.device) -> None:
        """`packing`: of the histories."""
        self._packing, self._device = packing, device
        self._places: dict[Ages, Ints] = {}
        self._rows: dict[tuple[tuple[int, ...], Ages, Ages], Tensor] = {}

    def of(self, x_kD: Tensor, shift_T: Sequence[int], held: Ages, asked: Ages) -> Tensor:
        """`(K, T, D)`: for each place that is asked for what lies so many places before it; zeros before a history.

        `held`: the places that `x_kD` has; they must hold all that is asked for.
        """
        shifts = tuple(shift_T)
        if (key := (shifts, held, asked)) not in self._rows:
            own_K1, shift_1T = self._of(asked)[:, None], np.array(shifts)
            read_KT = own_K1 - shift_1T
            row_KT = read_KT if held is None else np.searchsorted(self._of(held), read_KT)
            is_there_KT = self._packing.place_K.values[own_K1] >= shift_1T
            self._rows[key] = HostArray(np.where(is_there_KT, row_KT + 1, 0).ravel()).on(self._device)
        rows, width = self._rows[key], x_kD.shape[1]
        return F.pad(x_kD, (0, 0, 1, 0)).index_select(0, rows).view(len(rows) // len(shifts), len(shifts), width)

    def at(self, x_kD: Tensor, held: Ages, asked: Ages) -> Tensor:
        """What stands at the places that are asked for, `(K, D)`."""
        return x_kD if held == asked else self.of(x_kD, (0,), held, asked)[:, 0]

    def _of(self, ages: Ages) -> Ints:
        """The packed places of these ages, rising."""
        if ages not in self._places:
            packing = self._packing
            from_end_K = packing.length_R[packing.row_K] - 1 - packing.place_K.values
            is_asked_K = np.isin(from_end_K, list(ages)) if ages is not None else np.ones_like(from_end_K, dtype=bool)
            self._places[ages] = np.flatnonzero(is_asked_K)
        return self._places[ages]


class CausalConvolution(nn.Module):
    """A linear map of the items at `l - (T - 1) * dilation, ..., l - dilation, l`; zeros before the first item.

    `weights` is the convolution as a linear layer: its columns are those of the taps, oldest first, so that
    `weights.weight.view(D, T, D)` is `nn.Conv1d.weight.transpose(1, 2)`.
    """

    def __init__(self, width: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        self.shifts = [tap * dilation for tap in range(kernel_size)][::-1]
        self.weights = nn.Linear(kernel_size * width, width)

    def forward(self, x_KD: Tensor, tap_KTD: Tensor) -> Tensor:
        """What stands at places, `(K, D)`, and their taps `(K, T, D)`, of which it is the last -> `(K, D)`."""
        del x_KD  # read by adapters that stand beside the convolution
        out_KD: Tensor = self.weights(tap_KTD.flatten(1))
        return out_KD


@dataclass(frozen=True)
class BlockPlaces:
    """The places at which a block is given its input, and at which its convolutions are computed."""

    inputs: Ages = None
    inner: Ages = None  # of the first convolution
    outputs: Ages = None  # of the second
    cls: Ages = None  # places that are followed by the learned vector


class NextItNetBlock(nn.Module):
    """Two convolutions, each followed by LayerNorm and ReLU, and the residual sum (figure 3b of the paper)."""

    def __init__(self, width: int, kernel_size: int, dilation: int, norm_eps: float) -> None:
        super().__init__()
        self.first = CausalConvolution(width, kernel_size, dilation)
        self.first_norm = nn.LayerNorm(width, eps=norm_eps)
        self.second = CausalConvolution(width, kernel_size, 2 * dilation)
        self.second_norm = nn.LayerNorm(width, eps=norm_eps)

    def forward(
        self, x_KD: Tensor, taps: Taps, cls_KD: Tensor | None, places: BlockPlaces
    ) -> tuple[Tensor, Tensor | None]:
        """`(K, D)` of packed histories -> `(K, D)`; the same of what follows each place, if there is anything."""
        given, within, asked = places.inputs, places.inner, places.outputs
        tap_KTD = taps.of(x_KD, self.first.shifts, given, within)
        inner_KD = F.relu(self.first_norm(self.first(taps.at(x_KD, given, within), tap_KTD)))
        tap_KTD = taps.of(inner_KD, self.second.shifts, within, asked)
        change_KD = F.relu(self.second_norm(self.second(taps.at(inner_KD, within, asked), tap_KTD)))
        out_KD = taps.at(x_KD, given, asked) + change_KD
        if cls_KD is None:
            return out_KD, None
        past_KTD = taps.of(x_KD, _before_next(self.first), given, places.cls)
        inner_cls_KD = F.relu(self.first_norm(self.first(cls_KD, torch.cat((past_KTD, cls_KD[:, None]), dim=1))))
        past_KTD = taps.of(inner_KD, _before_next(self.second), within, places.cls)
        tap_KTD = torch.cat((past_KTD, inner_cls_KD[:, None]), dim=1)
        return out_KD, cls_KD + F.relu(self.second_norm(self.second(inner_cls_KD, tap_KTD)))

    def places(self, outputs: frozenset[int], longest: int, *, with_cls: bool) -> BlockPlaces:
        """What must be computed for these outputs, and with `with_cls` for the learned vector behind the last place.

        `longest`: the length of the longest history; what lies further back does not exist.
        """

        def read_by(ages: frozenset[int], convolution: CausalConvolution) -> frozenset[int]:
            found = {age + shift for age in ages for shift in convolution.shifts}
            found |= set(_before_next(convolution)) if with_cls else set()
            return frozenset(age for age in found if age < longest)

        inner = read_by(outputs, self.second)
        return BlockPlaces(outputs | read_by(inner, self.first), inner, outputs, frozenset({0}))


def _before_next(convolution: CausalConvolution) -> list[int]:
    """How far before a place the taps of what follows it lie."""
    return [shift - 1 for shift in convolution.shifts[:-1]]


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
        taps, places = Taps(packed.packing, history.item_BLD.device), self._places(packed)
        hidden_KD, cls_KD = packed.packed(history.item_BLD), None
        if self.cls is not None:
            num_cls = packed.packing.num_rows if history.last_alone else len(hidden_KD)
            cls_KD = self.cls(packed.place_K.new_zeros(1)).to(hidden_KD.dtype).expand(num_cls, -1)
        hidden_KD = taps.at(hidden_KD, None, places[0].inputs)
        for block, of_block in zip(self.blocks, places, strict=True):
            hidden_KD, cls_KD = block(hidden_KD, taps, cls_KD, of_block)
        return packed.states(self.output(hidden_KD if cls_KD is None else cls_KD))

    def _places(self, packed: PackedHistory) -> list[BlockPlaces]:
        """Where each block is computed: everywhere, or where it is read for the last states."""
        if not packed.history.last_alone:
            return [BlockPlaces()] * len(self.blocks)
        has_cls, longest = self.cls is not None, packed.packing.longest
        places, outputs = list[BlockPlaces](), frozenset(() if has_cls else (0,))
        blocks: list[Any] = list(self.blocks)
        for block in reversed(blocks):
            places.append(block.places(outputs, longest, with_cls=has_cls))
            outputs = places[-1].inputs or frozenset()
        return places[::-1]
