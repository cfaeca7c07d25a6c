"""The contrast of an item's text with its image equals nested loops over the windows of a batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pmmrec.context import BuildContext
from pmmrec.contracts import Modality
from pmmrec.objectives.item_contrast import LEAST_TEMPERATURE, ItemContrast, ItemContrastConfig
from pmmrec.testing.twins.item_contrast import item_contrast_by_loops

ATOL = 1e-12  # float64; measured at most 3e-15


def objective(**settings: Any) -> ItemContrast:
    return ItemContrast(ItemContrastConfig(**settings), BuildContext(5)).double()


@pytest.mark.parametrize("learns", [True, False])
def test_the_contrast_equals_its_loops_in_value_and_gradient(
    tiny_batch: Callable[..., Any], assert_twins: Callable[..., None], learns: bool
) -> None:
    num_counted = 0
    for seed in range(8):
        batch, head = tiny_batch(seed=seed, no_text=[1], no_image=[4]), objective(learns_temperature=learns)
        expected = item_contrast_by_loops(head, batch.views)
        assert_twins(head(batch.views), expected, batch, ATOL, head)
        num_counted += expected[1]
    assert num_counted > 10


def test_items_as_examples_are_clips_symmetric_cross_entropy(tiny_batch: Callable[..., Any]) -> None:
    views = tiny_batch([[row] for row in range(7)]).views
    text, image = (torch.nn.functional.normalize(views.items.cls_UD[modality], dim=1) for modality in Modality)
    score, own = text @ image.T / 0.5, torch.arange(7)
    clip = (torch.nn.functional.cross_entropy(score, own) + torch.nn.functional.cross_entropy(score.T, own)) / 2
    term = objective(temperature=0.5, learns_temperature=False)(views)
    torch.testing.assert_close(term.mean, clip, rtol=0, atol=ATOL)
    assert term.count == 7
    metrics = {name: float(total / count) for name, (total, count) in term.metrics.items()}
    assert metrics["chance"] == pytest.approx(math.log(7))
    assert metrics["temperature"] == pytest.approx(0.5)
    assert metrics["accuracy"] == pytest.approx(float((score.argmax(dim=1) == own).double().mean()))


def test_of_a_validation_window_the_last_item_alone_counts(tiny_batch: Callable[..., Any]) -> None:
    head = objective(learns_temperature=False)
    views = tiny_batch([[0, 1, 2], [3, 2], [4, 5]], no_image=[5]).views
    last = dataclasses.replace(views, windows=dataclasses.replace(views.windows, last_alone_counts=True))
    alone = tiny_batch([[2], [2], [5]], no_image=[5]).views
    expected, term = head(dataclasses.replace(alone, items=views.items)), head(last)
    assert term.count == expected.count == 2
    torch.testing.assert_close(term.sum, expected.sum, rtol=0, atol=ATOL)


def test_the_temperature_does_not_fall_below_that_of_clip(tiny_batch: Callable[..., Any]) -> None:
    head, views = objective(), tiny_batch().views
    with torch.no_grad():
        head.log_scale.fill_(9.0)
    total, count = head(views).metrics["temperature"]
    assert float(total / count) == pytest.approx(LEAST_TEMPERATURE)


def test_no_item_with_both_gives_zero_with_a_gradient_of_zero(tiny_batch: Callable[..., Any]) -> None:
    head, batch = objective(), tiny_batch(num_items=6, no_text=[0, 1, 2], no_image=[3, 4, 5])
    term = head(batch.views)
    assert (term.sum.item(), term.count.item()) == (0, 0)
    gradients = torch.autograd.grad(term.sum, [*batch.views.items.cls_UD.values(), head.log_scale])
    assert not any(gradient.any() for gradient in gradients)
    assert all(figure.isfinite().all() for figure in term.metrics.values())


def test_views_without_vectors_of_a_field_are_refused(tiny_batch: Callable[..., Any]) -> None:
    views = tiny_batch().views
    items = dataclasses.replace(views.items, cls_UD={Modality.TEXT: views.items.cls_UD[Modality.TEXT]})
    with pytest.raises(ValueError, match="items have no image vectors"):
        objective()(dataclasses.replace(views, items=items))


@pytest.mark.parametrize(("no_text", "no_image", "count"), [([1, 2], [1, 2], 0), ([1], [1, 2], 2), ([], [0], 0)])
def test_an_item_without_another_to_compare_with_does_not_count(
    tiny_batch: Callable[..., Any], no_text: list[int], no_image: list[int], count: int
) -> None:
    head, views = objective(), tiny_batch([[0], [0]], num_items=3, no_text=no_text, no_image=no_image).views
    term, (total, counted) = head(views), item_contrast_by_loops(head, views)
    assert term.count == counted == count
    torch.testing.assert_close(term.sum, total, rtol=0, atol=ATOL)
