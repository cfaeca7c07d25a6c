"""Compare the users of this process with those of all processes."""
# Shapes: B users of this process, G those of all processes, D width.

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pmmrec.contracts import Peers
from pmmrec.objectives import IGNORED


@dataclass(frozen=True)
class UserRows:
    """Which of all users are this process's own, and which count."""

    own_B: Tensor  # int64, places in G
    is_counted_G: Tensor  # bool

    @property
    def is_counted_B(self) -> Tensor:
        """Which users of this process count."""
        return self.is_counted_G[self.own_B]

    @property
    def is_own_BG(self) -> Tensor:
        """Where each user of this process meets itself."""
        return self.own_B[:, None] == torch.arange(len(self.is_counted_G), device=self.own_B.device)

    def closed(self, score_BG: Tensor, is_open_BG: Tensor | None = None) -> Tensor:
        """Scores with -inf for users that do not count, or are closed; users always meet themselves."""
        is_open_BG = self.is_counted_G if is_open_BG is None else self.is_counted_G & is_open_BG
        return score_BG.masked_fill(~(is_open_BG | self.is_own_BG), -math.inf)

    def cross_entropy(self, score_BG: Tensor) -> Tensor:
        """The summed loss of users that count, each to find itself."""
        own_B = torch.where(self.is_counted_B, self.own_B, IGNORED)
        return F.cross_entropy(score_BG, own_B, reduction="sum", ignore_index=IGNORED)

    def is_alone_at_the_top(self, score_BG: Tensor) -> Tensor:
        """Which users count and score strictly higher with themselves than with all others."""
        return self.is_counted_B & ((score_BG >= score_BG.gather(1, self.own_B[:, None])).sum(dim=1) == 1)


def rows_of_all(rows: Sequence[Tensor], is_counted_B: Tensor, peers: Peers | None) -> tuple[list[Tensor], UserRows]:
    """`(G, D)` for each `(B, D)`: the rows of all users, and which of them are whose.

    Without peers the users of this process are all. All processes must call it; rows travel in the type of the first.
    """
    own_B = torch.arange(len(is_counted_B), device=is_counted_B.device)
    if peers is None:
        return list(rows), UserRows(own_B, is_counted_B)
    packed_BW = torch.cat([*rows, is_counted_B[:, None].to(rows[0].dtype)], dim=1)
    widths = [*(row_BD.shape[1] for row_BD in rows), 1]
    *gathered, flags = torch.split(peers.of_all(packed_BW), widths, dim=1)
    return gathered, UserRows(peers.first + own_B, flags[:, 0] > 0)
