"""LoRA and bottleneck adapters in a Transformer block against nested loops, values and gradients, in float64."""
# Shapes: R rows, I inputs of a linear map, O outputs, K rank, W width of a bottleneck.

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pmmrec.adapters import Host, Sites, adapters
from pmmrec.adapters.plan import AdapterPlan, adapt
from pmmrec.errors import RecipeError

ATOL = 1e-12  # float64; measured 3e-14
SITES = Sites("first", "first", ("first", "second"), ("third", "fourth"))


class Block(nn.Module):
    """Two sub-layers with residual sums: an "attention" of two maps and a feed-forward of two maps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 4)
        self.third, self.fourth = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x_RI: Tensor) -> Tensor:
        x_RI = x_RI + self.second(torch.tanh(self.first(x_RI)))
        out: Tensor = x_RI + self.fourth(torch.tanh(self.third(x_RI)))
        return out


class Stack(nn.Module):
    """A part with one block."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    @property
    def host(self) -> Host:
        return Host(self, "", "Stack", ("block",), SITES, ("Stack",))

    def forward(self, x_RI: Tensor) -> Tensor:
        out: Tensor = self.block(x_RI)
        return out


def linear_by_loops(weight_OI: Tensor, bias_O: Tensor | None, x_I: list[Tensor]) -> list[Tensor]:
    out = []
    for o in range(weight_OI.shape[0]):
        total = torch.zeros((), dtype=torch.float64) if bias_O is None else bias_O[o]
        for i in range(weight_OI.shape[1]):
            total = total + weight_OI[o, i] * x_I[i]
        out.append(total)
    return out


def gelu_by_hand(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def plus(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
    return [a + b for a, b in zip(left, right, strict=True)]


def stack_of(tree: dict[str, Any]) -> Stack:
    """A stack in float64 whose adapters are away from their start, so that every term counts."""
    torch.manual_seed(0)
    stack = Stack().double()
    adapt({"user_encoder": stack}, AdapterPlan.model_validate({"user_encoder": tree}))
    for parameter in stack.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, dtype=torch.float64)
    return stack


def assert_twin(stack: Stack, of_row: Callable[[list[Tensor]], list[Tensor]]) -> None:
    x_RI = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    expected_RI = torch.stack([torch.stack(of_row(list(row))) for row in x_RI])
    actual_RI = stack(x_RI)
    torch.testing.assert_close(actual_RI, expected_RI, rtol=0, atol=ATOL)
    weight_RI = torch.randn(3, 4, dtype=torch.float64)
    learned = {name: p for name, p in stack.named_parameters() if p.requires_grad} | {"x": x_RI}
    ours = torch.autograd.grad((actual_RI * weight_RI).sum(), list(learned.values()))
    theirs = torch.autograd.grad((expected_RI * weight_RI).sum(), list(learned.values()))
    for name, one, other in zip(learned, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=ATOL, msg=lambda text, n=name: f"{n}: {text}")


def test_lora_is_the_weight_plus_a_thin_product_by_loops() -> None:
    stack = stack_of({"type": "lora", "r": 2, "alpha": 6})
    block: Any = stack.block
    first = block.first

    def of_row(x_I: list[Tensor]) -> list[Tensor]:
        a_KI, b_OK = first.lora_A["default"].weight, first.lora_B["default"].weight
        thin = linear_by_loops(b_OK, None, linear_by_loops(a_KI, None, x_I))
        widened = linear_by_loops(first.base_layer.weight, first.base_layer.bias, x_I)
        inner = [torch.tanh(w + (6 / 2) * t) for w, t in zip(widened, thin, strict=True)]
        x_I = plus(x_I, linear_by_loops(block.second.weight, block.second.bias, inner))
        inner = [torch.tanh(h) for h in linear_by_loops(block.third.weight, block.third.bias, x_I)]
        return plus(x_I, linear_by_loops(block.fourth.weight, block.fourth.bias, inner))

    assert_twin(stack, of_row)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(("kind", "after"), [("houlsby", ("second", "fourth")), ("pfeiffer", ("fourth",))])
def test_bottlenecks_are_what_loops_say(kind: str, after: tuple[str, ...], parallel: bool) -> None:
    stack = stack_of({"type": kind, "width": 2, "parallel": parallel, "scale": 3})
    block: Any = stack.block

    def added(name: str, x_I: list[Tensor]) -> list[Tensor]:
        if name not in after:
            return [torch.zeros((), dtype=torch.float64)] * 4
        bottleneck = getattr(block, name).adapter
        narrow = linear_by_loops(bottleneck.down.weight, bottleneck.down.bias, x_I)
        wide = linear_by_loops(bottleneck.up.weight, bottleneck.up.bias, [gelu_by_hand(h) for h in narrow])
        return [3 * w for w in wide]

    def sub_layer(x_I: list[Tensor], enters: str, leaves: str) -> list[Tensor]:
        one, two = getattr(block, enters), getattr(block, leaves)
        inner = [torch.tanh(h) for h in linear_by_loops(one.weight, one.bias, x_I)]
        out = linear_by_loops(two.weight, two.bias, inner)
        return plus(out, added(leaves, x_I if parallel else out))

    def of_row(x_I: list[Tensor]) -> list[Tensor]:
        x_I = plus(x_I, sub_layer(x_I, "first", "second"))
        return plus(x_I, sub_layer(x_I, "third", "fourth"))

    assert_twin(stack, of_row)


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
def test_merged_weights_compute_the_same(kind: str) -> None:
    torch.manual_seed(0)
    stack = Stack().double()
    adapted = adapt({"user_encoder": stack}, AdapterPlan.model_validate({"user_encoder": {"type": kind}}))
    for parameter in stack.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, dtype=torch.float64)
    names, x_RI = set(Stack().state_dict()), torch.randn(3, 4, dtype=torch.float64)
    before_RI = stack(x_RI)
    adapted.parts["user_encoder"].merge()
    assert set(stack.state_dict()) == names
    torch.testing.assert_close(stack(x_RI), before_RI, rtol=0, atol=ATOL)
    torch.manual_seed(0)
    assert (stack(x_RI) - Stack().double()(x_RI)).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
def test_a_weight_that_another_map_shares_is_refused(kind: str) -> None:
    stack = Stack()
    block: Any = stack.block
    other = nn.Linear(4, 5)
    other.weight = block.first.weight
    block.add_module("other", other)
    with pytest.raises(RecipeError, match=r"block.first of Stack shares its weight with block.other.weight, which"):
        adapt({"user_encoder": stack}, AdapterPlan.model_validate({"user_encoder": {"type": kind}}))
    beside = {"type": kind, "targets": ["second", "third"]}
    adapt({"user_encoder": stack}, AdapterPlan.model_validate({"user_encoder": beside}))


def test_every_kind_that_is_mergeable_is_tried() -> None:
    assert {entry.name for entry in adapters if entry.part_class.is_mergeable} == {"lora", "dora", "ia3"}
