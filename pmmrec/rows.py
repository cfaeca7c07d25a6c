"""Lay out what encoders say over the items of a batch."""
# Shapes: R rows given to one encoder, U distinct items, K tokens of all items, D width.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    has_U = np.zeros(num_items, dtype=bool)
    has_U[item_index_R.values[is_of_item_R]] = True
    start_U[item_index_R.values[is_of_item_R]] = rows.start_R[is_of_item_R]
    length_U[item_index_R.values[is_of_item_R]] = rows.length_R[is_of_item_R]
    cls_UD, first_RD = laid_out(rows.cls_RD, item_index_R, num_items), rows.first_RD
    first_UD = cls_UD if first_RD is rows.cls_RD else None
    if first_RD is not None and first_UD is None:
        first_UD = laid_out(first_RD, item_index_R, num_items)
    return TokenStates(rows.token_KD, start_U, length_U, cls_UD, has_U, first_UD)


@dataclass(frozen=True)
class Joined:
    """The tokens of U items, packed: each row of the packing holds those of one item."""

    token_KD: Tensor
    packing: Packing
    row_U: Ints  # on the host: which row of the packing each item has
    state_K: Ints  # on the host: which state each token is of, from 1; 0: the vector before them, or zeros

    def first(self, token_KD: Tensor) -> Tensor:
        """The first token of each item, `(U, D)`, out of tokens that lie as these do."""
        return self.of_items(self.packing.first(token_KD))

    def mean(self, token_KD: Tensor) -> Tensor:
        """The mean of the tokens of each item, `(U, D)`, out of tokens that lie as these do."""
        return self.of_items(self.packing.mean(token_KD))

    def of_items(self, rows: Tensor) -> Tensor:
        """Rows of the packing in the order of the items."""
        return rows.index_select(0, HostArray(self.row_U).on(rows.device))


def joined(first_D: Tensor | None, states: Sequence[TokenStates]) -> Joined:
    """The tokens of U items in several states, one state after another, with `first_D` before the tokens of each item.

    Without `first_D`, an item without any token gets one of zeros. Tokens that no item has take part with a gradient of
    0: then every process uses every parameter.
    """
    num_tokens_U = np.sum([state.length_R for state in states], axis=0)
    num_before_U = np.ones_like(num_tokens_U) if first_D is not None else (num_tokens_U == 0).astype(np.int64)
    packing, order_U = packing_of(num_before_U + num_tokens_U)
    row_U = np.argsort(order_U)
    source_K = np.zeros(packing.num_places, dtype=np.int64)  # 0: first_D, or zeros
    state_K = np.zeros_like(source_K)
    place_U, before = packing.first_R.values[row_U] + num_before_U, 1
    for number, state in enumerate(states, start=1):
        place_k = _ranges(place_U, state.length_R)
        source_K[place_k], state_K[place_k] = before + _ranges(state.start_R, state.length_R), number
        place_U, before = place_U + state.length_R, before + len(state.token_KD)
    tokens = [state.token_KD for state in states]
    first_1D = tokens[0].new_zeros(1, tokens[0].shape[1]) if first_D is None else first_D.to(tokens[0].dtype)[None]
    sources = torch.cat([first_1D, *tokens])
    return Joined(sources.index_select(0, HostArray(source_K).on(sources.device)), packing, row_U, state_K)


def all_tokens(states: TokenStates) -> list[TokenStates]:
    """The states, behind others whose only token of an item is its first one, where the encoder has a cls token."""
    if states.first_RD is None:
        return [states]
    start_R, length_R = np.arange(len(states.first_RD)), states.is_there_R.astype(np.int64)
    return [TokenStates(states.first_RD, start_R, length_R, states.cls_RD), states]


def _ranges(start_U: Ints, length_U: Ints) -> Ints:
    """start, start + 1, ... of each item, so many as its length says, one item after another."""
    offset_K = np.arange(length_U.sum()) - np.repeat(np.cumsum(length_U) - length_U, length_U)
    place_K: Ints = np.repeat(start_U, length_U) + offset_K
    return place_K
