"""A blend equals the sum of its parts by loops, in rankings and in lists, and its weights come from validation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pmmrec.data.contents import Contents
from pmmrec.data.splits import Split
from pmmrec.errors import DataError, MachineError
from pmmrec.evaluation import blend as blends
from pmmrec.evaluation.baselines import item_knn_baseline
from pmmrec.evaluation.blend import Blend, BlendConfig
from pmmrec.evaluation.learned_blend import learned_blend
from pmmrec.evaluation.model_scores import ModelScores
from pmmrec.evaluation.ranking import rank_targets
from pmmrec.evaluation.recommend import ListMaker
from pmmrec.evaluation.scan import Sizes
from pmmrec.models.recommender import Recommender

MakeSplit = Callable[[list[list[int]], int], Split]
NUM_ITEMS, NEW_ITEM = 14, 13
CONFIG = BlendConfig(cooccurrence=3.0, popularity=0.5, shrinkage=2.0)
ALL = np.ones(NUM_ITEMS, dtype=bool)


@pytest.fixture
def split(make_split: MakeSplit) -> Split:
    """Item 13 occurs nowhere; users have different lengths."""
    rng = np.random.default_rng(0)
    return make_split([rng.integers(NEW_ITEM, size=4 + user % 5).tolist() for user in range(20)], NUM_ITEMS)


def added_by_loops(config: BlendConfig, baskets: list[list[int]], history: list[int]) -> list[float]:
    """What a blend adds to each item: cosines with the items of a history, and the log of the count."""
    added = []
    for item in range(NUM_ITEMS):
        near = 0.0
        for age, other in enumerate(reversed(history)):
            both = sum(item in basket and other in basket for basket in baskets)
            alone = [sum(one in basket for basket in baskets) for one in (item, other)]
            if both and item != other:
                near += 0.9**age * both / (math.sqrt(alone[0] * alone[1]) + config.shrinkage)
        count = sum(basket.count(item) for basket in baskets)
        added.append(config.cooccurrence * near + config.popularity * math.log(1 + count))
    return added


def test_what_a_blend_adds_equals_loops_over_training_and_history(split: Split) -> None:
    holdout, rows = split.holdout("test"), slice(3, 17)
    score_QN = torch.randn(holdout.num_queries, NUM_ITEMS, generator=torch.Generator().manual_seed(1)).double()
    found_qN = Blend.of_split(CONFIG, split).added_to(lambda asked: score_QN[asked], holdout)(rows)
    baskets = [split.train(user).tolist() for user in range(split.domain.num_users)]
    added = [added_by_loops(CONFIG, baskets, holdout.history(query).tolist()) for query in range(3, 17)]
    expected_qN = score_QN[rows] + torch.tensor(added, dtype=torch.float64)
    torch.testing.assert_close(found_qN, expected_qN, rtol=0, atol=2e-7)  # log counts are float32; measured 4e-8
    assert torch.equal(found_qN[:, NEW_ITEM], score_QN[rows, NEW_ITEM])  # unknown to training: the model alone


def test_lists_are_those_of_sorting_blended_scores(split: Split, make_recommender: Callable[..., Recommender]) -> None:
    domain, model = split.domain, make_recommender(8)
    vectors_ND = torch.randn(NUM_ITEMS, 8, generator=torch.Generator().manual_seed(2))
    vectors_ND[5] = vectors_ND[2]  # who touched them tells equal items apart
    contents = Contents(np.where(np.arange(NUM_ITEMS) == 5, 2, np.arange(NUM_ITEMS)), np.arange(NUM_ITEMS) != 4)
    offsets, items = domain.sequence_offsets, domain.sequence_items
    plain_QN = ModelScores(model, vectors_ND, offsets, items, domain.item_counts)(slice(0, 20))
    baskets = [domain.sequence(user).tolist() for user in range(20)]
    added = [added_by_loops(CONFIG, baskets, basket) for basket in baskets]
    score_QN = plain_QN.double() + torch.tensor(added, dtype=torch.float64)
    blend, sizes = Blend.of_domain(CONFIG, domain, NUM_ITEMS), Sizes(users=7, tile=3, piece_bytes=1)
    maker = ListMaker(model, vectors_ND, 5, contents=contents, sizes=sizes, blend=blend)
    place = 0
    for top in maker.lists(offsets, items):
        for row in range(len(top.user_index_B)):
            candidates = [n for n in range(NUM_ITEMS) if n != 4 and n not in baskets[place]]
            expected = sorted(candidates, key=lambda n, user=place: -score_QN[user, n].item())[:5]
            assert top.item_index_BK[row, top.is_filled_BK[row]].tolist() == expected
            shown = score_QN[place, top.item_index_BK[row, top.is_filled_BK[row]]]
            torch.testing.assert_close(
                top.score_BK[row, top.is_filled_BK[row]].double(), shown, rtol=0, atol=1e-5
            )  # float32; measured 8e-7
            place += 1
    assert place == 20


def test_new_items_have_no_cooccurrence_and_no_popularity(split: Split) -> None:
    blend = Blend.of_domain(CONFIG, split.domain, NUM_ITEMS + 2)
    holdout = split.holdout("test")
    added_qN = blend.added_to(lambda rows: torch.zeros(rows.stop - rows.start, NUM_ITEMS + 2), holdout)(slice(0, 9))
    assert (added_qN[:, NUM_ITEMS:] == 0).all()
    assert (added_qN[:, :NEW_ITEM] > 0).any()


def test_weights_are_those_that_rank_the_validation_targets_best(split: Split) -> None:
    holdout = split.holdout("validation")
    noise_QN = torch.randn(holdout.num_queries, NUM_ITEMS, generator=torch.Generator().manual_seed(4))
    found = learned_blend(lambda rows: noise_QN[rows], split, holdout, "exclude", ALL)
    assert found.num_tried == 35
    blended = Blend.of_split(found.config, split).added_to(lambda rows: noise_QN[rows], holdout)
    ranks = rank_targets(holdout, NUM_ITEMS, blended, chunk=5)
    rank_T = ranks.rank.double()
    values_T = torch.where((rank_T > 0) & (rank_T <= 10), 1 / (rank_T + 1).log2(), 0.0)
    assert found.validation == pytest.approx(values_T.mean().item(), abs=1e-12)
    knn = rank_targets(holdout, NUM_ITEMS, item_knn_baseline(split, holdout), chunk=5)
    assert (found.config.cooccurrence, found.config.popularity) != (0, 0) or (knn.rank > 3).all()


def test_a_model_that_needs_no_help_gets_none(split: Split) -> None:
    holdout = split.holdout("validation")
    score_QN = torch.zeros(holdout.num_queries, NUM_ITEMS)
    score_QN[torch.arange(holdout.num_queries), torch.from_numpy(holdout.target)] = 1000.0
    config = learned_blend(lambda rows: score_QN[rows], split, holdout, "exclude", ALL).config
    assert (config.cooccurrence, config.popularity) == (0, 0)


def test_a_single_item_needs_no_blend(make_split: MakeSplit) -> None:
    alone = make_split([[0, 0, 0, 0], [0, 0, 0]], 1)
    holdout = alone.holdout("validation")
    config = learned_blend(lambda rows: torch.ones(2, 1)[rows], alone, holdout, "include", np.ones(1, bool)).config
    assert (config.cooccurrence, config.popularity) == (0, 0)


def test_scores_that_are_not_finite_are_refused(split: Split) -> None:
    holdout = split.holdout("validation")
    score_QN = torch.full((holdout.num_queries, NUM_ITEMS), torch.nan)
    with pytest.raises(DataError, match="scores must be finite"):
        learned_blend(lambda rows: score_QN[rows], split, holdout, "exclude", ALL)


def test_a_weight_that_leaves_no_finite_score_is_refused() -> None:
    for name in ("cooccurrence", "popularity"):
        with pytest.raises(ValidationError, match=f"{name}\n.*less than or equal to 1000000000"):
            BlendConfig(**{name: 1e30})


def test_settings_of_item_knn_without_its_weight_are_refused() -> None:
    with pytest.raises(ValidationError, match="have no effect without cooccurrence"):
        BlendConfig(popularity=1.0, shrinkage=2.0)


def test_a_blend_is_refused_without_validation_targets_and_where_it_does_not_fit(
    make_split: MakeSplit, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = make_split([[0, 1], [1]], 2)
    with pytest.raises(DataError, match="no validation target to choose the weights of a blend by"):
        learned_blend(lambda _: torch.zeros(0, 2), alone, alone.holdout("validation"), "exclude", np.ones(2, bool))
    monkeypatch.setattr(blends, "MAX_HELD", 10)
    with pytest.raises(MachineError, match="co-occurrence holds all in memory, 10 at most; leave it out"):
        Blend.of_domain(CONFIG, split.domain, NUM_ITEMS)
