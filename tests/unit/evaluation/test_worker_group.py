"""A worker group ranks as one process does, bit for bit. Threads stand in for processes."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pmmrec.data.splits import Split
from pmmrec.errors import DataError
from pmmrec.evaluation import catalogue
from pmmrec.evaluation.catalogue import Evaluation, evaluate_model
from pmmrec.evaluation.ranking import Ranks
from pmmrec.evaluation.share import SINGLE_PROCESS, WorkerGroup, turns
from pmmrec.models.recommender import Recommender

NUM_ITEMS = 30


class Table:
    """Adds up the tensors of all threads."""

    def __init__(self, world: int) -> None:
        self.given: dict[int, Tensor] = {}
        self.barrier = threading.Barrier(world, timeout=60)


@dataclass(frozen=True)
class Member:
    """One thread of a group."""

    rank: int
    world: int
    table: Table

    def summed(self, own: Tensor) -> Tensor:
        self.table.given[self.rank] = own
        self.table.barrier.wait()
        total = torch.stack([self.table.given[rank] for rank in range(self.world)]).sum(dim=0)
        self.table.barrier.wait()
        return total


@pytest.fixture
def split(make_split: Callable[[list[list[int]], int], Split]) -> Split:
    rng = np.random.default_rng(0)
    return make_split([rng.integers(NUM_ITEMS, size=rng.integers(3, 9)).tolist() for _ in range(20)], NUM_ITEMS)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "ITEMS_AT_ONCE", 7)
    monkeypatch.setattr(catalogue, "users_at_once", lambda _num_items: 3)


def by_threads(world: int, work: Callable[[WorkerGroup], Any]) -> list[Any]:
    table = Table(world)
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(lambda rank: work(Member(rank, world, table)), range(world)))


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("world", [2, 3, 9])
def test_a_worker_group_ranks_as_one_process_does(
    split: Split, recommender: Recommender, make_reader: Callable[..., Any], world: int
) -> None:
    reader = make_reader(split.domain)
    calls: list[list[int]] = []

    def work(group: WorkerGroup) -> Evaluation:
        own, counts = copy.deepcopy(recommender), [0, 0]
        calls.append(counts)
        for place, module in enumerate((own.item_encoder, own.user_encoder)):
            module.register_forward_pre_hook(lambda *_, place=place: counts.__setitem__(place, counts[place] + 1))
        return evaluate_model(own, reader, 0, split, "test", "cpu", group=group)

    alone = work(SINGLE_PROCESS)
    calls.clear()
    for found in by_threads(world, work):
        assert found.metrics == alone.metrics
        assert all(torch.equal(getattr(found.ranks, f.name), getattr(alone.ranks, f.name)) for f in fields(Ranks))
    assert calls == [[-(-5 // world), -(-7 // world)]] * world  # 30 items in 5 pieces, 20 users in 7


@pytest.mark.usefixtures("small_pieces")
def test_all_processes_of_a_group_stop_if_one_meets_a_broken_score(
    split: Split, recommender: Recommender, make_reader: Callable[..., Any]
) -> None:
    reader = make_reader(split.domain)
    broken_user = int(split.holdout("test").user_index[3])  # the first of the second piece: of the second process

    def work(group: WorkerGroup) -> str:
        own = copy.deepcopy(recommender)
        plain = own.scorer.forward

        def forward(hidden_BD: Tensor, items_ND: Tensor, count_N: Tensor | None = None) -> Tensor:
            score_BN = plain(hidden_BD, items_ND, count_N)
            forward.calls += 1
            return score_BN / 0 if group.rank == 1 and forward.calls == 1 else score_BN

        forward.calls = 0
        own.scorer.forward = forward
        with pytest.raises(DataError) as told:
            evaluate_model(own, reader, 0, split, "test", "cpu", group=group)
        return str(told.value)

    first, second, third = by_threads(3, work)
    assert f"user {broken_user}:" in second
    assert first == third == "test: scores of another process are not finite; it says which"


@pytest.mark.parametrize(("total", "world"), [(0, 2), (1, 3), (5, 2), (6, 3)])
def test_all_processes_have_the_same_number_of_turns_and_cover_every_piece(total: int, world: int) -> None:
    table = Table(world)
    taken = [list(turns(total, Member(rank, world, table))) for rank in range(world)]
    assert len({len(some) for some in taken}) == 1
    assert sorted(place for some in taken for place, is_own in some if is_own) == list(range(total))
    assert all(0 <= place < total for some in taken for place, _ in some)
