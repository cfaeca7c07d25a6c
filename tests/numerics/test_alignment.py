"""Alignment over distinct items equals eq. 6-9 over slots, in values and gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from views import views_of, with_items, with_windows

from pmmrec.context import BuildContext
from pmmrec.contracts import ItemVectors, Modality, Windows
from pmmrec.objectives.alignment import Alignment, AlignmentConfig
from pmmrec.testing.twins.alignment import alignment_by_loops

ATOL = 1e-12  # float64; measured at most 9e-15 over 100 seeds of every variant

VARIANTS: dict[str, dict[str, Any]] = {
    "nicl": {},
    "icl": {"next_item_positives": False},
    "ncl": {"intra_negatives": False},
    "vcl": {"next_item_positives": False, "intra_negatives": False},
    "nicl_bounded": {"positives_in_denominator": True, "temperature": 0.1},
    "ncl_bounded": {"intra_negatives": False, "positives_in_denominator": True, "temperature": 0.3},
}
CASES: dict[str, dict[str, Any]] = {
    "windows_of_two": {"rows": [[0, 1], [2, 3], [1, 4]]},
    "an_item_twice_in_a_window": {"rows": [[0, 1, 1], [2, 3, 2]]},
    "the_next_item_in_another_window": {"rows": [[0, 1, 2], [3, 2, 2]]},
    "padding": {"rows": [[5], [0, 1], [2, 3, 4, 0]]},
    "one_user": {"rows": [[0, 1, 2]]},
    "items_without_an_image": {"rows": [[0, 1, 2], [3, 4, 0], [5, 6]], "no_image": [1, 3]},
    "items_without_a_text": {"rows": [[0, 1, 2], [3, 4, 0], [5, 6]], "no_text": [2, 3, 4]},
    "negatives_without_an_image": {"rows": [[0, 1, 2], [3, 4]], "no_image": [3, 4]},
    "next_items_of_either_kind": {"rows": [[0, 1, 0, 2], [3, 4]], "no_text": [1], "no_image": [2]},
    "no_item_with_both": {"rows": [[0, 1, 2], [3, 4]], "no_text": [0, 1], "no_image": [2, 3, 4]},
}


@pytest.mark.parametrize("negatives", ["unseen", "other_users"])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_sum_over_items_equals_sum_over_slots(
    tiny_batch: Callable[..., Any], assert_twins: Callable[..., None], variant: dict[str, Any], negatives: Any
) -> None:
    objective = Alignment(AlignmentConfig(negatives=negatives, **variant), BuildContext(5))
    num_counted = 0
    for seed in range(8):
        batch = tiny_batch(seed=seed, no_text=[1], no_image=[4])
        expected = alignment_by_loops(objective, batch.views)
        assert_twins(objective(batch.views), expected, batch, ATOL)
        num_counted += expected[1]
    assert num_counted > 10


@pytest.mark.parametrize("negatives", ["unseen", "other_users"])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_odd_batches_equal_their_loops(
    tiny_batch: Callable[..., Any],
    assert_twins: Callable[..., None],
    case: dict[str, Any],
    variant: dict[str, Any],
    negatives: Any,
) -> None:
    objective = Alignment(AlignmentConfig(negatives=negatives, **variant), BuildContext(5))
    batch = tiny_batch(**case)
    assert_twins(objective(batch.views), alignment_by_loops(objective, batch.views), batch, ATOL)


@pytest.mark.parametrize("case", ["one_user", "no_item_with_both"])
def test_nothing_to_count_gives_zero_with_a_gradient_of_zero(tiny_batch: Callable[..., Any], case: str) -> None:
    views = tiny_batch(**CASES[case]).views
    term = Alignment(AlignmentConfig(), BuildContext(5))(views)
    term.mean.backward()
    assert (term.sum.item(), term.count.item()) == (0, 0)
    assert all(cls_UD.grad is not None and not cls_UD.grad.any() for cls_UD in views.items.cls_UD.values())


def test_a_position_without_a_negative_image_counts_in_icl_but_not_in_vcl(tiny_batch: Callable[..., Any]) -> None:
    views = tiny_batch(**CASES["negatives_without_an_image"]).views
    counts = {
        name: Alignment(AlignmentConfig(**VARIANTS[name]), BuildContext(5))(views).count.item()
        for name in ("icl", "vcl")
    }
    assert counts == {"icl": 2, "vcl": 0}  # of user 0; user 1 has no item with both


def test_absent_vectors_get_no_gradient(tiny_batch: Callable[..., Any]) -> None:
    views = tiny_batch(**CASES["items_without_an_image"]).views
    Alignment(AlignmentConfig(), BuildContext(5))(views).sum.backward()
    gradient = views.items.cls_UD[Modality.IMAGE].grad
    assert not gradient[[1, 3]].any()
    assert gradient[[0, 2]].any(dim=1).all()


def test_equal_items_of_two_domains_are_two_items(tiny_batch: Callable[..., Any]) -> None:
    views = tiny_batch([[0, 2], [1, 3]]).views  # 0 and 1: the same row of two domains, with the same vectors
    cls_UD = {modality: vectors.detach()[[0, 0, 2, 3, 4, 5, 6]] for modality, vectors in views.items.cls_UD.items()}
    views = with_items(views, dataclasses.replace(views.items, cls_UD=cls_UD))
    text_UD, image_UD = (F.normalize(cls_UD[modality], dim=1) for modality in (Modality.TEXT, Modality.IMAGE))
    own = torch.exp(text_UD[0] @ image_UD[0])
    text = torch.log(1 + (own + torch.exp(text_UD[0] @ image_UD[3])) / own)  # item 1 is a negative of user 0
    image = torch.log(1 + (own + torch.exp(image_UD[0] @ text_UD[3])) / own)
    first = (text + image) / 2
    text = torch.log(1 + (own + torch.exp(text_UD[0] @ image_UD[2])) / own)
    image = torch.log(1 + (own + torch.exp(image_UD[0] @ text_UD[2])) / own)
    config = AlignmentConfig(**VARIANTS["vcl"])
    torch.testing.assert_close(
        Alignment(config, BuildContext(5))(views).sum, first + (text + image) / 2, rtol=0, atol=1e-13
    )


def test_order_of_users_changes_nothing(tiny_batch: Callable[..., Any]) -> None:
    views = tiny_batch(**CASES["padding"]).views
    order = torch.tensor([2, 0, 1])
    moved = Windows(views.windows.item_index_BS[order], views.windows.is_valid_BS[order])
    objective = Alignment(AlignmentConfig(), BuildContext(5))
    expected = objective(views).sum
    torch.testing.assert_close(objective(with_windows(views, moved)).sum, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_chance_is_the_loss_where_all_similarities_are_equal(
    tiny_batch: Callable[..., Any], variant: dict[str, Any]
) -> None:
    views = tiny_batch(**CASES["next_items_of_either_kind"]).views
    # each present vector is the same, so that every similarity is 1
    cls_UD = {m: views.items.has_U[m][:, None].double().expand(-1, 5) for m in Modality}
    views = with_items(views, ItemVectors(views.items.fused_UD, cls_UD, views.items.has_U))
    term = Alignment(AlignmentConfig(**variant), BuildContext(5))(views)
    assert term.count.item() == 3  # followed by an item without text, by one without image, by one with both
    torch.testing.assert_close(term.metrics["chance"], torch.stack((term.sum, term.count)), rtol=0, atol=1e-12)


def pull_to_own_image(num_negative_slots: int) -> float:
    """How strongly NICL draws a text to its own image, at vectors that make next items strong and negatives weak."""
    away, angle = torch.tensor([-1.0, 0.0], dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64)
    following, own_image = -away, torch.stack((angle.cos(), angle.sin()))  # only the own image leaves the first axis
    own_text = following.clone().requires_grad_()
    negatives = [away] * num_negative_slots
    cls_UD = {
        Modality.TEXT: torch.stack([own_text, following, *negatives]),
        Modality.IMAGE: torch.stack([own_image, following, *negatives]),
    }
    has_U = {modality: torch.ones(2 + num_negative_slots, dtype=torch.bool) for modality in Modality}
    rows = [[0, 1], *([0, 2 + j] for j in range(num_negative_slots))]
    is_valid = [[True, True], *([False, True] for _ in range(num_negative_slots))]  # negatives have no next item
    hidden_BLD = torch.zeros(len(rows), 1, 2, dtype=torch.float64)
    items = ItemVectors(cls_UD[Modality.TEXT], cls_UD, has_U)
    term = Alignment(AlignmentConfig(), BuildContext(2))(
        views_of(items, Windows(torch.tensor(rows), torch.tensor(is_valid)), hidden_BLD)
    )
    assert term.count.item() == 1
    (gradient,) = torch.autograd.grad(term.sum, own_text)
    return -gradient[1].item()


def test_more_than_exp_two_negative_slots_pull_a_text_to_its_own_image_and_fewer_can_push_it_away() -> None:
    assert pull_to_own_image(7) < 0 < pull_to_own_image(8)  # exp(2 / 1.0) = 7.4


@pytest.mark.parametrize("temperature", [1.0, 0.02])
def test_loss_and_gradients_are_finite_in_float32(tiny_batch: Callable[..., Any], temperature: float) -> None:
    rows = [list(range(start, start + 10)) for start in range(0, 200, 10)]
    views = tiny_batch(rows, num_items=200, width=768, dtype=torch.float32).views
    text_UD = views.items.cls_UD[Modality.TEXT]
    opposite = dataclasses.replace(views.items, cls_UD={Modality.TEXT: text_UD, Modality.IMAGE: -text_UD})
    config = AlignmentConfig(temperature=temperature, positives_in_denominator=True)
    for items in (views.items, opposite):  # opposite: own similarities of exactly -1
        term = Alignment(config, BuildContext(768))(with_items(views, items))
        (gradient,) = torch.autograd.grad(term.sum, text_UD)
        assert term.sum.isfinite()
        assert gradient.isfinite().all()


def test_half_precision_inputs_give_float32_terms_inside_autocast(tiny_batch: Callable[..., Any]) -> None:
    views = tiny_batch(**CASES["items_without_an_image"], dtype=torch.bfloat16).views
    objective = Alignment(AlignmentConfig(), BuildContext(5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        term = objective(views)
    cls_UD = {modality: vectors_UD.double() for modality, vectors_UD in views.items.cls_UD.items()}
    exact = objective(with_items(views, dataclasses.replace(views.items, cls_UD=cls_UD)))
    assert term.sum.dtype == term.count.dtype == torch.float32
    # float32 against float64 of the same numbers; measured 2e-7, a product in bfloat16 is 1e-2 away
    torch.testing.assert_close(term.sum.double(), exact.sum, rtol=0, atol=1e-5)


def test_views_without_images_are_refused(tiny_batch: Callable[..., Any]) -> None:
    views = tiny_batch().views
    only_text = dataclasses.replace(views.items, cls_UD={Modality.TEXT: views.items.cls_UD[Modality.TEXT]})
    with pytest.raises(ValueError, match="items have no image vectors"):
        Alignment(AlignmentConfig(), BuildContext(5))(with_items(views, only_text))
