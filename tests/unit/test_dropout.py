"""Dropout: its probability, its mean, its gradient and what decides its mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pmmrec.dropout import Dropout, dropout


def _of_ones(p: float, seed: int, count: int = 1_000_000) -> Tensor:
    torch.manual_seed(seed)
    return dropout(torch.ones(count, dtype=torch.float64), p)


@pytest.mark.parametrize("p", [0.02, 0.1, 0.5, 0.9])
def test_elements_are_dropped_with_the_stated_probability(p: float) -> None:
    count = 1_000_000
    shares = torch.stack([(_of_ones(p, seed, count) == 0).double().mean() for seed in range(4)])
    deviation = (p * (1 - p) / count) ** 0.5  # of a share; rounding p to 1/65536 adds less than 1e-5
    assert (shares - p).abs().max() < 4 * deviation + 1e-5  # measured at most 1.6 deviations


def test_the_mean_stays_exact_although_p_is_rounded() -> None:
    dropped = round(0.1 * 65536)
    assert _of_ones(0.1, seed=0).unique().tolist() == [0, 65536 / (65536 - dropped)]


def test_neighbours_are_dropped_independently() -> None:
    """Four elements share one 64-bit draw: pairs at each of the small distances are dropped with p squared."""
    p, is_dropped = 0.3, _of_ones(0.3, seed=1) == 0
    deviation = (p**2 * (1 - p**2) / len(is_dropped)) ** 0.5
    for distance in (1, 2, 3, 4, 5, 128):
        share = (is_dropped[distance:] & is_dropped[:-distance]).double().mean()
        assert abs(float(share) - p**2) < 5 * deviation  # measured at most 1.1 deviations


def test_the_generator_decides_the_mask_alone() -> None:
    x, threads = torch.randn(301, 7), torch.get_num_threads()
    try:
        masks = []
        for num_threads in (1, 2, 1):
            torch.set_num_threads(num_threads)
            torch.manual_seed(3)
            masks.append(dropout(x, 0.4))
        assert torch.equal(masks[0], masks[1])
        assert torch.equal(masks[0], masks[2])
        assert not torch.equal(masks[0], dropout(x, 0.4))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("adds", [False, True])
def test_gradients_are_those_of_the_mask_that_was_drawn(adds: bool) -> None:
    x, residual = (torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    module = Dropout(0.4)

    def drawn_alike(x: Tensor, residual: Tensor) -> Tensor:
        torch.manual_seed(0)
        return module.add(residual, x) if adds else module(x) + residual

    assert torch.autograd.gradcheck(drawn_alike, (x, residual))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_adding_in_one_pass_equals_adding_afterwards(dtype: torch.dtype) -> None:
    branch, residual = torch.randn(33, 5).to(dtype), torch.randn(33, 5).to(dtype)
    module, outs = Dropout(0.3), []
    for add in (module.add, lambda residual, branch: residual + module(branch)):
        torch.manual_seed(0)
        outs.append(add(residual, branch))
    widest = {torch.float64: 1e-15, torch.float32: 5e-7, torch.bfloat16: 4e-2}[dtype]  # one rounding in place of two
    torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=widest)
    assert outs[0].dtype == dtype


def test_nothing_is_dropped_in_evaluation_or_with_p_0() -> None:
    x, residual = torch.randn(4, 4), torch.randn(4, 4)
    for module in (Dropout(0.5).eval(), Dropout(0.0)):
        state = torch.get_rng_state()
        assert torch.equal(module(x), x)
        assert torch.equal(module.add(residual, x), residual + x)
        assert torch.equal(torch.get_rng_state(), state)


def test_it_is_torchs_module_and_torchs_function_on_other_devices() -> None:
    assert isinstance(Dropout(0.1), nn.Dropout)
    x = torch.ones(3, 5, device="meta")
    assert dropout(x, 0.5).shape == x.shape
    assert Dropout(0.5).add(x, x).device.type == "meta"


@pytest.mark.parametrize("shape", [(0,), (1,), (2, 3), (4, 5, 7)])
def test_any_shape_is_served(shape: tuple[int, ...]) -> None:
    x = torch.ones(shape).transpose(0, -1)
    assert dropout(x, 0.5).shape == x.shape
