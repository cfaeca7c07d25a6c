"""NID and RCL equal eq. 10 and 11 by loops, in values and gradients."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from views import PLAIN, hidden_of, noised, noised_of, rows_of, states_of_rows, with_states

from pmmrec.context import BuildContext
from pmmrec.objectives.denoising import NoiseDetection, NoiseDetectionConfig, Robustness, RobustnessConfig
from pmmrec.requests import Noise
from pmmrec.testing.twins.denoising import noise_detection_by_loops, robustness_by_loops

ATOL = 1e-12  # float64; measured at most 8e-15 over 100 seeds

ROWS = {
    "windows_of_two": [[0, 1], [2, 3], [1, 4]],
    "padding": [[5], [0, 1], [2, 3, 4, 0]],
    "an_empty_window": [[], [0, 1, 2], [3, 4, 5]],
    "one_user": [[0, 1, 2]],
    "one_user_with_an_input": [[0], [1, 2, 3]],
    "nobody": [[], []],
}


def detector(relu: bool = True) -> NoiseDetection:
    torch.manual_seed(0)
    return NoiseDetection(NoiseDetectionConfig(relu=relu), BuildContext(5)).double()


@pytest.mark.parametrize("relu", [True, False])
def test_noise_detection_equals_its_loops(
    tiny_batch: Callable[..., Any], assert_twins: Callable[..., None], relu: bool
) -> None:
    objective = detector(relu)
    for batch in [tiny_batch(seed=seed) for seed in range(8)] + [tiny_batch(rows) for rows in ROWS.values() if rows[0]]:
        expected = noise_detection_by_loops(objective, batch.views)
        assert_twins(objective(batch.views), expected, batch, ATOL, head=objective.head)


RCL_SETTINGS = [
    {"temperature": temperature, "normalize": normalize, "symmetric": symmetric}
    for temperature, normalize in ((1.0, False), (0.1, True))
    for symmetric in (False, True)
]


@pytest.mark.parametrize("choice", RCL_SETTINGS, ids=str)
def test_robustness_equals_its_loops(
    tiny_batch: Callable[..., Any], assert_twins: Callable[..., None], choice: dict[str, Any]
) -> None:
    objective = Robustness(RobustnessConfig(**choice), BuildContext(5))
    batches = [tiny_batch(seed=seed) for seed in range(8)] + [
        tiny_batch(rows, num_positions=4) for rows in ROWS.values()
    ]
    for batch in batches:
        assert_twins(objective(batch.views), robustness_by_loops(objective, batch.views), batch, ATOL)


@pytest.mark.parametrize("rows", [[[0, 1, 2]], [[0], [1, 2, 3]], [[], []]])
def test_robustness_of_a_user_alone_is_zero_with_a_gradient_of_zero(
    tiny_batch: Callable[..., Any], rows: list[list[int]]
) -> None:
    views = tiny_batch(rows, num_positions=4).views
    term = Robustness(RobustnessConfig(symmetric=True), BuildContext(5))(views)
    term.mean.backward()
    assert (term.sum.item(), term.count.item()) == (0, 0)
    assert not hidden_of(views).grad.any()
    assert not noised_of(views).grad.any()


def test_noise_detection_without_an_input_is_zero_with_a_gradient_of_zero(tiny_batch: Callable[..., Any]) -> None:
    objective, views = detector(), tiny_batch([[0], [1]], num_positions=3).views
    term = objective(views)
    term.mean.backward()
    assert (term.sum.item(), term.count.item()) == (0, 0)
    assert not objective.head.weight.grad.any()
    assert not noised_of(views).grad.any()


def test_states_of_padding_never_matter_even_when_they_are_not_numbers(tiny_batch: Callable[..., Any]) -> None:
    views = tiny_batch(ROWS["padding"]).views
    is_padding_BL1 = ~views.windows.is_valid_BS[:, :-1][:, :, None]
    spoilt = with_states(
        views,
        hidden_of(views).masked_fill(is_padding_BL1, torch.nan),
        noised_of(views).masked_fill(is_padding_BL1, torch.nan),
    )
    for objective in (detector(), Robustness(RobustnessConfig(), BuildContext(5))):
        torch.testing.assert_close(objective(spoilt).sum, objective(views).sum, rtol=0, atol=0)


def test_order_of_users_changes_nothing(tiny_batch: Callable[..., Any]) -> None:
    views = tiny_batch(ROWS["padding"]).views
    order = torch.tensor([2, 0, 1])
    moved = dataclasses.replace(views, windows=rows_of(views.windows, order), states=states_of_rows(views, order))
    for objective in (detector(), Robustness(RobustnessConfig(symmetric=True), BuildContext(5))):
        torch.testing.assert_close(objective(moved).sum, objective(views).sum, rtol=0, atol=1e-13)


def test_chance_is_the_loss_of_a_model_whose_states_are_all_alike(tiny_batch: Callable[..., Any]) -> None:
    views = tiny_batch(ROWS["an_empty_window"]).views
    zeros_BLD = torch.zeros_like(hidden_of(views))
    views = with_states(views, zeros_BLD, zeros_BLD)
    objective = detector()
    torch.nn.init.zeros_(objective.head.bias)
    for part, chance in ((objective, math.log(3)), (Robustness(RobustnessConfig(), BuildContext(5)), math.log(2))):
        term = part(views)
        torch.testing.assert_close(term.metrics["chance"], torch.stack((term.sum, term.count)), rtol=0, atol=1e-13)
        assert term.mean.item() == pytest.approx(chance, abs=1e-13)


def test_noise_metrics_count_right_guesses_and_noised_inputs_found(tiny_batch: Callable[..., Any]) -> None:
    views = tiny_batch([[0, 1, 2, 3, 4]]).views
    noise = [Noise.UNCHANGED, Noise.SHUFFLED, Noise.REPLACED, Noise.SHUFFLED]
    guess = [Noise.UNCHANGED, Noise.REPLACED, Noise.REPLACED, Noise.UNCHANGED]
    noise_BL, guess_BL = (torch.tensor([[entry.value for entry in row]]) for row in (noise, guess))
    objective = detector()
    torch.nn.init.eye_(objective.head.weight)
    torch.nn.init.zeros_(objective.head.bias)
    windows = noised(views.windows, noise_BL, noise_BL)
    views = with_states(dataclasses.replace(views, windows=windows), noised_BLD=F.one_hot(guess_BL, 5).double())
    metrics = objective(views).metrics
    assert metrics["accuracy"].tolist() == [2, 4]
    assert metrics["noised_found"].tolist() == [2, 3]


def test_robustness_accuracy_counts_own_windows_strictly_nearest(tiny_batch: Callable[..., Any]) -> None:
    views = tiny_batch([[0, 1], [2, 3], [4, 5]]).views
    clean_BLD = torch.eye(5, dtype=torch.float64)[:3, None]
    corrupted_BLD = clean_BLD.clone()
    corrupted_BLD[1] = corrupted_BLD[2]  # user 1 meets nobody, user 2 meets two alike
    views = with_states(views, clean_BLD, corrupted_BLD)
    assert Robustness(RobustnessConfig(), BuildContext(5))(views).metrics["accuracy"].tolist() == [1, 3]


def test_loss_and_gradients_are_finite_at_width_768(tiny_batch: Callable[..., Any]) -> None:
    views = tiny_batch([[b, b + 1, b + 2] for b in range(16)], num_items=18, width=768, dtype=torch.float32).views
    hidden_BLD = F.layer_norm(hidden_of(views), (768,))
    flipped = with_states(views, hidden_BLD, -hidden_BLD)  # r.r' near -384
    term = Robustness(RobustnessConfig(), BuildContext(768))(flipped)
    (gradient,) = torch.autograd.grad(term.sum, hidden_of(views))
    assert term.sum.item() > 1000
    assert term.sum.isfinite()
    assert gradient.isfinite().all()


def test_half_precision_inputs_and_head_give_float32_terms_inside_autocast(tiny_batch: Callable[..., Any]) -> None:
    views = tiny_batch(ROWS["padding"], dtype=torch.bfloat16).views
    exact = with_states(views, hidden_of(views).double(), noised_of(views).double())
    for objective in (detector().bfloat16(), Robustness(RobustnessConfig(), BuildContext(5))):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            term = objective(views)
        assert term.sum.dtype == term.count.dtype == torch.float32
        # float32 against float64 of the same numbers; measured 1e-6, a product in bfloat16 is 1e-2 away
        torch.testing.assert_close(term.sum.double(), objective(exact).sum, rtol=0, atol=1e-5)


def test_views_without_a_noised_pass_are_refused(tiny_batch: Callable[..., Any]) -> None:
    views = tiny_batch().views
    views = dataclasses.replace(views, states={PLAIN: views.states[PLAIN]})
    for objective, name in (
        (detector(), "noise_detection"),
        (Robustness(RobustnessConfig(), BuildContext(5)), "robustness"),
    ):
        with pytest.raises(ValueError, match=f"{name}: the views hold no pass Noised"):
            objective(views)
