"""Find the k highest-scoring candidates of each user exactly, in pieces that fit a cache or a device."""
# B users, C candidates, K entries of a list, D width of queries and keys; T tiles, G blocks of a tile, M of a piece.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pmmrec.errors import DataError

BLOCK = 32  # candidates that are represented by their highest score until the best blocks are known
SPARE = 6  # blocks and candidates examined beyond k, to see equal scores at the end of a list
SAFE = 1e38  # if the product of norms is below it, no score can overflow float32


@dataclass(frozen=True)
class Sizes:
    """How much is scored at once. It affects speed and memory, never the lists."""

    users: int
    tile: int  # candidates of one matrix product; its scores should fit the cache of a core
    piece_bytes: int  # size of the scores that are kept until their best are picked

    @classmethod
    def on(cls, device: torch.device) -> Sizes:
        """Sizes that measured fast on such a device."""
        if device.type == "cpu":
            return cls(users=256, tile=4096, piece_bytes=1 << 27)
        return cls(users=2048, tile=1 << 16, piece_bytes=1 << 30)


WriteScores = Callable[[Any, slice, Tensor], None]  # B queries, which candidates, where their scores (B, c) go
Complain = Callable[[int, int, float], DataError]  # user, candidate and score


class Scan:
    """Scores all candidates for a batch of users and keeps the best; of equal scores the first candidate wins.

    Candidates are scored tile by tile. Each block of 32 is represented by its highest score: the best k candidates
    lie in the k blocks with the highest maxima. A piece is the set of tiles whose scores are kept at once; the best of
    several pieces are merged. torch.topk does not define which of several equal scores it returns. If more than
    `SPARE` scores are equal at the end of a list, all scores of that user are compared.
    """

    def __init__(self, write: WriteScores, num_candidates: int, k: int, sizes: Sizes, device: torch.device) -> None:
        self._write, self._num_candidates, self._k, self._device = write, num_candidates, k, device
        self._num_users = sizes.users
        self._width = BLOCK * -(-min(sizes.tile, num_candidates) // BLOCK)
        wanted = sizes.piece_bytes // (4 * self._width * sizes.users)
        num_tiles = -(-num_candidates // self._width)
        self._tiles_of_piece = max(1, min(wanted, num_tiles))
        self._score = torch.empty(self._tiles_of_piece * sizes.users * self._width, device=device)

    def best(
        self,
        queries: Sized,
        row_H: NDArray[np.int64],
        column_H: NDArray[np.int64],
        complain: Complain | None,
        more: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """The k (plus `more`) highest scores of each user, highest first, and their candidates, `(B, K)`.

        Candidate `column_H[i]` is excluded for user `row_H[i]`. A user with fewer than k candidates gets -inf in the
        remaining places. `complain` makes the error for the first score that is not finite; None: all are known to be
        finite.
        """
        k = self._k + more
        order_H = np.argsort(column_H, kind="stable")
        row_H, column_H = row_H[order_H], column_H[order_H]
        hidden = (torch.from_numpy(row_H), torch.from_numpy(column_H))
        found = [self._pick(queries, k, tiles, *hidden, complain) for tiles in self._pieces()]
        value, column = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        missing = k - value.shape[1]
        if missing > 0:
            value = torch.nn.functional.pad(value, (0, missing), value=-torch.inf)
            column = torch.nn.functional.pad(column, (0, missing))
        if len(found) > 1:  # pieces are in order, so a stable sort keeps the rule for equal scores
            order_BK = value.argsort(dim=1, descending=True, stable=True)[:, :k]
            value, column = value.gather(1, order_BK), column.gather(1, order_BK)
        return value, torch.where(value > -torch.inf, column, 0)  # -inf may belong to padding, which is not a candidate

    def _pieces(self) -> Iterator[range]:
        for start in range(0, self._num_candidates, self._tiles_of_piece * self._width):
            end = min(start + self._tiles_of_piece * self._width, self._num_candidates)
            yield range(start, end, self._width)

    def _pick(
        self, queries: Sized, k: int, tiles: range, row_H: Tensor, column_H: Tensor, complain: Complain | None
    ) -> tuple[Tensor, Tensor]:
        """The best scores and candidates of one piece."""
        num_users, num_tiles = len(queries), len(tiles)
        score_TBW = self._score[: num_tiles * num_users * self._width].view(num_tiles, num_users, self._width)
        blocks = score_TBW.view(num_tiles, num_users, -1, BLOCK)
        highest_TBG = torch.empty(blocks.shape[:3], device=self._device)
        bounds = np.searchsorted(column_H.numpy(), [*tiles, tiles[-1] + self._width])
        for place, start in enumerate(tiles):
            columns = slice(start, min(start + self._width, self._num_candidates))
            self._fill(queries, columns, score_TBW[place], complain)
            hidden = slice(int(bounds[place]), int(bounds[place + 1]))
            if hidden.stop > hidden.start:
                where = (row_H[hidden].to(self._device), (column_H[hidden] - start).to(self._device))
                score_TBW[place].index_put_(where, torch.tensor(-torch.inf, device=self._device))
            torch.amax(blocks[place], dim=2, out=highest_TBG[place])
        highest_BM = highest_TBG.transpose(0, 1).reshape(num_users, -1)
        value, column, is_sure_B = _best_of_blocks(blocks, highest_BM, k)
        if not is_sure_B.all():
            unsure = torch.nonzero(~is_sure_B)[:, 0]
            whole = score_TBW[:, unsure].transpose(0, 1).reshape(len(unsure), -1)
            column[unsure] = first_largest(whole, value.shape[1])
            value[unsure] = whole.gather(1, column[unsure])
        return value, column + tiles.start

    def _fill(self, queries: Sized, columns: slice, score_BW: Tensor, complain: Complain | None) -> None:
        width = columns.stop - columns.start
        part_Bc = score_BW if width == self._width else torch.empty(len(queries), width, device=self._device)
        self._write(queries, columns, part_Bc)
        if complain is not None and len(wrong := torch.nonzero(~torch.isfinite(part_Bc))):
            row, column = wrong[0].tolist()
            raise complain(row, columns.start + column, float(part_Bc[row, column]))
        if width < self._width:
            score_BW[:, :width], score_BW[:, width:] = part_Bc, -torch.inf


def _best_of_blocks(blocks: Tensor, highest_BM: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores and columns of the best, and for which users no equal score can lie in a block that was not examined.

    `blocks`: scores `(T, B, G, 32)`; `highest_BM`: the highest of each block, `(B, T * G)`.
    """
    _, num_users, num_groups, _ = blocks.shape
    num_blocks = highest_BM.shape[1]
    height, block = highest_BM.topk(min(k + SPARE, num_blocks), dim=1)
    block = block.sort(dim=1).values  # so that columns rise from left to right
    user_B1 = torch.arange(num_users, device=block.device)[:, None]
    row = (block // num_groups * num_users + user_B1) * num_groups + block % num_groups
    score = blocks.view(-1, BLOCK)[row.view(-1)].view(num_users, -1)
    value, place = score.topk(min(k + SPARE, score.shape[1]), dim=1)
    place, order = place.sort(dim=1)
    value, order = value.gather(1, order).sort(dim=1, descending=True, stable=True)
    place = place.gather(1, order)
    column = block.gather(1, place // BLOCK) * BLOCK + place % BLOCK
    num_found = min(k, value.shape[1])
    least_B = value[:, num_found - 1]
    is_sure_B = torch.ones_like(least_B, dtype=torch.bool)
    if value.shape[1] < score.shape[1]:
        is_sure_B &= value[:, -1] < least_B
    if height.shape[1] < num_blocks:
        is_sure_B &= height[:, -1] < least_B
    return value[:, :num_found].contiguous(), column[:, :num_found].contiguous(), is_sure_B


def first_largest(score_BN: Tensor, k: int) -> Tensor:
    """Columns of the k largest of each row, `(B, K)`, largest first; of equal scores the first column wins.

    It passes over all scores: the fallback of `Scan`, and the reference in its tests.
    """
    least_B1 = score_BN.topk(k, dim=1).values[:, -1:]
    is_above_BN, is_tied_BN = score_BN > least_B1, score_BN == least_B1
    num_tied_B1 = k - is_above_BN.sum(dim=1, keepdim=True)
    is_taken_BN = is_above_BN | (is_tied_BN & (is_tied_BN.cumsum(dim=1) <= num_tied_B1))
    column_BK = torch.nonzero(is_taken_BN)[:, 1].view(-1, k)
    order_BK = score_BN.gather(1, column_BK).argsort(dim=1, descending=True, stable=True)
    return column_BK.gather(1, order_BK)


def inner_products(key_CD: Tensor) -> WriteScores:
    """Scores that are inner products of queries and keys. Keys may lie on another device than queries."""

    def write(query_BD: Tensor, columns: slice, score_Bc: Tensor) -> None:
        torch.mm(query_BD, key_CD[columns].to(query_BD.device).T, out=score_Bc)

    return write
