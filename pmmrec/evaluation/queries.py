"""Compute the states of users after their histories: what validation, ranking, lists and indices score items for."""
# B users, L inputs of some of them, H items of all histories, N items of the catalogue, D width.

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pmmrec.contracts import History, ItemVectors, Query, UserStates, to_device
from pmmrec.evaluation.ranking import Rows
from pmmrec.packing import HostArray, Ints
from pmmrec.users import UserEncoder

SHORTEST = 4  # inputs that a history is padded to, at least


def queries_after(
    user_encoder: UserEncoder,
    items: ItemVectors,
    offset_B: Ints,
    item_H: Rows,
    device: torch.device,
    *,
    keeps_histories: bool = False,
    num_inputs: int | None = None,
    user_index_B: Ints | None = None,
    user_MD: Tensor | None = None,
) -> Query:
    """One query for each history item_H[offset_B[i]:offset_B[i+1]], on `device`.

    `items` are those of the whole catalogue; they may lie on another device. A history is cut to the encoder's most
    recent inputs and padded on the left to a power of two (or to all inputs): short ones cost little, and a state does
    not depend on the other users. With `num_inputs` all are padded to that length and the encoder is called once, since
    processes that share its weights must call it equally often. With `keeps_histories` the states before the queried
    one are there as well; else it stands alone. `user_index_B`: who the users are, among those of all domains of the
    model, for an encoder that knows users by id; `user_MD`: the vectors that a graph gave them. The encoder is used as
    it is: put it into eval mode, and call without gradients.
    """
    length_B = np.minimum(np.diff(offset_B), user_encoder.max_inputs)
    padded_B = np.maximum(SHORTEST, 2 ** np.ceil(np.log2(np.maximum(length_B, 1))).astype(np.int64))
    padded_B = np.minimum(padded_B, user_encoder.max_inputs)
    if num_inputs is not None:
        padded_B[:] = num_inputs
    groups = []
    for length in np.unique(padded_B).tolist():
        rows = np.flatnonzero(padded_B == length)
        users = None if user_index_B is None else torch.from_numpy(user_index_B[rows])
        history = to_device(_histories(items, offset_B, item_H, rows, length, users, user_MD), device)
        history = dataclasses.replace(history, last_alone=not keeps_histories)
        groups.append((torch.from_numpy(rows).to(device), user_encoder.query(history)))
    if not keeps_histories:
        hidden_B1D = torch.cat([query.hidden_KD for _, query in groups])[:, None]
        states = UserStates(hidden_B1D.float(), hidden_B1D.new_ones(hidden_B1D.shape[:2], dtype=torch.bool))
    else:
        states = _joined([query.states for _, query in groups])
    order_B = torch.cat([rows for rows, _ in groups]).argsort()
    return Query.last(UserStates(states.hidden_BLD[order_B], states.is_valid_BL[order_B]))


def _histories(
    items: ItemVectors,
    offset_B: Ints,
    item_H: Rows,
    rows: Ints,
    num_inputs: int,
    user_index_B: Tensor | None,
    user_MD: Tensor | None,
) -> History:
    """The last `num_inputs` items of some histories, left-padded."""
    place_BL = offset_B[rows + 1][:, None] - num_inputs + np.arange(num_inputs)
    is_valid_BL = place_BL >= offset_B[rows][:, None]
    item_index_BL = np.zeros(place_BL.shape, dtype=np.int64)
    item_index_BL[is_valid_BL] = item_H[place_BL[is_valid_BL]]
    where = items.fused_UD.device
    index_BL = torch.from_numpy(item_index_BL).to(where)
    return History.of(
        items,
        index_BL,
        torch.from_numpy(is_valid_BL).to(where),
        user_index_B=user_index_B,
        user_MD=user_MD,
        length_B=HostArray(is_valid_BL.sum(axis=1)),
    )


def _joined(groups: list[UserStates]) -> UserStates:
    """States of several lengths, padded on the left to the longest."""
    longest = max(states.is_valid_BL.shape[1] for states in groups)
    missing = [longest - states.is_valid_BL.shape[1] for states in groups]
    return UserStates(
        torch.cat([F.pad(s.hidden_BLD, (0, 0, n, 0)) for s, n in zip(groups, missing, strict=True)]).float(),
        torch.cat([F.pad(s.is_valid_BL, (n, 0)) for s, n in zip(groups, missing, strict=True)]),
    )
