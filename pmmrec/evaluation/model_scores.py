"""Scores of a model for histories: all items in one matrix, or in blocks that a ranking counts."""
# q queries of a slice, b queries of a block, N items of the catalogue, D width.
# C columns: items that always score the same share one.

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pmmrec.contracts import ItemVectors, Query
from pmmrec.data.contents import Contents
from pmmrec.data.splits import Holdout
from pmmrec.evaluation.eval_mode import evaluating
from pmmrec.evaluation.queries import queries_after
from pmmrec.evaluation.ranking import Rows
from pmmrec.evaluation.scan import Sizes
from pmmrec.evaluation.scores import Blocks, ItemScores, MatrixBlock, ScoreBlock, ScoreColumns
from pmmrec.models.recommender import Recommender


def model_scorer(
    recommender: Recommender,
    vectors_ND: Tensor,
    holdout: Holdout,
    counts: Rows,
    device: torch.device | str,
    contents: Contents | None = None,
    first_user: int = 0,
) -> ModelScores:
    """Scores of the model for slices of the holdout's queries, float32 on `device`.

    `counts`: how often each item was touched in what may be known, `(N,)`. With `contents`, alike items tie exactly.
    `first_user`: the place of the domain's first user among those of all domains of the model.
    """
    vectors_ND, users = vectors_ND.to(device), first_user + holdout.user_index
    histories = (holdout.history_offsets, holdout.history_items)
    return ModelScores(recommender, vectors_ND, *histories, counts, contents, users)


class ModelScores(ItemScores):
    """Scores of all items after the histories items[offsets[i]:offsets[i+1]], cut to the model's most recent inputs.

    Every slice is padded to one length, so that a user's scores do not depend on who else is in it. In blocks, each
    distinct item is scored once. Where a score is an inner product, a block is a few users, whose scores of a large
    catalogue are computed tile by tile into a buffer that the blocks share; for other scorers it is the whole slice.
    """

    def __init__(
        self,
        recommender: Recommender,
        vectors_ND: Tensor,
        offsets: Rows,
        items: Rows,
        counts: Rows,
        contents: Contents | None = None,
        users: Rows | None = None,
    ) -> None:
        """`counts`: how often each item was touched in what may be known, `(N,)`.

        With `contents`, alike items tie exactly: a product of matrices may round equal columns differently.
        """
        self._recommender, self._offsets, self._items, self._users = recommender, offsets, items, users
        self._device, self._first_N = vectors_ND.device, np.arange(len(vectors_ND))
        contents = as_ranked(contents, recommender)
        if contents is not None:
            self._first_N = alike_items(contents, counts if recommender.scorer.reads_counts else None)
        self._count_N = torch.from_numpy(np.asarray(counts)).to(self._device)
        with evaluating(recommender):
            self._catalogue = recommender.catalogue(vectors_ND)
        self._num_inputs = min(recommender.user_encoder.max_inputs, int(np.diff(offsets).max(initial=1)))

    def __call__(self, rows: slice) -> Tensor:
        """Scores of all items, `(q, N)`."""
        score_qN = self._scores(self._query(rows), self._catalogue.items, self._count_N)
        if np.array_equal(self._first_N, np.arange(len(self._first_N))):
            return score_qN
        return score_qN[:, torch.from_numpy(self._first_N).to(self._device)]

    def blocks(self, is_counted_N: NDArray[np.bool_]) -> Blocks:
        """The same scores in blocks."""
        columns, items, count_C = ScoreColumns.of(self._first_N, is_counted_N), self._catalogue.items, self._count_N
        if not columns.are_items:
            item_C = torch.from_numpy(columns.item_C).to(self._device)
            items, count_C = some_items(items, item_C), count_C[item_C]
        with evaluating(self._recommender.scorer):
            key_CD = self._recommender.scorer.keys(some_items(items, slice(1)), count_C[:1])
        if key_CD is None:
            return lambda rows: iter([MatrixBlock(self._scores(self._query(rows), items, count_C), columns)])
        sizes, buffers = Sizes.on(self._device), list[Tensor]()

        def blocks(query: Query) -> Iterator[ScoreBlock]:
            num_rows = min(sizes.users, len(query))
            if len(count_C) <= sizes.tile:  # one product; what it gives need not be copied
                for start in range(0, len(query), sizes.users):
                    yield MatrixBlock(self._scores(query[start : start + sizes.users], items, count_C), columns)
                return
            if not buffers or len(buffers[0]) < num_rows:
                buffers[:] = [torch.empty(num_rows, len(count_C), device=self._device)]
            (score_bC,) = buffers
            for start in range(0, len(query), sizes.users):
                some = query[start : start + sizes.users]
                for first in range(0, len(count_C), sizes.tile):
                    tile = slice(first, first + sizes.tile)
                    score_bC[: len(some), tile] = self._scores(some, some_items(items, tile), count_C[tile])
                yield MatrixBlock(score_bC[: len(some)], columns)

        return lambda rows: blocks(self._query(rows))

    def _query(self, rows: slice) -> Query:
        some = np.asarray(self._offsets[rows.start : rows.stop + 1]).astype(np.int64)
        with evaluating(self._recommender):
            return queries_after(
                self._recommender.user_encoder,
                self._catalogue.items,
                some - some[0],
                self._items[some[0] : some[-1]],
                self._device,
                keeps_histories=self._recommender.scorer.reads_histories,
                num_inputs=self._num_inputs,
                user_index_B=None if self._users is None else self._users[rows].astype(np.int64),
                user_MD=self._catalogue.user_MD,
            )

    def _scores(self, query: Query, items: ItemVectors, count_C: Tensor) -> Tensor:
        with evaluating(self._recommender.scorer):
            return self._recommender.scorer.ranked(self._recommender.score(query, items), count_C).float()


def some_items(items: ItemVectors, place: Tensor | slice) -> ItemVectors:
    """The items at some places."""
    streams_UD = {name: stream_UD[place] for name, stream_UD in items.streams_UD.items()}
    return ItemVectors(items.fused_UD[place], streams_UD=streams_UD)


def as_ranked(contents: Contents | None, recommender: Recommender) -> Contents | None:
    """The contents as a ranking compares items: a graph tells equal items apart, by who touched them."""
    if contents is None or not recommender.propagation.reads_graph:
        return contents
    return Contents(np.arange(len(contents.same_as_N)), contents.is_readable_N)


def alike_items(contents: Contents, counts: Rows | None) -> NDArray[np.int64]:
    """For each item the first that no scorer can tell from it, `(N,)`; `counts` where scores read them."""
    if counts is None:
        return contents.same_as_N
    key_N = contents.same_as_N * (int(counts.max(initial=0)) + 1) + counts
    _, first, place_N = np.unique(key_N, return_index=True, return_inverse=True)
    alike_N: NDArray[np.int64] = first[place_N]
    return alike_N
