"""NextItNet equals its convolutions one place after another, and is unmoved by padding."""
# Shapes: B users, L inputs, D width.

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from pmmrec.adapters.plan import AdapterPlan, adapt
from pmmrec.context import BuildContext
from pmmrec.contracts import History
from pmmrec.errors import RecipeError
from pmmrec.packing import Packing
from pmmrec.users.nextitnet import CausalConvolution, NextItNet, NextItNetConfig, Taps

WIDTH = 4
LENGTHS = [9, 3, 1]


def fresh(**settings: object) -> NextItNet:
    torch.manual_seed(0)
    config = NextItNetConfig(**{"max_inputs": 12, "repeats": 1, **settings})
    return NextItNet(config, BuildContext(WIDTH)).double().eval()


def histories() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    leaf_BLD = torch.randn(len(LENGTHS), LENGTHS[0], WIDTH, dtype=torch.float64, generator=draw).requires_grad_()
    return leaf_BLD, torch.tensor([[place >= LENGTHS[0] - length for place in range(LENGTHS[0])] for length in LENGTHS])


def convolved_by_loops(convolution: CausalConvolution, rows: list[Tensor]) -> list[Tensor]:
    """One place, one tap and one output after another."""
    taps, found = len(convolution.shifts), []
    weight_DTD, dilation = convolution.weights.weight.view(WIDTH, taps, WIDTH), convolution.shifts[-2]
    for place in range(len(rows)):
        outputs = []
        for output in range(WIDTH):
            total = convolution.weights.bias[output]
            for tap in range(taps):
                source = place - (taps - 1 - tap) * dilation
                if source >= 0:
                    total = total + torch.dot(weight_DTD[output, tap], rows[source])
            outputs.append(total)
        found.append(torch.stack(outputs))
    adapter = getattr(convolution.weights, "adapter", None)
    if adapter is None:
        return found
    reads = rows if adapter.is_parallel else found
    return [out + adapter.up(F.gelu(adapter.down(row))) for out, row in zip(found, reads, strict=True)]


def states_by_loops(encoder: NextItNet, history_LD: Tensor) -> Tensor:
    """One block after another over one history without padding; with a [CLS] over each part of it and the [CLS]."""
    if encoder.cls is None:
        return hidden_by_loops(encoder, list(history_LD))
    parts = [[*history_LD[: place + 1], encoder.cls.weight[0]] for place in range(len(history_LD))]
    return torch.stack([hidden_by_loops(encoder, part)[-1] for part in parts])


def hidden_by_loops(encoder: NextItNet, rows: list[Tensor]) -> Tensor:
    for block in encoder.blocks:
        inner = [block.first_norm(row).relu() for row in convolved_by_loops(block.first, rows)]
        added = [block.second_norm(row).relu() for row in convolved_by_loops(block.second, inner)]
        rows = [row + more for row, more in zip(rows, added, strict=True)]
    return torch.stack([encoder.output(row) for row in rows])


@pytest.mark.parametrize(
    "settings", [{}, {"dilations": (1, 2, 3), "kernel_size": 2}, {"repeats": 2, "output_layer": True}, {"cls": True}]
)
def test_values_and_gradients_are_those_of_loops(settings: dict[str, object]) -> None:
    encoder = fresh(**settings)
    leaf_BLD, is_valid_BL = histories()
    hidden_BLD = encoder(History(leaf_BLD, is_valid_BL)).hidden_BLD
    actual = [hidden_BLD[user, -length:] for user, length in enumerate(LENGTHS)]
    expected = [states_by_loops(encoder, leaf_BLD[user, -length:]) for user, length in enumerate(LENGTHS)]
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)  # float64; measured 1e-15
    weights = torch.randn(WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    sources = [leaf_BLD, *encoder.parameters()]
    ours_by_source, theirs_by_source = (
        torch.autograd.grad(sum((states @ weights).sum() for states in found), sources, retain_graph=True)
        for found in (actual, expected)
    )
    for one, other in zip(ours_by_source, theirs_by_source, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)  # float64; measured 7e-15


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("cls", [False, True])
def test_adapters_of_peterrec_stand_behind_or_beside_both_convolutions(parallel: bool, cls: bool) -> None:
    encoder, (leaf_BLD, is_valid_BL) = fresh(cls=cls), histories()
    plan = {"user_encoder": {"type": "houlsby", "width": 2, "activation": "gelu", "parallel": parallel}}
    adapt({"user_encoder": encoder}, AdapterPlan.model_validate(plan))
    for block in encoder.blocks:
        for convolution in (block.first, block.second):
            convolution.weights.adapter.is_parallel = parallel
            torch.nn.init.normal_(convolution.weights.adapter.up.weight)  # it starts at 0, and changes nothing
    hidden_BLD = encoder.eval()(History(leaf_BLD, is_valid_BL)).hidden_BLD
    for user, length in enumerate(LENGTHS):
        expected = states_by_loops(encoder, leaf_BLD[user, -length:])
        torch.testing.assert_close(hidden_BLD[user, -length:], expected, rtol=0, atol=1e-12)  # measured 2e-15


def test_a_convolution_is_that_of_torch_with_zeros_on_the_left() -> None:
    encoder, reference = fresh(dilations=(2,)), nn.Conv1d(WIDTH, WIDTH, 3, dilation=2).double()
    convolution = encoder.blocks[0].first
    with torch.no_grad():
        convolution.weights.weight.view(WIDTH, 3, WIDTH).copy_(reference.weight.transpose(1, 2))
        convolution.weights.bias.copy_(reference.bias)
    item_LD = torch.randn(7, WIDTH, dtype=torch.float64)
    expected = reference(F.pad(item_LD.T[None], (4, 0)))[0].T
    tap_LTD = Taps(Packing([7]), item_LD.device).of(item_LD, convolution.shifts, None, None)
    torch.testing.assert_close(convolution(item_LD, tap_LTD), expected, rtol=0, atol=1e-12)  # measured 4e-16


def test_more_padding_changes_nothing_whatever_it_holds() -> None:
    encoder = fresh(repeats=2)
    leaf_BLD, is_valid_BL = histories()
    hidden_BLD = encoder(History(leaf_BLD, is_valid_BL)).hidden_BLD
    wider_BLD = F.pad(torch.where(is_valid_BL[:, :, None], leaf_BLD, 7.0), (0, 0, 3, 0), value=9.0)
    wider = encoder(History(wider_BLD, F.pad(is_valid_BL, (3, 0)))).hidden_BLD[:, 3:]
    torch.testing.assert_close(wider[is_valid_BL], hidden_BLD[is_valid_BL], rtol=0, atol=1e-12)  # measured 0


def test_a_state_sees_as_many_items_as_the_docstring_says() -> None:
    encoder = fresh(repeats=2, max_inputs=70)
    item_BLD = torch.randn(1, 70, WIDTH, dtype=torch.float64).requires_grad_()
    last_D = encoder(History(item_BLD, torch.ones(1, 70, dtype=torch.bool))).hidden_BLD[0, -1]
    (gradient,) = torch.autograd.grad((last_D * torch.randn(WIDTH, dtype=torch.float64)).sum(), item_BLD)
    assert gradient[0].any(dim=1).nonzero().min() == 70 - 61


@pytest.mark.parametrize("settings", [{"dilations": (2**62,)}, {"kernel_size": 2**62}])
def test_distances_beyond_those_of_any_history_are_refused_in_the_recipe(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="less than or equal to"):
        NextItNetConfig(**settings)


def test_longer_histories_than_it_can_read_are_an_error_that_names_both() -> None:
    with pytest.raises(RecipeError, match="max_inputs: 12, but histories of 13 inputs came"):
        fresh()(History(torch.zeros(1, 13, WIDTH, dtype=torch.float64), torch.ones(1, 13, dtype=torch.bool)))


def test_weights_start_as_those_of_torch_convolutions() -> None:
    convolution, reference = CausalConvolution(64, 3, 1), nn.Conv1d(64, 64, 3)
    for ours, theirs in ((convolution.weights.weight, reference.weight), (convolution.weights.bias, reference.bias)):
        assert ours.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.05)
