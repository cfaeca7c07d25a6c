"""Full ranking equals a loop over users and items, and follows its rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from pmmrec.data.splits import Holdout, Split
from pmmrec.errors import DataError, MachineError
from pmmrec.evaluation.catalogue import Evaluation
from pmmrec.evaluation.metrics import Measured, query_metrics
from pmmrec.evaluation.ranking import ScoreRows, rank_targets, read_ranks, write_ranks


def holdout_of(histories: list[list[int]], targets: list[int]) -> Holdout:
    offsets = np.cumsum([0] + [len(history) for history in histories])
    items = np.array([item for history in histories for item in history], dtype=np.int32)
    return Holdout(
        "test", np.arange(len(targets)) + 100, np.arange(len(targets) + 1), np.array(targets), offsets, items
    )


def holdout_of_several(histories: list[list[int]], targets: list[list[int]]) -> Holdout:
    one = holdout_of(histories, [0] * len(targets))
    offsets = np.cumsum([0] + [len(of_query) for of_query in targets])
    flat = np.array([item for of_query in targets for item in of_query])
    return replace(one, target_offsets=offsets, target=flat)


def fixed(scores: list[list[float]]) -> ScoreRows:
    return lambda rows: torch.tensor(scores)[rows]


def ranks_by_loops(holdout: Holdout, score_QN: Tensor, *, exclude: bool) -> list[int]:
    ranks = []
    for query in range(holdout.num_queries):
        target, history = int(holdout.target[query]), set(holdout.history(query).tolist())
        rank = 1
        for item in range(score_QN.shape[1]):
            is_candidate = not (exclude and item in history)
            if item != target and is_candidate and score_QN[query, item] >= score_QN[query, target]:
                rank += 1
        ranks.append(0 if exclude and target in history else rank)
    return ranks


@pytest.mark.parametrize("seen", ["exclude", "include"])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_ranks_are_those_of_a_loop_over_users_and_items(seen: str, chunk: int) -> None:
    rng = np.random.default_rng(1)
    histories = [rng.integers(12, size=rng.integers(1, 9)).tolist() for _ in range(20)]  # with repeats, seen targets
    holdout = holdout_of(histories, rng.integers(12, size=20).tolist())
    score_QN = torch.from_numpy(rng.integers(5, size=(20, 12)).astype(np.float32))  # many ties
    ranks = rank_targets(holdout, 12, lambda rows: score_QN[rows], seen=seen, chunk=chunk)
    expected = ranks_by_loops(holdout, score_QN, exclude=seen == "exclude")
    assert ranks.rank.tolist() == expected
    assert 0 < ranks.seen_share < 1


def several_ranks_by_loops(holdout: Holdout, score_QN: Tensor, *, exclude: bool) -> list[int]:
    """Sort the candidates of each query: by score, then other items before targets, then targets in their order."""
    ranks = []
    for query in range(holdout.num_queries):
        targets, history = holdout.targets(query).tolist(), set(holdout.history(query).tolist())
        candidates = [item for item in range(score_QN.shape[1]) if not (exclude and item in history)]
        place_of = {item: targets.index(item) if item in targets else -1 for item in candidates}
        ordered = sorted(candidates, key=lambda item: (-score_QN[query, item].item(), place_of[item]))
        ranks += [ordered.index(item) + 1 if item in candidates else 0 for item in targets]
    return ranks


@pytest.mark.parametrize("seen", ["exclude", "include"])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_ranks_of_several_targets_are_those_of_a_sorted_list(seen: str, chunk: int) -> None:
    rng = np.random.default_rng(2)
    histories = [rng.integers(14, size=rng.integers(1, 6)).tolist() for _ in range(20)]
    targets = [rng.permutation(14)[: rng.integers(1, 7)].tolist() for _ in range(20)]
    holdout = holdout_of_several(histories, targets)
    score_QN = torch.from_numpy(rng.integers(4, size=(20, 14)).astype(np.float32))  # many ties, among targets too
    ranks = rank_targets(holdout, 14, lambda rows: score_QN[rows], seen=seen, chunk=chunk)
    assert ranks.rank.tolist() == several_ranks_by_loops(holdout, score_QN, exclude=seen == "exclude")
    assert ranks.target.tolist() == holdout.target.tolist()
    assert ranks.query.tolist() == [query for query, of_query in enumerate(targets) for _ in of_query]
    assert ranks.user_index.tolist() == [100 + query for query in ranks.query.tolist()]
    assert ranks.user_of_query.tolist() == holdout.user_index.tolist()


@pytest.mark.parametrize("seen", ["exclude", "include"])
def test_lists_of_candidates_are_ranked_as_a_sorted_list_of_theirs(seen: str) -> None:
    rng = np.random.default_rng(3)
    histories = [rng.integers(14, size=3).tolist() for _ in range(20)]
    lists = [rng.permutation(14)[: rng.integers(3, 9)].tolist() for _ in range(20)]
    targets = [shown[: rng.integers(1, 3)] for shown in lists]
    offsets = np.cumsum([0] + [len(shown) for shown in lists])
    holdout = replace(
        holdout_of_several(histories, targets), candidate_offsets=offsets, candidates=np.concatenate(lists)
    )
    score_QN = torch.from_numpy(rng.integers(4, size=(20, 14)).astype(np.float32))
    outside_QN = torch.tensor([[item not in shown for item in range(14)] for shown in lists])
    ranks = rank_targets(holdout, 14, lambda rows: score_QN[rows], seen=seen, chunk=7)
    lowered_QN = score_QN.masked_fill(outside_QN, -1.0)  # as if all others scored below the list
    assert ranks.rank.tolist() == several_ranks_by_loops(holdout, lowered_QN, exclude=seen == "exclude")
    num_known = [len(set(shown) - set(known)) for shown, known in zip(lists, histories, strict=True)]
    sizes = num_known if seen == "exclude" else [len(shown) for shown in lists]
    assert ranks.num_candidates.tolist() == [sizes[query] for query in ranks.query.tolist()]


def auc_by_loops(holdout: Holdout, score_QN: Tensor, *, exclude: bool) -> list[float]:
    """Over pairs of a target and another candidate: 1 where the target scores higher, one half where they tie."""
    found = []
    for query in range(holdout.num_queries):
        targets, history = holdout.targets(query).tolist(), set(holdout.history(query).tolist())
        seen = history if exclude else set()
        others = [item for item in range(score_QN.shape[1]) if item not in seen and item not in targets]
        wins = [
            0.0 if target in seen else 1.0 if score > other else 0.5 if score == other else 0.0
            for target in targets
            for score in [score_QN[query, target].item()]
            for other in score_QN[query, others].tolist()
        ]
        found.append(sum(wins) / len(wins))
    return found


@pytest.mark.parametrize("seen", ["exclude", "include"])
@pytest.mark.parametrize("chunk", [3, 100])
def test_auc_counts_a_tie_as_one_half(seen: str, chunk: int) -> None:
    rng = np.random.default_rng(4)
    histories = [rng.integers(14, size=rng.integers(1, 6)).tolist() for _ in range(30)]
    targets = [rng.permutation(14)[: rng.integers(1, 5)].tolist() for _ in range(30)]
    holdout = holdout_of_several(histories, targets)
    score_QN = torch.from_numpy(rng.integers(4, size=(30, 14)).astype(np.float32))  # many ties, among targets too
    ranks = rank_targets(holdout, 14, lambda rows: score_QN[rows], seen=seen, chunk=chunk, counts_ties=True)
    assert (ranks.num_tied > 0).any()
    auc = Evaluation(ranks, Measured((), ("auc",))).metrics["auc"]
    expected = auc_by_loops(holdout, score_QN, exclude=seen == "exclude")
    assert auc == pytest.approx(np.mean(expected), abs=1e-15)  # measured 2e-16
    each_Q = query_metrics(ranks.rank, ranks.query, Measured((), ("auc",)), ranks.num_candidates, ranks.num_tied)["auc"]
    assert each_Q.tolist() == pytest.approx(expected, abs=1e-15)  # measured 2e-16


def test_ties_count_against_the_target() -> None:
    ranks = rank_targets(holdout_of([[0]], [2]), 4, fixed([[1.0, 1.0, 1.0, 0.0]]), chunk=1)
    assert ranks.rank.tolist() == [2]  # item 0 is seen, item 1 ties, item 3 is below


def test_a_model_that_scores_all_items_equally_gets_the_last_rank() -> None:
    ranks = rank_targets(holdout_of([[0]], [2]), 5, fixed([[0.0] * 5]), chunk=1)
    assert ranks.rank.tolist() == ranks.num_candidates.tolist() == [4]


def test_a_seen_target_is_a_miss_and_is_counted() -> None:
    holdout = holdout_of([[2, 0], [0, 0]], [2, 1])
    ranks = rank_targets(holdout, 3, fixed([[0.0, 1.0, 9.0], [0.0, 9.0, 1.0]]), chunk=2)
    assert ranks.rank.tolist() == [0, 1]
    assert ranks.seen_target.tolist() == [True, False]
    assert ranks.seen_share == 0.5
    assert ranks.num_candidates.tolist() == [1, 2]


def test_include_ranks_seen_items_and_seen_targets_too() -> None:
    ranks = rank_targets(holdout_of([[2, 0]], [2]), 3, fixed([[5.0, 1.0, 3.0]]), seen="include", chunk=1)
    assert ranks.rank.tolist() == [2]
    assert ranks.num_candidates.tolist() == [3]
    assert ranks.seen_target.tolist() == [True]


def test_users_and_targets_keep_the_order_of_their_ranks() -> None:
    holdout = holdout_of([[0], [1], [2]], [3, 2, 1])
    ranks = rank_targets(holdout, 4, fixed([[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 2.0], [2.0, 0.0, 2.0, 2.0]]), chunk=2)
    assert ranks.user_index.tolist() == [100, 101, 102]
    assert ranks.target.tolist() == [3, 2, 1]
    assert ranks.rank.tolist() == [1, 2, 3]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_finite_is_an_error_that_names_the_user(bad: float) -> None:
    scores = fixed([[0.0, 1.0, 2.0], [0.0, 1.0, bad]])
    with pytest.raises(DataError, match=r"user 101: item 2 scores (nan|inf|-inf)"):
        rank_targets(holdout_of([[0], [0]], [1, 1]), 3, scores, chunk=2)


def test_scores_of_another_catalogue_are_an_error() -> None:
    with pytest.raises(DataError, match=r"shape \(1, 3\); \(1, 4\) is users x items"):
        rank_targets(holdout_of([[0]], [1]), 4, fixed([[0.0, 1.0, 2.0]]), chunk=1)


def test_a_holdout_without_users_is_an_error(make_split: Callable[[list[list[int]], int], Split]) -> None:
    holdout = make_split([[0, 1], [1]], 2).holdout("validation")
    with pytest.raises(DataError, match="validation: there is no user to rank for"):
        rank_targets(holdout, 2, fixed([]), chunk=1)


def test_ranks_are_written_with_ids(make_split: Callable[[list[list[int]], int], Split], tmp_path: Path) -> None:
    split = make_split([[0, 1, 2], [1], [0, 3, 0]], 4)
    ranks = rank_targets(split.holdout("test"), 4, fixed([[0.0, 0.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0]]), chunk=8)
    path = tmp_path / "run" / "ranks.parquet"
    write_ranks(path, ranks, split.domain.user_ids, split.domain.item_ids)
    assert pq.read_table(path).to_pylist() == [
        {"user_id": "u0", "item_id": "i2", "rank": 2, "seen_target": False},
        {"user_id": "u2", "item_id": "i0", "rank": 0, "seen_target": True},
    ]
    assert [file.name for file in path.parent.iterdir()] == ["ranks.parquet"]


def test_ranks_that_cannot_be_written_leave_nothing_behind(tmp_path: Path) -> None:
    ranks = rank_targets(holdout_of([[0]], [1]), 2, fixed([[0.0, 1.0]]), chunk=1)
    ids = pa.chunked_array([[f"x{row}" for row in range(101)]])
    (tmp_path / "ranks.parquet").mkdir()
    with pytest.raises(MachineError, match="cannot be written"):
        write_ranks(tmp_path / "ranks.parquet", ranks, ids, ids)
    assert [file.name for file in tmp_path.iterdir()] == ["ranks.parquet"]


@pytest.mark.parametrize("seen", ["exclude", "include"])
def test_unreadable_items_are_not_candidates_and_are_misses_as_targets(seen: str) -> None:
    holdout = holdout_of([[0], [0], [3]], [1, 2, 2])
    score = fixed([[0.0, 1.0, 9.0, 0.0], [0.0, 1.0, 9.0, 0.0], [0.0, 0.0, 0.0, 9.0]])
    is_readable_N = np.array([True, True, False, True])
    ranks = rank_targets(holdout, 4, score, seen=seen, chunk=2, is_readable_N=is_readable_N)
    assert ranks.rank.tolist() == [1, 0, 0]
    assert ranks.num_candidates.tolist() == [{"exclude": 2, "include": 3}[seen]] * 3
    assert ranks.seen_target.tolist() == [False, False, False]


def test_ranks_are_read_in_the_order_of_the_queries_whatever_the_order_of_the_file(
    make_split: Callable[[list[list[int]], int], Split], tmp_path: Path
) -> None:
    split = make_split([[0, 1, 2], [1], [0, 3, 0], [3, 2, 1]], 4)
    holdout, path = split.holdout("test"), tmp_path / "ranks.parquet"
    ranks = rank_targets(holdout, 4, fixed([[0.0, 0, 1, 2], [1.0, 1, 1, 1], [9.0, 8, 0, 0]]), chunk=8)
    write_ranks(path, ranks, split.domain.user_ids, split.domain.item_ids)
    pq.write_table(pq.read_table(path).take([2, 0, 1]), path)
    assert read_ranks(path, holdout, split.domain.user_ids, split.domain.item_ids).tolist() == ranks.rank.tolist()


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([[0, 1, 2], [0, 3, 1]], "other targets"),
        ([[0, 1, 2], [0, 3, 0], [1, 2, 3]], "other users"),
        ([[0, 1, 2]], "other users"),
    ],
)
def test_ranks_of_another_split_are_refused(
    make_split: Callable[[list[list[int]], int], Split], tmp_path: Path, sequences: list[list[int]], message: str
) -> None:
    split, path = make_split([[0, 1, 2], [0, 3, 0]], 4), tmp_path / "ranks.parquet"
    ranks = rank_targets(split.holdout("test"), 4, fixed([[0.0, 0, 1, 2], [1.0, 1, 1, 1]]), chunk=8)
    write_ranks(path, ranks, split.domain.user_ids, split.domain.item_ids)
    other = make_split(sequences, 4)
    with pytest.raises(DataError, match=message):
        read_ranks(path, other.holdout("test"), other.domain.user_ids, other.domain.item_ids)


def test_a_file_without_ranks_is_an_error(make_split: Callable[[list[list[int]], int], Split], tmp_path: Path) -> None:
    split, path = make_split([[0, 1, 2]], 3), tmp_path / "ranks.parquet"
    pq.write_table(pa.table({"rank": [1]}), path)
    for place in (path, tmp_path / "absent.parquet"):
        with pytest.raises(DataError, match=f"{place.name}: cannot be read as ranks"):
            read_ranks(place, split.holdout("test"), split.domain.user_ids, split.domain.item_ids)
