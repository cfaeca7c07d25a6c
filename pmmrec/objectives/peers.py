"""Gather rows of the users of all processes."""
# Shapes: B users of this process, A of them that count, G those of all processes.

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pmmrec.contracts import Peers


def rows_of_all(rows: Sequence[Tensor], is_counted_B: Tensor, peers: Peers | None) -> tuple[list[Tensor], Tensor]:
    """`(G, D)` for each `(B, D)`: the rows of all users who count; and `(A,)`: where those of this process stand there.

    Without peers the users of this process are all. All processes must call it; rows travel in the type of the first.
    """
    if peers is None:
        kept = [row_BD[is_counted_B] for row_BD in rows]
        return kept, torch.arange(kept[0].shape[0], device=is_counted_B.device)
    packed_BW = torch.cat([*rows, is_counted_B[:, None].to(rows[0].dtype)], dim=1)
    widths = [*(row_BD.shape[1] for row_BD in rows), 1]
    *gathered, flags = torch.split(peers.of_all(packed_BW), widths, dim=1)
    is_counted = flags[:, 0] > 0
    place_A = peers.first + is_counted_B.nonzero()[:, 0]
    return [row[is_counted] for row in gathered], (is_counted.cumsum(0) - 1)[place_A]
