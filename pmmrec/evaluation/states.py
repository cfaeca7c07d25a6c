"""Compute the states of users after their histories."""
# B users, L inputs of some of them, H items of all histories, N items of the catalogue, D width.

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pmmrec.users import UserEncoder

SHORTEST = 4  # inputs that a history is padded to, at least

Ints = NDArray[np.int64]


def states_after(
    user_encoder: UserEncoder, vectors_ND: Tensor, offset_B: Ints, item_H: Ints, device: torch.device
) -> Tensor:
    """Hidden states after the histories item_H[offset_B[i]:offset_B[i+1]], none of them empty; `(B, D)` on `device`.

    A history is cut to the encoder's most recent inputs and padded to a power of two (or to all inputs): short ones
    cost little, and a state does not depend on the other users. Vectors may lie on another device. The encoder is
    used as it is: put it into eval mode, and call without gradients.
    """
    length_B = np.minimum(np.diff(offset_B), user_encoder.max_inputs)
    padded_B = np.minimum(
        np.maximum(SHORTEST, 2 ** np.ceil(np.log2(length_B)).astype(np.int64)), user_encoder.max_inputs
    )
    state_BD = torch.empty(len(length_B), vectors_ND.shape[1], device=device)
    for num_inputs in np.unique(padded_B).tolist():
        rows = np.flatnonzero(padded_B == num_inputs)
        place_BL = offset_B[rows + 1][:, None] - num_inputs + np.arange(num_inputs)
        is_valid_BL = torch.from_numpy(place_BL >= offset_B[rows][:, None])
        item_BL = torch.from_numpy(item_H[np.maximum(place_BL, 0)].astype(np.int64))
        input_BLD = F.embedding(item_BL.to(vectors_ND.device), vectors_ND).to(device)
        is_valid_BL = is_valid_BL.to(device)
        hidden_BLD = user_encoder(torch.where(is_valid_BL[:, :, None], input_BLD, 0.0), is_valid_BL)
        state_BD[torch.from_numpy(rows).to(device)] = hidden_BLD[:, -1].float()
    return state_BD
