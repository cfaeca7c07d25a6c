"""Carry all that a fusion reads of items in one stream, so that texts can be fused with images of other items."""
# Shapes: U items, T most tokens of an item, K tokens of all items, P pairs, D width, W width of the stream.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pmmrec.contracts import ItemVectors, TokenStates
from pmmrec.packing import HostArray, Ints


@dataclass(frozen=True)
class TokenRoom:
    """How much room a field of an item has in the stream: tokens, the first token if there is one, and the length."""

    num_tokens: int
    has_first: bool

    def width(self, width: int) -> int:
        """W."""
        return (self.num_tokens + self.has_first) * width + 1


def as_stream(states: TokenStates, room: TokenRoom) -> Tensor:
    """States of U items of one field, side by side, `(U, W)`."""
    num_items, width = len(states.length_R), states.cls_RD.shape[1]
    place_UT = np.arange(room.num_tokens)
    is_there_UT = place_UT < states.length_R[:, None]
    source_UT = HostArray(np.where(is_there_UT, states.start_R[:, None] + place_UT, 0).ravel())
    device, dtype = states.cls_RD.device, states.cls_RD.dtype
    columns: list[Tensor] = []
    if room.num_tokens:
        token_UTD = states.token_KD.index_select(0, source_UT.on(device)).view(num_items, room.num_tokens, width)
        token_UTD = torch.where(HostArray(is_there_UT).on(device)[:, :, None], token_UTD, 0.0)
        columns.append(token_UTD.flatten(1).to(dtype))
    if room.has_first and states.first_RD is not None:
        columns.append(states.first_RD)
    columns.append(HostArray(states.length_R).on(device).to(dtype)[:, None])
    return torch.cat(columns, dim=1)


def of_pairs(
    items: ItemVectors, rooms: Mapping[str, TokenRoom], stream: str, index: Mapping[str, Tensor]
) -> dict[str, TokenStates]:
    """The states of P pairs, whose fields come from different items, given by places in U, `(P,)` for each field.

    The host waits for the places and for the lengths.
    """
    width = items.fused_UD.shape[1]
    parts = torch.split(items.streams_UD[stream], [room.width(width) for room in rooms.values()], dim=1)
    pairs: dict[str, TokenStates] = {}
    for (field, room), part_UW in zip(rooms.items(), parts, strict=True):
        num_items, index_P = len(part_UW), index[field]
        host_P, length_U, has_U = _on_host(index_P, part_UW[:, -1], items.has_U[field], room.num_tokens)
        token_KD = part_UW[:, : room.num_tokens * width].reshape(num_items * room.num_tokens, width)
        first_PD = None
        if room.has_first:
            first_PD = part_UW[:, room.num_tokens * width : -1].index_select(0, index_P)
        cls_PD = items.cls_UD[field].index_select(0, index_P)
        start_P = host_P * room.num_tokens
        pairs[field] = TokenStates(token_KD, start_P, length_U[host_P], cls_PD, has_U[host_P], first_PD)
    return pairs


def _on_host(index_P: Tensor, length_U: Tensor, has_U: Tensor, most: int) -> tuple[Ints, Ints, np.ndarray]:
    """Places, lengths, and which items have the field; on the meta device the first item, as long as can be."""
    if length_U.is_meta:
        num_items = len(length_U)
        return np.zeros(len(index_P), dtype=np.int64), np.full(num_items, most), np.ones(num_items, dtype=bool)
    lengths: Ints = length_U.detach().round().long().cpu().numpy()
    return index_P.cpu().numpy(), lengths, has_U.cpu().numpy()
