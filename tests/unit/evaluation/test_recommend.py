"""Lists of items for every user: exact, deterministic, streamed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pmmrec.context import BuildContext, Catalogue
from pmmrec.contracts import ItemVectors, Query
from pmmrec.data.contents import Contents
from pmmrec.data.domain import Domain
from pmmrec.data.items import ItemReader
from pmmrec.data.splits import Split
from pmmrec.errors import DataError, RecipeError
from pmmrec.evaluation import recommend
from pmmrec.evaluation.catalogue import encode_catalogue
from pmmrec.evaluation.model_scores import ModelScores
from pmmrec.evaluation.recommend import ListMaker, top_k
from pmmrec.evaluation.scan import Sizes, first_largest
from pmmrec.models import Scorer
from pmmrec.models.recommender import Recommender
from pmmrec.propagations.lightgcn import LightGCN, LightGCNConfig
from pmmrec.users import user_encoders

NUM_ITEMS = 12
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
SEQUENCES = [[0, 1, 2], [5], [3, 4, 5, 3], list(range(10)), [11, 0]]


@pytest.fixture
def domain(make_split: Callable[[list[list[int]], int], Split]) -> Domain:
    return make_split(SEQUENCES, NUM_ITEMS).domain


@pytest.fixture
def vectors_ND(domain: Domain, recommender: Recommender, make_reader: Callable[[Domain], ItemReader]) -> torch.Tensor:
    return encode_catalogue(recommender, make_reader(domain), 0, NUM_ITEMS, chunk=5, device="cpu")


@pytest.mark.parametrize("seen", ["exclude", "include"])
@pytest.mark.parametrize("chunk", [1, 2, 100])
@pytest.mark.parametrize("device", DEVICES)
def test_lists_are_those_of_sorting_all_scores(
    device: str, seen: str, chunk: int, domain: Domain, recommender: Recommender, vectors_ND: torch.Tensor
) -> None:
    recommender, vectors_ND = recommender.to(device), vectors_ND.to(device)
    offsets, items = domain.sequence_offsets, domain.sequence_items
    counts = domain.item_counts
    score_QN = ModelScores(recommender, vectors_ND, offsets, items, counts)(slice(0, len(SEQUENCES)))
    found = {}
    for top in top_k(recommender, vectors_ND, offsets, items, 4, counts=counts, seen=seen, chunk=chunk):
        for place, user in enumerate(top.user_index_B.tolist()):
            found[user] = top.item_index_BK[place, top.is_filled_BK[place]].tolist()
    for user, history in enumerate(SEQUENCES):
        candidates = [item for item in range(NUM_ITEMS) if seen == "include" or item not in history]
        assert found[user] == sorted(candidates, key=lambda n, user=user: -score_QN[user, n].item())[:4]


@pytest.mark.parametrize("seen", ["exclude", "include"])
def test_an_item_with_nothing_to_read_is_recommended_to_nobody(
    seen: str, domain: Domain, recommender: Recommender, vectors_ND: torch.Tensor
) -> None:
    is_readable_N = np.arange(NUM_ITEMS) != 7
    contents = Contents(np.arange(NUM_ITEMS), is_readable_N)
    vectors_ND = torch.where(torch.from_numpy(is_readable_N)[:, None], vectors_ND, 0.0)
    histories, counts = (domain.sequence_offsets, domain.sequence_items), domain.item_counts
    lists = top_k(
        recommender, vectors_ND, *histories, NUM_ITEMS, counts=counts, contents=contents, seen=seen, chunk=100
    )
    (top,) = lists
    for user, history in enumerate(SEQUENCES):
        listed = top.item_index_BK[user, top.is_filled_BK[user]].tolist()
        assert set(listed) == set(range(NUM_ITEMS)) - {7} - set(history if seen == "exclude" else [])


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("popularity", [0.0, 1.5])
@pytest.mark.parametrize("seen", ["exclude", "include"])
def test_alike_items_tie_and_stand_in_the_order_of_their_rows(
    seen: str, popularity: float, similarity: str, make_recommender: Callable[..., Recommender]
) -> None:
    same_as_N = np.array([0, 1, 0, 3, 1, 0, 6, 7, 1, 9, 0, 3])
    contents = Contents(same_as_N, np.arange(NUM_ITEMS) != 9)
    counts = np.array([3, 0, 3, 1, 0, 9, 1, 2, 5, 1, 3, 1])  # alike items of other counts are others with popularity
    model = make_recommender(8, popularity=popularity, similarity=similarity)
    vectors_ND = torch.randn(NUM_ITEMS, 8, generator=torch.Generator().manual_seed(3))[torch.from_numpy(same_as_N)]
    offsets, items = np.cumsum([0, *map(len, SEQUENCES)]), np.concatenate(SEQUENCES)
    score_QN = ModelScores(model, vectors_ND, offsets, items, counts, contents)(slice(0, len(SEQUENCES)))
    if popularity:
        score_QN = (score_QN * 1e5).round()  # the last digits depend on how popularity is added
    for k in (1, 4, NUM_ITEMS):
        (top,) = top_k(model, vectors_ND, offsets, items, k, counts=counts, contents=contents, seen=seen, chunk=9)
        for user, history in enumerate(SEQUENCES):
            candidates = [n for n in range(NUM_ITEMS) if n != 9 and (seen == "include" or n not in history)]
            expected = sorted(candidates, key=lambda n, user=user: (-score_QN[user, n].item(), n))[:k]
            assert top.item_index_BK[user, top.is_filled_BK[user]].tolist() == expected


@pytest.mark.parametrize("seen", ["exclude", "include"])
def test_where_all_scores_are_equal_the_first_rows_win_and_shorter_lists_are_heads_of_longer_ones(
    seen: str, make_recommender: Callable[..., Recommender]
) -> None:
    """Also if a user has seen the first of some equal items, and the next of them comes after other items."""
    contents = Contents(np.array([0, 1, 0, 3, 1, 0, 6, 7, 1, 9, 0, 3]), np.arange(NUM_ITEMS) != 9)
    vectors_ND, model = torch.ones(NUM_ITEMS, 8), make_recommender(8)
    offsets, items = np.cumsum([0, *map(len, SEQUENCES)]), np.concatenate(SEQUENCES)
    counts = np.ones(NUM_ITEMS, dtype=np.int64)
    for k in range(1, NUM_ITEMS + 1):
        (top,) = top_k(model, vectors_ND, offsets, items, k, counts=counts, contents=contents, seen=seen, chunk=9)
        for user, history in enumerate(SEQUENCES):
            left = [n for n in range(NUM_ITEMS) if n != 9 and (seen == "include" or n not in history)]
            assert top.item_index_BK[user, top.is_filled_BK[user]].tolist() == left[:k]


class Nearest(Scorer):
    """A score that is not an inner product."""

    def forward(self, query: Query, items: ItemVectors, candidate_KC: torch.Tensor | None = None) -> torch.Tensor:
        assert candidate_KC is None
        return -torch.cdist(query.hidden_KD, items.fused_UD)


def test_any_scorer_makes_lists(domain: Domain, recommender: Recommender, vectors_ND: torch.Tensor) -> None:
    recommender.scorer = Nearest()
    histories, counts = (domain.sequence_offsets, domain.sequence_items), domain.item_counts
    score_QN = ModelScores(recommender, vectors_ND, *histories, counts)(slice(0, len(SEQUENCES)))
    (top,) = top_k(recommender, vectors_ND, *histories, 5, counts=counts, seen="include", chunk=9)
    assert top.item_index_BK.tolist() == first_largest(score_QN, 5).tolist()
    recommender.user_encoder.get_parameter("position.weight").data.fill_(torch.nan)
    with pytest.raises(DataError, match="user 0: item 0 scores nan"):
        next(top_k(recommender, vectors_ND, *histories, 5, counts=counts, chunk=9))


def test_a_list_does_not_hang_on_who_else_is_asked_for(
    domain: Domain, recommender: Recommender, vectors_ND: torch.Tensor
) -> None:
    counts, found = domain.item_counts, []
    for offsets in (domain.sequence_offsets, domain.sequence_offsets[:2], domain.sequence_offsets[:3]):
        lists = top_k(recommender, vectors_ND, offsets, domain.sequence_items, 4, counts=counts, chunk=9)
        found.append(next(lists).item_index_BK[0].tolist())
    assert found[0] == found[1] == found[2]


def test_threads_make_the_same_lists_and_leave_everything_as_it_was(
    domain: Domain, recommender: Recommender, vectors_ND: torch.Tensor
) -> None:
    sizes = Sizes(users=2, tile=32, piece_bytes=1 << 20)
    recommender.train()
    found = []
    for threads in (1, 3):
        maker = ListMaker(recommender, vectors_ND, 4, sizes=sizes, threads=threads)
        lists = maker.lists(domain.sequence_offsets, domain.sequence_items)
        found.append([next(lists)])
        assert recommender.user_encoder.training
        assert torch.is_grad_enabled()
        assert torch.get_num_threads() == 1
        found[-1] += list(lists)
    for one, other in zip(*found, strict=True):
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in one.__dataclass_fields__)


def test_as_many_threads_compute_afterwards_as_before() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with recommend.one_thread_each():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_error_in_a_thread_is_told(domain: Domain, recommender: Recommender, vectors_ND: torch.Tensor) -> None:
    vectors_ND[11] = torch.inf
    sizes = Sizes(users=1, tile=32, piece_bytes=1 << 20)
    maker = ListMaker(recommender, vectors_ND, 4, sizes=sizes, threads=2)
    with pytest.raises(DataError, match=r"user 0: item 11 scores -?(inf|nan)"):
        list(maker.lists(domain.sequence_offsets, domain.sequence_items))


@pytest.mark.parametrize("k", [0, 13])
def test_a_k_that_does_not_fit_the_catalogue_is_refused_before_any_work(
    k: int, domain: Domain, recommender: Recommender, vectors_ND: torch.Tensor
) -> None:
    offsets, items, counts = domain.sequence_offsets, domain.sequence_items, domain.item_counts
    with pytest.raises(RecipeError, match=f"{k} items cannot be recommended from a catalogue of 12"):
        top_k(recommender, vectors_ND, offsets, items, k, counts=counts, chunk=2)


def test_a_user_without_history_is_an_error(recommender: Recommender) -> None:
    with pytest.raises(DataError, match="user 1 has no history"):
        top_k(recommender, torch.zeros(3, 8), np.array([0, 1, 1]), np.array([2]), 1, counts=np.ones(3, int), chunk=2)


def test_scores_that_are_not_finite_are_an_error_that_names_the_user(recommender: Recommender) -> None:
    vectors_ND = torch.zeros(3, 8)
    vectors_ND[2] = torch.nan
    counts = np.array([1, 1, 0])
    lists = top_k(recommender, vectors_ND, np.array([0, 1, 2]), np.array([0, 1]), 1, counts=counts, chunk=1)
    with pytest.raises(DataError, match="user 0: item 2 scores nan"):
        next(lists)


@pytest.mark.parametrize("first_user", [0, 7])
def test_a_model_that_knows_users_by_id_ranks_by_their_rows_among_those_of_all_domains(
    first_user: int, make_split: Callable[..., Split], recommender: Recommender
) -> None:
    domain = make_split(SEQUENCES, NUM_ITEMS).domain
    another = Catalogue("another", 3, "other", num_users=7, users_fingerprint="others")
    catalogues = [another, domain.catalogue] if first_user else [domain.catalogue, another]
    context = BuildContext(8, catalogues=catalogues)
    torch.manual_seed(0)
    config = user_encoders.config({"type": "user_table"})
    recommender.user_encoder = user_encoder = user_encoders.part_class(config)(config, context)
    vectors_ND, rows = torch.randn(NUM_ITEMS, 8), np.arange(len(SEQUENCES))
    score_QN = user_encoder.vector.weight[first_user + rows] @ vectors_ND.T
    lists = top_k(
        *(recommender, vectors_ND, domain.sequence_offsets, domain.sequence_items, NUM_ITEMS),
        counts=domain.item_counts,
        seen="include",
        chunk=2,
        users=rows,
        first_user=first_user,
    )
    found = torch.cat([top.item_index_BK for top in lists])
    assert torch.equal(found, score_QN.argsort(dim=1, descending=True))


def test_a_graph_tells_items_of_equal_content_apart(make_split: Callable[..., Split], recommender: Recommender) -> None:
    split = make_split(SEQUENCES, NUM_ITEMS)
    domain, num_users = split.domain, len(SEQUENCES)
    context = BuildContext(8, catalogues=[domain.catalogue], graphs=[split.graph])
    torch.manual_seed(0)
    config = user_encoders.config({"type": "user_table"})
    recommender.user_encoder = user_encoders.part_class(config)(config, context)
    recommender.propagation = LightGCN(LightGCNConfig(num_layers=1), context)
    same_as_N = np.array([0, 1, 0, 3, 1, 0, 6, 7, 1, 9, 0, 3])
    contents = Contents(same_as_N, np.arange(NUM_ITEMS) != 9)
    vectors_ND, rows = torch.randn(NUM_ITEMS, 8)[torch.from_numpy(same_as_N)], np.arange(num_users)
    nodes = recommender.catalogue(vectors_ND)
    expected_QN = nodes.user_MD @ nodes.items.fused_UD.T
    histories, counts = (domain.sequence_offsets, domain.sequence_items), domain.item_counts
    score_QN = ModelScores(recommender, vectors_ND, *histories, counts, contents, rows)(slice(0, num_users))
    torch.testing.assert_close(score_QN, expected_QN, rtol=0, atol=1e-6)  # float32
    lists = top_k(
        *(recommender, vectors_ND, *histories, NUM_ITEMS),
        counts=counts,
        contents=contents,
        seen="include",
        chunk=9,
        users=rows,
    )
    found = torch.cat([top.item_index_BK[:, : NUM_ITEMS - 1] for top in lists])
    expected_QN[:, 9] = -torch.inf
    assert torch.equal(found, expected_QN.argsort(dim=1, descending=True)[:, : NUM_ITEMS - 1])
