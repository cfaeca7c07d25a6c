"""BCE and BPR equal their loops in values and gradients, at every kind of target."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from views import PLAIN, hidden_of, with_negatives

from pmmrec.context import BuildContext
from pmmrec.objectives import objectives
from pmmrec.testing.twins.drawn_negatives import drawn_by_loops

ATOL = 1e-12  # float64; measured below 5e-14, of which the logarithms of the loops are the most


@pytest.mark.parametrize("targets", ["next", "last"])
@pytest.mark.parametrize(("count", "temperature"), [(1, 1.0), (3, 1.0), (1, 0.5)])
@pytest.mark.parametrize("type_name", ["bce", "bpr"])
def test_the_sum_equals_its_loops(
    tiny_batch: Callable[..., Any],
    assert_twins: Callable[..., None],
    type_name: str,
    count: int,
    temperature: float,
    targets: str,
) -> None:
    tree = {"type": type_name, "negatives": {"count": count}, "targets": targets, "temperature": temperature}
    config = objectives.config(tree)
    objective = objectives.part_class(config)(config, BuildContext(5))
    num_counted = 0
    for seed in range(8):
        batch = tiny_batch(seed=seed)
        batch = dataclasses.replace(batch, views=with_negatives(batch.views, config.negatives, seed))
        expected = drawn_by_loops(objective, batch.views)
        assert_twins(objective(batch.views), expected, batch, ATOL)
        num_counted += expected[1]
    assert num_counted > 5


@pytest.mark.parametrize("type_name", ["bce", "bpr"])
def test_items_with_nothing_to_read_are_no_targets(
    tiny_batch: Callable[..., Any], assert_twins: Callable[..., None], type_name: str
) -> None:
    config = objectives.config({"type": type_name})
    objective, left_out = objectives.part_class(config)(config, BuildContext(5)), 0
    for seed in range(8):
        batch = tiny_batch(seed=seed, no_text=(0, 1, 2), no_image=(1, 2, 3))
        batch = dataclasses.replace(batch, views=with_negatives(batch.views, config.negatives, seed))
        expected = drawn_by_loops(objective, batch.views)
        assert_twins(objective(batch.views), expected, batch, ATOL)
        left_out += int(batch.views.windows.has_next_BL.sum()) - expected[1]
    assert left_out > 5


@pytest.mark.parametrize("type_name", ["bce", "bpr"])
def test_a_missing_draw_is_named(tiny_batch: Callable[..., Any], type_name: str) -> None:
    config = objectives.config({"type": type_name})
    with pytest.raises(ValueError, match=f"{type_name}: the pass holds no negatives DrawnNegatives"):
        objectives.part_class(config)(config, BuildContext(5))(tiny_batch().views)


def test_the_metrics_are_the_loss_of_equal_scores_and_targets_above_all_negatives(
    tiny_batch: Callable[..., Any],
) -> None:
    config = objectives.config({"type": "bpr", "negatives": {"count": 2}})
    views = with_negatives(tiny_batch([[0, 1], [2, 3]], num_items=6).views, config.negatives)
    term = objectives.part_class(config)(config, BuildContext(5))(views)
    assert (term.metrics["chance"] / term.count)[0].item() == pytest.approx(0.6931471805599453, abs=1e-12)
    of_pass, right = views.windows.passes[PLAIN], 0
    for b in range(2):
        scores = views.items.fused_UD @ hidden_of(views)[b, 0]
        negatives = scores[of_pass.negative_index_BLC[config.negatives][b, 0]]
        right += int((scores[of_pass.target_index_BL[b, 0]] > negatives).all())
    assert term.metrics["accuracy"].tolist() == [right, 2]
