"""Lists of the k items that suit each user best."""
# B users of one chunk, K items of a list, N items of the catalogue, C candidates (alike items are one), D width,
# H items of the histories in a chunk, P places of lists.

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pmmrec.contracts import ItemVectors, Query, to_device
from pmmrec.data.contents import Contents
from pmmrec.data.parallel import in_order
from pmmrec.errors import DataError, RecipeError
from pmmrec.evaluation.blend import Blend
from pmmrec.evaluation.eval_mode import evaluating
from pmmrec.evaluation.model_scores import alike_items, as_ranked, some_items
from pmmrec.evaluation.queries import queries_after
from pmmrec.evaluation.ranking import Rows, Seen, check_seen
from pmmrec.evaluation.scan import SAFE, Complain, Scan, Sizes, WriteScores, inner_products
from pmmrec.evaluation.scores import distinct_pairs
from pmmrec.models.recommender import Recommender
from pmmrec.packing import Ints

CHUNKS_OF_THREAD = 16  # between two moments at which lists come out


class NotFiniteError(DataError):
    """A score is NaN or infinite."""

    def __init__(self, user: int | str, item: int | str, score: float) -> None:
        """Users and items by row, or by id where they are known."""
        super().__init__(f"user {user}: item {item} scores {score}; scores must be finite, has the model diverged?")
        self.user, self.item, self.score = user, item, score


@dataclass(frozen=True)
class TopItems:
    """The lists of some users, best first, equal scores by item row; on the CPU."""

    user_index_B: Tensor  # int64
    item_index_BK: Tensor  # int64, item rows
    score_BK: Tensor  # float32
    is_filled_BK: Tensor  # bool; False at the end of a list when too few items are left to recommend


class RankedItems:
    """Items that can be recommended; those that no scorer can tell apart are one candidate with several members."""

    def __init__(self, num_items: int, contents: Contents | None, counts: Rows | None) -> None:
        """`counts` where scores read them. Without `contents` every item is a candidate of its own."""
        alike_N, is_readable_N = np.arange(num_items), np.ones(num_items, dtype=bool)
        if contents is not None:
            alike_N, is_readable_N = alike_items(contents, counts), contents.is_readable_N
        first_N = alike_N[is_readable_N]
        self.first_C = np.unique(first_N)  # rises, so that of equal candidates the first item wins
        self.of_item_N = np.full(num_items, -1)
        self.of_item_N[is_readable_N] = np.searchsorted(self.first_C, first_N)
        readable = np.flatnonzero(is_readable_N)
        self._members = readable[np.argsort(self.of_item_N[readable], kind="stable")]
        self.size_C = np.bincount(self.of_item_N[readable], minlength=len(self.first_C))
        self._start_C = np.cumsum(self.size_C) - self.size_C
        self.are_single = len(readable) == len(self.first_C)

    def __len__(self) -> int:
        return len(self.first_C)

    def gone(self, user_H: Ints, item_H: Ints) -> tuple[Ints, Ints]:
        """Users and candidates of which every member is among their items; each user and item stands once."""
        candidate_H = self.of_item_N[item_H]
        user_H, candidate_H = user_H[candidate_H >= 0], candidate_H[candidate_H >= 0]
        if self.are_single:
            return user_H, candidate_H
        pair, num_seen = np.unique(user_H * len(self) + candidate_H, return_counts=True)
        is_gone = num_seen == self.size_C[pair % len(self)]
        return pair[is_gone] // len(self), pair[is_gone] % len(self)

    def num_led_by_seen(self, user_H: Ints, item_H: Ints, gone: tuple[Ints, Ints]) -> int:
        """The largest number, over users, of candidates that are not `gone` though their first member is seen."""
        if self.are_single:
            return 0
        candidate_H = self.of_item_N[item_H]
        is_led_H = (candidate_H >= 0) & (self.first_C[candidate_H] == item_H)
        is_led_H &= ~np.isin(user_H * len(self) + candidate_H, gone[0] * len(self) + gone[1])
        return int(np.bincount(user_H[is_led_H]).max(initial=0))

    def members(self, candidate: Ints, most: Ints) -> tuple[Ints, Ints]:
        """Which of `candidate` each member belongs to, and the members, `most` of each at most, by item row."""
        num = np.minimum(self.size_C[candidate], most)
        owner = np.repeat(np.arange(len(candidate)), num)
        place = np.arange(len(owner)) - np.repeat(np.cumsum(num) - num, num)
        return owner, self._members[self._start_C[candidate][owner] + place]


class ListMaker:
    """Makes the lists of users out of their histories, exactly; of equal scores the first item row wins.

    Items are scored in tiles and users in chunks of fixed sizes (see `Scan`), whatever their number. A history is
    padded to a length that depends on nothing but its own, so a list does not depend on who else is in the chunk, but
    for the last digits that a product of matrices rounds by its shape.
    """

    def __init__(
        self,
        recommender: Recommender,
        vectors_ND: Tensor,
        k: int,
        *,
        counts: Rows | None = None,
        contents: Contents | None = None,
        seen: Seen = "exclude",
        sizes: Sizes | None = None,
        device: torch.device | None = None,
        threads: int = 1,
        first_user: int = 0,
        blend: Blend | None = None,
    ) -> None:
        """Vectors may stay on the CPU where the model is on another `device`.

        On a CPU each of `threads` takes chunks of its own: products of matrices that threads share make them wait for
        one another, long where the machine does other work.

        `first_user`: the place of the domain's first user among those of all domains of the model. `blend`: what is
        added to the scores.

        Raises RecipeError where k does not fit the catalogue, ValueError where scores read counts and there are none.
        """
        check_seen(seen)
        num_items = len(vectors_ND)
        if not 1 <= k <= num_items:
            found = f"k: {k} items cannot be recommended from a catalogue of {num_items}"
            raise RecipeError(f"{found}; take 1 to {num_items}")
        scorer = recommender.scorer
        if scorer.reads_counts and counts is None:
            raise ValueError("counts: the scorer reads how often each item was touched, found None")
        self._recommender, self._vectors_ND, self._k, self._seen = recommender, vectors_ND, k, seen
        self._first_user = first_user
        self._device = device or vectors_ND.device
        self._blend, contents = blend, as_ranked(contents, recommender)
        if blend is not None and contents is not None:  # who touched them tells equal items apart
            contents = Contents(np.arange(num_items), contents.is_readable_N)
        self._candidates = RankedItems(num_items, contents, counts if scorer.reads_counts else None)
        first_C = torch.from_numpy(self._candidates.first_C).to(vectors_ND.device)
        is_all = len(first_C) == num_items
        with evaluating(recommender):
            self._catalogue = recommender.catalogue(vectors_ND)
        candidates = self._catalogue.items if is_all else some_items(self._catalogue.items, first_C)
        count_C = torch.from_numpy(np.zeros(num_items) if counts is None else np.asarray(counts)).to(first_C.device)
        count_C = count_C[first_C]
        with torch.no_grad():
            key_CD = scorer.keys(candidates, count_C)
        self._num_more = None if key_CD is None else key_CD.shape[1] - candidates.fused_UD.shape[1]
        write: WriteScores = _scored_by(recommender, candidates, count_C) if key_CD is None else inner_products(key_CD)
        if blend is not None:
            write = blend.writing(write, self._candidates.first_C)
        self._largest_key = np.inf if key_CD is None else float(key_CD.norm(dim=1).max()) if len(key_CD) else 0.0
        self._sizes = sizes or Sizes.on(self._device)
        self._scans = [Scan(write, len(self._candidates), k, self._sizes, self._device)]
        if self._device.type == "cpu":
            self._scans += [
                Scan(write, len(self._candidates), k, self._sizes, self._device) for _ in range(threads - 1)
            ]

    def lists(self, offsets: Rows, items: Rows, users: Rows | None = None) -> Iterator[TopItems]:
        """Lists in order; the i-th user's history is items[offsets[i]:offsets[i+1]], and none is empty.

        In the lists users are numbered from 0 on. `users`: their rows in the domain, for a model that knows users by
        id. Raises NotFiniteError for a score that is not finite.
        """
        free: SimpleQueue[Scan] = SimpleQueue()
        for scan in self._scans:
            free.put(scan)

        def chunk(start: int) -> TopItems:
            offset_B = np.asarray(offsets[start : start + self._sizes.users + 1]).astype(np.int64)
            item_H = np.asarray(items[offset_B[0] : offset_B[-1]]).astype(np.int64)
            rows = None
            if users is not None:
                rows = self._first_user + np.asarray(users[start : start + len(offset_B) - 1]).astype(np.int64)
            scan = free.get()
            try:
                with torch.no_grad():
                    return self._chunk(scan, offset_B - offset_B[0], item_H, start, rows)
            finally:
                free.put(scan)

        starts, num_threads = range(0, len(offsets) - 1, self._sizes.users), len(self._scans)
        if num_threads == 1 or len(starts) == 1:
            for start in starts:
                with evaluating(self._recommender):
                    made = chunk(start)
                yield made
            return
        together = num_threads * CHUNKS_OF_THREAD
        for first in range(0, len(starts), together):
            with evaluating(self._recommender), one_thread_each():
                some = list(in_order(chunk, starts[first : first + together], num_threads))
            yield from some

    def _chunk(self, scan: Scan, offset_B: Ints, item_H: Ints, first_user: int, user_index_B: Ints | None) -> TopItems:
        num_users = len(offset_B) - 1
        seen_user_H, seen_item_H = distinct_pairs(offset_B, item_H, self._vectors_ND.shape[0])
        if self._seen == "include":
            seen_user_H, seen_item_H = seen_user_H[:0], seen_item_H[:0]
        query = queries_after(
            self._recommender.user_encoder,
            self._catalogue.items,
            offset_B,
            item_H,
            self._device,
            keeps_histories=self._recommender.scorer.reads_histories,
            user_index_B=user_index_B,
            user_MD=self._catalogue.user_MD,
        )
        state_BD = self._recommender.scorer.asked(query.hidden_KD)
        is_finite = float(state_BD.norm(dim=1).max()) * self._largest_key < SAFE
        asked: Any = query  # as the scorer reads it, or as keys do
        if self._num_more is not None:
            asked = torch.nn.functional.pad(state_BD, (0, self._num_more), value=1.0)
        if self._blend is not None:
            asked = self._blend.asked(asked, offset_B, item_H, self._candidates.first_C)
        gone = self._candidates.gone(seen_user_H, seen_item_H)
        value_BK, column_BK = scan.best(
            asked,
            *gone,
            complain=None if is_finite else self._complaint(first_user),
            more=self._candidates.num_led_by_seen(seen_user_H, seen_item_H, gone),
        )
        value_BK, column_BK = value_BK.cpu(), column_BK.cpu()
        number_B = torch.arange(first_user, first_user + num_users)
        if self._candidates.are_single:
            item_index_BK = torch.from_numpy(self._candidates.first_C[column_BK.numpy()])
            return TopItems(number_B, item_index_BK, value_BK, value_BK > -torch.inf)
        score_BK, item_BK = self._unfold(value_BK.numpy(), column_BK.numpy(), seen_user_H, seen_item_H)
        filled = torch.from_numpy(score_BK)
        return TopItems(number_B, torch.from_numpy(item_BK), filled, filled > -torch.inf)

    def _unfold(
        self, value_BK: NDArray[np.float32], column_BK: Ints, seen_user_H: Ints, seen_item_H: Ints
    ) -> tuple[NDArray[np.float32], Ints]:
        """Scores and items of the best members of the best candidates.

        Candidates stand in the order of their first members. One whose first member the user has seen may stand too
        early among equal scores, so there is one candidate more than k for each of these. Then the best k items are
        among the members of what is there.
        """
        num_users, num_candidates = value_BK.shape
        num_items = len(self._vectors_ND)
        is_there = np.isfinite(value_BK).ravel()
        user_P, value_P = np.repeat(np.arange(num_users), num_candidates)[is_there], value_BK.ravel()[is_there]
        num_seen_B = np.bincount(seen_user_H, minlength=num_users)
        owner, item = self._candidates.members(column_BK.ravel()[is_there], self._k + num_seen_B[user_P])
        user, value = user_P[owner], value_P[owner]
        is_new = ~np.isin(user * num_items + item, seen_user_H * num_items + seen_item_H)
        user, value, item = user[is_new], value[is_new], item[is_new]
        order = np.lexsort((item, -value, user))
        user, value, item = user[order], value[order], item[order]
        num_B = np.bincount(user, minlength=num_users)
        place = np.arange(len(user)) - np.repeat(np.cumsum(num_B) - num_B, num_B)
        is_listed = place < self._k
        score_BK = np.full((num_users, self._k), -np.inf, dtype=np.float32)
        item_BK = np.zeros((num_users, self._k), dtype=np.int64)
        where = (user[is_listed], place[is_listed])
        score_BK[where], item_BK[where] = value[is_listed], item[is_listed]
        return score_BK, item_BK

    def _complaint(self, first_user: int) -> Complain:
        def complain(row: int, column: int, score: float) -> DataError:
            return NotFiniteError(first_user + row, int(self._candidates.first_C[column]), score)

        return complain


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Torch computes with one thread in each thread of ours; afterwards with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def top_k(
    recommender: Recommender,
    vectors_ND: Tensor,
    offsets: Rows,
    items: Rows,
    k: int,
    *,
    counts: Rows,
    contents: Contents | None = None,
    seen: Seen = "exclude",
    chunk: int,
    users: Rows | None = None,
    first_user: int = 0,
) -> Iterator[TopItems]:
    """Exact lists for all users, in order; user i's history is items[offsets[i]:offsets[i+1]].

    `counts`: how often each item was touched, `(N,)`; read by scorers that know of popularity. With `contents`, alike
    items tie exactly and nobody gets an item of which the model can read nothing. `users`: the row of each in the
    domain, for a model that knows users by id; `first_user`: the place of the domain's first user among those of all
    domains of the model.

    `exclude`: nobody gets an item of the history. Raises RecipeError when k does not fit the catalogue, DataError for a
    user without history and for scores that are not finite; the checks of k and of histories come before any work.
    """
    empty = np.flatnonzero(np.diff(offsets) < 1)
    if len(empty):
        raise DataError(f"user {empty[0]} has no history ({len(empty)} such users); leave such users out")
    sizes = dataclasses.replace(Sizes.on(vectors_ND.device), users=chunk)
    rules: dict[str, Any] = {"counts": counts, "contents": contents, "seen": seen, "sizes": sizes}
    maker = ListMaker(recommender, vectors_ND, k, **rules, first_user=first_user)
    return maker.lists(offsets, items, users=users)


def _scored_by(recommender: Recommender, items: ItemVectors, count_C: Tensor) -> WriteScores:
    """Scores of a scorer that is not an inner product."""

    def write(query: Query, columns: slice, score_Bc: Tensor) -> None:
        device = query.user_K.device
        some = to_device(some_items(items, columns), device)
        score_Bc.copy_(recommender.scorer.ranked(recommender.score(query, some), count_C[columns].to(device)))

    return write
