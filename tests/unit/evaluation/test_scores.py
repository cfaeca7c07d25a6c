"""Blocks of scores give the ranks of whole matrices, which are those of loops over users and items."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor

from pmmrec.context import Catalogue
from pmmrec.data.contents import Contents
from pmmrec.data.splits import Holdout, Split
from pmmrec.errors import DataError
from pmmrec.evaluation import scores as scores_module
from pmmrec.evaluation.baselines import BASELINES
from pmmrec.evaluation.model_scores import ModelScores
from pmmrec.evaluation.ranking import Ranks, rank_targets
from pmmrec.evaluation.scan import Sizes
from pmmrec.evaluation.scores import (
    ItemScores,
    MatrixBlock,
    ScoreColumns,
    SharedScores,
    SparseScores,
    count_at_once,
    count_by_rows,
)
from pmmrec.models.build import ModelConfig, build

NUM_USERS, NUM_ITEMS, WIDTH = 23, 40, 4
MAKERS = ["one target", "several targets", "lists"]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sizes, "on", classmethod(lambda cls, _: cls(users=3, tile=7, piece_bytes=1 << 20)))


def holdout_with(targets: str) -> Holdout:
    """Users with repeats in their histories and targets among them."""
    rng = np.random.default_rng(5)
    histories = [rng.integers(NUM_ITEMS, size=rng.integers(1, 15)) for _ in range(NUM_USERS)]
    most = 2 if targets == "one target" else 5
    wanted = [rng.permutation(NUM_ITEMS)[: rng.integers(1, most)] for _ in range(NUM_USERS)]
    holdout = Holdout(
        "test",
        np.arange(NUM_USERS),
        np.cumsum([0, *map(len, wanted)]),
        np.concatenate(wanted),
        np.cumsum([0, *map(len, histories)]),
        np.concatenate(histories).astype(np.int32),
    )
    if targets != "lists":
        return holdout
    lists = [np.concatenate([some, rng.integers(NUM_ITEMS, size=12)]) for some in wanted]
    lists[0] = lists[0][:0]  # the targets of this user are not in the list
    return replace(holdout, candidate_offsets=np.cumsum([0, *map(len, lists)]), candidates=np.concatenate(lists))


def scores_of(holdout: Holdout, popularity: float = 0.0) -> tuple[ModelScores, Contents]:
    """Whole numbers, so that many items tie; groups of items are alike, and some cannot be read."""
    rng = np.random.default_rng(6)
    parts = {"item_encoder": {"type": "ids"}, "user_encoder": {"type": "user_table"}}
    config = ModelConfig.model_validate({"width": WIDTH, **parts, "scorer": {"type": "dot", "popularity": popularity}})
    recommender = build(config, {}, [Catalogue("books", NUM_ITEMS, "aa", NUM_USERS, "bb")])
    for parameter in recommender.user_encoder.parameters():
        parameter.data = torch.from_numpy(rng.integers(-2, 3, size=parameter.shape)).float()
    same_as_N, is_readable_N = np.arange(NUM_ITEMS), np.ones(NUM_ITEMS, dtype=bool)
    same_as_N[[9, 17, 33]], same_as_N[[30]], same_as_N[[39]], is_readable_N[[5, 39]] = 2, 11, 5, False
    vectors_ND = torch.from_numpy(rng.integers(-2, 3, size=(NUM_ITEMS, WIDTH))).float()
    vectors_ND[5] = 0
    contents = Contents(same_as_N, is_readable_N)
    histories = (holdout.history_offsets, holdout.history_items)
    counts = rng.integers(3, size=NUM_ITEMS)
    users = holdout.user_index
    return ModelScores(
        recommender, vectors_ND[torch.from_numpy(same_as_N)], *histories, counts, contents, users
    ), contents


def assert_same(ranks: Ranks, expected: Ranks) -> None:
    for field in fields(Ranks):
        assert torch.equal(getattr(ranks, field.name), getattr(expected, field.name)), field.name


def ranks_by_loops(holdout: Holdout, score_QN: Tensor, readable: list[bool], *, exclude: bool) -> list[tuple[int, int]]:
    """The rank of each target and the number of candidates: every candidate sorted, ties against the target."""
    found = []
    for query in range(holdout.num_queries):
        targets, history = holdout.targets(query).tolist(), set(holdout.history(query).tolist())
        candidates = [item for item in range(NUM_ITEMS) if readable[item] and not (exclude and item in history)]
        if holdout.candidates is not None:
            start, stop = holdout.candidate_offsets[query : query + 2]
            candidates = [item for item in candidates if item in holdout.candidates[start:stop]]
        place_of = {item: targets.index(item) if item in targets else -1 for item in candidates}
        ordered = sorted(candidates, key=lambda item: (-score_QN[query, item].item(), place_of[item]))
        found += [(ordered.index(item) + 1 if item in candidates else 0, len(candidates)) for item in targets]
    return found


@pytest.mark.parametrize("seen", ["exclude", "include"])
@pytest.mark.parametrize("targets", MAKERS)
@pytest.mark.parametrize("popularity", [0.0, 1.0])
@pytest.mark.parametrize("chunk", [1, 8, 100])
def test_blocks_of_a_model_give_the_ranks_of_whole_matrices_and_of_loops(
    chunk: int, popularity: float, targets: str, seen: str
) -> None:
    holdout = holdout_with(targets)
    scores, contents = scores_of(holdout, popularity)
    rules = {"seen": seen, "chunk": chunk, "is_readable_N": contents.is_readable_N, "counts_ties": True}
    ranks = rank_targets(holdout, NUM_ITEMS, scores, **rules)
    assert_same(ranks, rank_targets(holdout, NUM_ITEMS, scores.__call__, **rules))
    expected = ranks_by_loops(
        holdout, scores(slice(0, NUM_USERS)), contents.is_readable_N.tolist(), exclude=seen == "exclude"
    )
    assert list(zip(ranks.rank.tolist(), ranks.num_candidates.tolist(), strict=True)) == expected
    assert (ranks.num_tied > 0).any()
    assert (ranks.rank == 0).any() or (seen, targets) == ("include", "one target")
    finer = rank_targets(holdout, NUM_ITEMS, lambda rows: scores(rows).double(), **rules)
    assert_same(ranks, finer)


@pytest.fixture(params=["stored as they are", "as matrices"])
def _sparse_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores_module, "DENSE_SHARE", {"stored as they are": 2.0, "as matrices": 0.0}[request.param])


@pytest.mark.usefixtures("_sparse_blocks")
@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("seen", ["exclude", "include"])
def test_blocks_of_baselines_give_the_ranks_of_whole_matrices(
    seen: str, name: str, make_split: Callable[[list[list[int]], int], Split]
) -> None:
    rng = np.random.default_rng(4)
    split = make_split([rng.integers(30, size=8).tolist() for _ in range(25)], 30)
    score = BASELINES[name](split, split.holdout("test"))
    is_readable_N = np.arange(30) % 9 > 0
    for mask in (None, is_readable_N):
        rules = {"seen": seen, "chunk": 7, "is_readable_N": mask, "counts_ties": True}
        ranks = rank_targets(split.holdout("test"), 30, score, **rules)
        assert_same(ranks, rank_targets(split.holdout("test"), 30, score.__call__, **rules))


@pytest.mark.usefixtures("_sparse_blocks")
@pytest.mark.parametrize("targets", MAKERS)
def test_stored_zeros_and_negative_scores_of_sparse_rows_count(targets: str) -> None:
    holdout, rng = holdout_with(targets), np.random.default_rng(1)
    dense_QN = rng.integers(-1, 3, size=(NUM_USERS, NUM_ITEMS)).astype(np.float64)
    row, item = np.nonzero((dense_QN != 0) | (rng.random(dense_QN.shape) < 0.3))  # some zeros are stored
    score_QN = sparse.csr_array((dense_QN[row, item], (row, item)), shape=dense_QN.shape)
    ranks, expected = (
        rank_targets(holdout, NUM_ITEMS, score, chunk=6, counts_ties=True)
        for score in (SparseScores(lambda rows: score_QN[rows]), lambda rows: torch.from_numpy(dense_QN[rows]))
    )
    assert_same(ranks, expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("item", [5, 9, 21])  # unreadable, like another, alone
def test_a_score_that_is_not_finite_is_named_as_in_a_whole_matrix(item: int, bad: float) -> None:
    holdout = holdout_with("one target")
    scores, contents = scores_of(holdout)
    broken_ND = scores._catalogue.items.fused_UD
    broken_ND[torch.from_numpy(contents.same_as_N == contents.same_as_N[item])] = bad
    messages = []
    for score in (scores, scores.__call__):
        with pytest.raises(
            DataError, match=r"test: user 0: item \d+ scores (nan|inf|-inf); scores must be finite"
        ) as told:
            rank_targets(holdout, NUM_ITEMS, score, chunk=100, is_readable_N=contents.is_readable_N)
        messages.append(str(told.value))
    assert messages[0] == messages[1]


@pytest.mark.usefixtures("_sparse_blocks")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_score_of_a_baseline_that_is_not_finite_names_user_and_item(bad: float) -> None:
    holdout, row = holdout_with("one target"), np.arange(NUM_ITEMS, dtype=np.float64)
    row[[7, 9]] = bad
    every: list[ItemScores] = [
        SharedScores(row),
        SparseScores(lambda rows: sparse.csr_array(np.tile(row, (rows.stop - rows.start, 1)))),
    ]
    for scores in every:
        with pytest.raises(DataError, match=rf"test: user 0: item 7 scores {bad}"):
            rank_targets(holdout, NUM_ITEMS, scores, chunk=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("equal", [False, True])
def test_rows_are_counted_alike_one_by_one_and_at_once(equal: bool, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(2)
    first_N = np.minimum(np.arange(NUM_ITEMS), rng.integers(NUM_ITEMS, size=NUM_ITEMS))
    first_N = first_N[first_N]
    while (first_N != first_N[first_N]).any():
        first_N = first_N[first_N]
    is_counted_N = rng.random(NUM_ITEMS) < 0.8
    columns = ScoreColumns.of(first_N, is_counted_N)
    score_bN = torch.from_numpy(rng.integers(4, size=(6, NUM_ITEMS))).to(dtype)[:, torch.from_numpy(first_N)]
    score_bC = score_bN[:, torch.from_numpy(columns.item_C)]
    query_t = np.array([1, 2, 5])
    block = MatrixBlock(score_bC, columns)
    item_t = np.array([3, 0, 39])
    score_t = block.of(query_t, item_t)
    assert score_t.tolist() == score_bN[query_t, item_t].tolist()
    expected = [
        sum(
            is_counted_N[item] and (score_bN[query, item] == score if equal else score_bN[query, item] >= score).item()
            for item in range(NUM_ITEMS)
        )
        for query, score in zip(query_t.tolist(), score_t.tolist(), strict=True)
    ]
    assert block.count(query_t, score_t, equal=equal).tolist() == expected
    numbers = score_bC.float() if dtype == torch.bfloat16 else score_bC
    assert count_by_rows(numbers.numpy(), columns, query_t, score_t, equal=equal).tolist() == expected
    assert count_at_once(numbers, columns, query_t, score_t, equal=equal).tolist() == expected
    assert max(columns.size_M) > 1


def test_a_model_scores_each_distinct_item_once_for_each_user() -> None:
    holdout = holdout_with("one target")
    scores, contents = scores_of(holdout)
    scorer, num_scores = scores._recommender.scorer, 0

    def count(_module: object, _inputs: object, score_KN: Tensor) -> None:
        nonlocal num_scores
        num_scores += score_KN.numel()

    scorer.register_forward_hook(count)
    rank_targets(holdout, NUM_ITEMS, scores, chunk=8, is_readable_N=contents.is_readable_N)
    assert num_scores == NUM_USERS * len(np.unique(contents.same_as_N))


@pytest.mark.parametrize("name", ["popularity", "last-item Markov", "item-kNN"])
def test_baselines_are_ranked_without_a_score_for_each_user_and_item(
    name: str, make_split: Callable[[list[list[int]], int], Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores_module, "DENSE_SHARE", 2.0)
    monkeypatch.setattr(SharedScores, "__call__", lambda *_: pytest.fail("a matrix was made"))
    monkeypatch.setattr(SparseScores, "__call__", lambda *_: pytest.fail("a matrix was made"))
    monkeypatch.setattr(scores_module, "MatrixBlock", lambda *_: pytest.fail("a matrix was made"))
    split = make_split([[0, 1, 2, 3], [3, 2, 1, 0]], 9)
    score = BASELINES[name](split, split.holdout("test"))
    assert rank_targets(split.holdout("test"), 9, score, chunk=1).num_targets == 2
