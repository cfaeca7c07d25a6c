"""Lay out what encoders say over the items of a batch."""
# Shapes: R rows given to one encoder, U distinct items, K tokens of all items, D width.

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pmmrec.contracts import TokenStates
from pmmrec.packing import HostArray, Ints, Packing, packing_of


def laid_out(rows: Tensor, item_index_R: HostArray, num_items: int) -> Tensor:
    """R rows at the places of their U items, zeros at other places.

    A row that stands in, with place U, is left out; its gradient is 0 whatever its value.
    """
    spread = rows.new_zeros((num_items + 1, *rows.shape[1:]))
    return spread.index_copy(0, item_index_R.on(rows.device), rows)[:num_items]


def place_rows(rows: TokenStates, item_index_R: HostArray, num_items: int) -> TokenStates:
    """States of R rows as those of U items; an item without a row has no tokens, and zeros for the whole."""
    is_of_item_R = item_index_R.values < num_items  # False: it stands in
    start_U, length_U = np.zeros(num_items, dtype=np.int64), np.zeros(num_items, dtype=np.int64)
    start_U[item_index_R.values[is_of_item_R]] = rows.start_R[is_of_item_R]
    length_U[item_index_R.values[is_of_item_R]] = rows.length_R[is_of_item_R]
    return TokenStates(rows.token_KD, start_U, length_U, laid_out(rows.cls_RD, item_index_R, num_items))


def joined(first_D: Tensor, states: Sequence[TokenStates]) -> tuple[Tensor, Packing, Ints]:
    """The tokens of U items in several states, one state after another, with `first_D` before the tokens of each item.

    `(K, D)`, their packing, and the item of each of its rows. Tokens that no item has take part with a gradient of 0:
    then every process uses every parameter.
    """
    packing, order_U = packing_of(1 + np.sum([state.length_R for state in states], axis=0))
    start_U = np.empty_like(order_U)
    start_U[order_U] = packing.first_R.values
    source_K = np.zeros(packing.num_places, dtype=np.int64)  # 0: first_D
    place_U, before = start_U + 1, 1
    for state in states:
        source_K[_ranges(place_U, state.length_R)] = before + _ranges(state.start_R, state.length_R)
        place_U, before = place_U + state.length_R, before + len(state.token_KD)
    tokens = [state.token_KD for state in states]
    sources = torch.cat([first_D.to(tokens[0].dtype)[None], *tokens])
    return sources.index_select(0, HostArray(source_K).on(sources.device)), packing, order_U


def _ranges(start_U: Ints, length_U: Ints) -> Ints:
    """start, start + 1, ... of each item, so many as its length says, one item after another."""
    offset_K = np.arange(length_U.sum()) - np.repeat(np.cumsum(length_U) - length_U, length_U)
    place_K: Ints = np.repeat(start_U, length_U) + offset_K
    return place_K
