"""A model over a whole catalogue against one user and one item at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pmmrec.contracts import History, ItemInputs, ItemVectors
from pmmrec.data.domain import Domain
from pmmrec.data.items import ItemReader
from pmmrec.data.splits import Split
from pmmrec.errors import DataError
from pmmrec.evaluation.catalogue import encode_catalogue, evaluate_model
from pmmrec.evaluation.metrics import query_metrics
from pmmrec.evaluation.model_scores import model_scorer
from pmmrec.evaluation.ranking import rank_targets
from pmmrec.models.recommender import Recommender

NUM_ITEMS = 30
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
MakeReader = Callable[[Domain], ItemReader]


@pytest.fixture
def split(make_split: Callable[[list[list[int]], int], Split]) -> Split:
    rng = np.random.default_rng(0)
    return make_split([rng.integers(NUM_ITEMS, size=rng.integers(3, 9)).tolist() for _ in range(20)], NUM_ITEMS)


def encoded(recommender: Recommender, reader: ItemReader, chunk: int = 7) -> torch.Tensor:
    return encode_catalogue(recommender, reader, 0, NUM_ITEMS, chunk=chunk, device="cpu")


def test_every_item_gets_its_own_vector_whatever_the_order(
    split: Split, recommender: Recommender, make_reader: MakeReader
) -> None:
    reader = make_reader(split.domain)
    vectors_ND = encoded(recommender, reader)
    order = [row for items in reader.catalogue(0, 7) for row in items.row_U.tolist()]
    assert order != sorted(order)  # the reader sorts by length
    recommender.eval()
    for row in range(NUM_ITEMS):
        alone = recommender.item_encoder(reader.read(np.array([0]), np.array([row]))).fused_UD[0]
        torch.testing.assert_close(vectors_ND[row], alone, rtol=0, atol=1e-6)  # float32; measured 6e-8
    assert not vectors_ND.requires_grad
    assert not vectors_ND.is_inference()


def test_each_module_is_afterwards_in_the_mode_it_was_in(
    split: Split, recommender: Recommender, make_reader: MakeReader
) -> None:
    recommender.train()
    recommender.item_encoder.eval()  # as frozen parts are
    before = {name: module.training for name, module in recommender.named_modules()}
    vectors_ND = encoded(recommender, make_reader(split.domain))
    model_scorer(recommender, vectors_ND, split.holdout("test"), split.train_counts, "cpu")(slice(0, 3))
    assert {name: module.training for name, module in recommender.named_modules()} == before
    assert len(set(before.values())) == 2


def test_dropout_is_off_while_the_catalogue_is_encoded(
    split: Split, recommender: Recommender, make_reader: MakeReader
) -> None:
    reader = make_reader(split.domain)
    assert torch.equal(encoded(recommender.train(), reader), encoded(recommender.eval(), reader))


def test_an_item_vector_that_is_not_finite_is_an_error(
    split: Split, recommender: Recommender, make_reader: MakeReader
) -> None:
    with torch.no_grad():
        recommender.item_encoder.letter.weight[ord("I") + 1] = torch.nan  # stands in the title of item 8 only
    with pytest.raises(DataError, match="vector of item 8 is not finite"):
        encoded(recommender, make_reader(split.domain))


def test_a_catalogue_larger_than_the_reader_knows_is_an_error(
    split: Split, recommender: Recommender, make_reader: MakeReader
) -> None:
    with pytest.raises(DataError, match="the reader knows 30 items, not 32"):
        encode_catalogue(recommender, make_reader(split.domain), 0, NUM_ITEMS + 2, chunk=7, device="cpu")


TITLES = [None if row == 4 else f"{'long ' * (row % 4)}{chr(ord('A') + row // 3)}" for row in range(NUM_ITEMS)]
ALIKE = {0: [0, 7, 21], 1: [9, 29]}  # rows that share a title, by which of two it is
for group, rows in ALIKE.items():
    for alike_row in rows:
        TITLES[alike_row] = "the same title " + "and more of it " * group


@pytest.fixture
def twins(make_split: Callable[..., Split]) -> Split:
    """Items 0, 7 and 21 share a title, 9 and 29 another; item 4 has none, and users 0 and 1 take it next."""
    rng = np.random.default_rng(0)
    sequences = [rng.integers(NUM_ITEMS, size=6).tolist() for _ in range(40)]
    return make_split([[1, 2, 4], [3, 5, 4], *sequences], NUM_ITEMS, TITLES)


class Counting(torch.nn.Module):
    """Records the rows that an item encoder is given."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner, self.rows, self.streams = inner, [], {}

    def forward(self, items: ItemInputs) -> ItemVectors:
        self.rows += items.row_U.tolist()
        return self.inner(items)


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_items_that_are_alike_are_encoded_once_and_have_the_very_same_vector(
    chunk: int, twins: Split, recommender: Recommender, make_reader: MakeReader
) -> None:
    counting = recommender.item_encoder = Counting(recommender.item_encoder)
    vectors_ND = encoded(recommender, make_reader(twins.domain), chunk)
    assert sorted(counting.rows) == [row for row in range(NUM_ITEMS) if row not in (4, 7, 21, 29)]
    for rows in ALIKE.values():
        assert torch.equal(vectors_ND[rows], vectors_ND[rows[:1]].expand(len(rows), -1))
    assert len(vectors_ND.unique(dim=0)) == NUM_ITEMS - 3


@pytest.mark.parametrize("popularity", [0.0, 1.0])
@pytest.mark.parametrize("width", [8, 256])
def test_items_that_are_alike_tie_to_the_bit(
    width: int, popularity: float, twins: Split, make_reader: MakeReader, make_recommender: Callable[..., Recommender]
) -> None:
    recommender, reader = make_recommender(width, popularity=popularity), make_reader(twins.domain)
    holdout, vectors_ND = twins.holdout("test"), encoded(recommender, reader)
    counts = np.arange(NUM_ITEMS) // 22  # 0, 7 and 21 were touched as often, 9 and 29 were not
    score = model_scorer(recommender, vectors_ND, holdout, counts, "cpu", reader.contents(0))
    plain = model_scorer(recommender, vectors_ND, holdout, counts, "cpu")
    for rows in (slice(0, 1), slice(1, 3), slice(3, 12)):
        score_qN = score(rows)
        assert (score_qN[:, [7, 21]] == score_qN[:, :1]).all()
        assert (score_qN[:, 9] == score_qN[:, 29]).all() == (popularity == 0)
        torch.testing.assert_close(score_qN, plain(rows), rtol=1e-5, atol=1e-5)  # float32; measured 2e-6


def test_an_item_with_nothing_to_read_is_a_zero_vector_and_a_target_that_nobody_hits(
    twins: Split, recommender: Recommender, make_reader: MakeReader
) -> None:
    reader = make_reader(twins.domain)
    vectors_ND = encoded(recommender, reader)
    assert vectors_ND.any(dim=1).tolist() == [row != 4 for row in range(NUM_ITEMS)]
    for seen in ("exclude", "include"):
        ranks = evaluate_model(recommender, reader, 0, twins, "test", "cpu", seen).ranks
        assert ranks.target[:2].tolist() == [4, 4]
        assert ranks.rank[:2].tolist() == [0, 0]
        assert not ranks.seen_target[:2].any()
        assert ranks.rank[ranks.target != 4].max() > 0


def test_a_target_stands_behind_all_items_that_are_like_it(
    make_split: Callable[..., Split], recommender: Recommender, make_reader: MakeReader
) -> None:
    titles: list[str | None] = ["other", *["the same"] * 9]
    split = make_split([[0, 0, target] for target in range(1, 10)], 10, titles)
    evaluation = evaluate_model(recommender, make_reader(split.domain), 0, split, "test", "cpu")
    assert evaluation.ranks.rank.tolist() == [9] * 9


def test_half_precision_encodes_nearly_the_same(
    split: Split, recommender: Recommender, make_reader: MakeReader
) -> None:
    reader = make_reader(split.domain)
    half = encode_catalogue(recommender, reader, 0, NUM_ITEMS, chunk=7, device="cpu", precision=torch.bfloat16)
    assert half.dtype == torch.float32
    full = encoded(recommender, reader)
    assert not torch.equal(half, full)
    torch.testing.assert_close(
        half, full, rtol=0, atol=2**-7
    )  # vectors below 1, three roundings to 2**-9; measured 3.7e-3


def test_scores_are_those_of_one_user_without_padding(
    split: Split, recommender: Recommender, make_reader: MakeReader
) -> None:
    vectors_ND = encoded(recommender, make_reader(split.domain))
    holdout = split.holdout("test")
    actual = model_scorer(recommender, vectors_ND, holdout, split.train_counts, "cpu")(slice(0, holdout.num_queries))
    recommender.eval()
    for query in range(holdout.num_queries):
        latest = torch.from_numpy(holdout.history(query)[-4:].astype(np.int64))[None]  # the encoder reads four
        history = History.of(ItemVectors(vectors_ND), latest, torch.ones_like(latest, dtype=torch.bool))
        expected = recommender.score(recommender.query(history), ItemVectors(vectors_ND))[0]
        torch.testing.assert_close(actual[query], expected, rtol=0, atol=5e-6)  # float32, scores to 3; measured 4.8e-7


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_ranks_do_not_depend_on_the_chunk(
    chunk: int, split: Split, recommender: Recommender, make_reader: MakeReader
) -> None:
    holdout, reader = split.holdout("validation"), make_reader(split.domain)
    ranks = []
    for items_at_once, users_at_once in ((NUM_ITEMS, 100), (chunk, chunk)):
        score = model_scorer(
            recommender, encoded(recommender, reader, items_at_once), holdout, split.train_counts, "cpu"
        )
        ranks.append(rank_targets(holdout, NUM_ITEMS, score, chunk=users_at_once).rank)
    assert torch.equal(*ranks)
    assert len(ranks[0].unique()) > 5


@pytest.mark.parametrize("seen", ["exclude", "include"])
@pytest.mark.parametrize("which", ["validation", "test"])
@pytest.mark.parametrize("device", DEVICES)
def test_an_evaluation_holds_ranks_means_and_intervals_that_belong_together(
    device: str, which: str, seen: str, split: Split, recommender: Recommender, make_reader: MakeReader
) -> None:
    reader = make_reader(split.domain)
    evaluation = evaluate_model(recommender.to(device), reader, 0, split, which, device, seen)
    holdout = split.holdout(which)
    assert evaluation.ranks.target.tolist() == holdout.target.tolist()
    assert evaluation.ranks.user_index.tolist() == holdout.user_index.tolist()
    assert bool((evaluation.ranks.rank == 0).any()) == (seen == "exclude" and evaluation.ranks.seen_share > 0)
    for name, values_Q in query_metrics(evaluation.ranks.rank).items():
        interval = evaluation.intervals[name]
        assert evaluation.metrics[name] == interval.mean == pytest.approx(values_Q.mean().item(), abs=1e-12)
        assert interval.low <= interval.mean <= interval.high
    assert evaluation.metrics["seen_target"] == evaluation.ranks.seen_share


def test_a_domain_without_anyone_to_rank_for_is_named_before_anything_is_encoded(
    make_split: Callable[[list[list[int]], int], Split], recommender: Recommender, make_reader: MakeReader
) -> None:
    short = make_split([[0, 1], [2]], NUM_ITEMS)
    recommender.item_encoder.forward = None  # type: ignore[assignment]  # whoever calls it now fails
    with pytest.raises(DataError, match=f"{short.domain.folder}: no user has three interactions"):
        evaluate_model(recommender, make_reader(short.domain), 0, short, "validation", "cpu")


@pytest.mark.parametrize("which", ["validation", "test"])
def test_popularity_counts_training_alone(
    which: str, make_split: Callable[..., Split], make_reader: MakeReader, make_recommender: Callable[..., Recommender]
) -> None:
    split = make_split([*[[0, 1, 7, 9]] * 3, *[[3, 4, 7, 9]] * 3], NUM_ITEMS)
    recommender = make_recommender(8, popularity=1e6)
    ranks = evaluate_model(recommender, make_reader(split.domain), 0, split, which, "cpu").ranks.rank
    assert (ranks > 2).all()  # behind the two items that the other users trained with, however often it is held out
