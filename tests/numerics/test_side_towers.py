"""Side towers against loops over items, layers and numbers, in float64."""
# Shapes: U distinct items, T stored vectors of an item, F length of each, D width.

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pmmrec.context import BuildContext
from pmmrec.contracts import ItemInputs, StoredInputs
from pmmrec.models.side_towers import SideTowers, SideTowersConfig
from pmmrec.packing import HostArray

WIDTH, LENGTH, NUM_VECTORS = 3, 4, 5
HAS = {"words": [True, False, True, False], "looks": [True, True, False, False]}


def encoder_of(**settings: Any) -> SideTowers:
    torch.manual_seed(0)
    tree = {"text": "words", "image": "looks", "vectors": NUM_VECTORS, "length": LENGTH, "bottleneck": 2, **settings}
    encoder = SideTowers(SideTowersConfig.model_validate(tree), BuildContext(WIDTH)).double().eval()
    for parameter in encoder.parameters():  # gates and biases start at 0, adapters near it
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder


def items_of(encoder: SideTowers) -> ItemInputs:
    """Four items: with both, with one of them, with neither."""
    draw, rows, fields, has_U = torch.Generator().manual_seed(2), torch.arange(4), {}, {}
    for name in encoder.reads:
        has_U[name] = torch.tensor(HAS[name])
        index_R = rows[has_U[name]].tolist()
        states = torch.randn(len(index_R), NUM_VECTORS, LENGTH, generator=draw, dtype=torch.float64)
        fields[name] = StoredInputs(states, HostArray(index_R))
    return ItemInputs(torch.zeros_like(rows), rows, has_U, fields)


def linear(layer: Any, x: list[Tensor]) -> list[Tensor]:
    num_out, num_in = layer.weight.shape
    return [layer.bias[o] + sum(layer.weight[o, i] * x[i] for i in range(num_in)) for o in range(num_out)]


def by_loops(encoder: SideTowers, items: ItemInputs, settings: dict[str, Any]) -> Tensor:
    zero, beside = torch.zeros((), dtype=torch.float64), encoder.side_towers

    def act(x: Tensor) -> Tensor:
        is_gelu = settings.get("activation") == "gelu"
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2 if is_gelu else x * (x > 0)

    def adapted(adapter: Any, x: list[Tensor]) -> list[Tensor]:
        up = linear(adapter.up, [act(number) for number in linear(adapter.down, x)])
        return [x[f] + up[f] for f in range(LENGTH)]

    layers, vectors = settings.get("layers", [0, 2, 4]), []
    for item in range(4):
        states = {}
        for kind, name in beside.names.items():
            rows = items.fields[name]
            index = rows.item_index_R.values.tolist()
            absent = torch.zeros(NUM_VECTORS, LENGTH, dtype=torch.float64)
            states[kind] = rows.vector_RF[index.index(item)] if item in index else absent
        given: list[Tensor] = []
        for kind, name in beside.names.items():
            tower, side = beside.towers[kind], [zero] * LENGTH
            for place, layer in enumerate(layers):
                gate = 1 / (1 + torch.exp(-tower.gate[place] / 0.1))
                mixed = [gate * states[kind][layer, f] + (1 - gate) * side[f] for f in range(LENGTH)]
                side = adapted(tower.adapters[place], mixed)
            given += linear(tower.out, side) if HAS[name][item] else [zero] * WIDTH
        if len(states) > 1:
            tower, side = beside.towers["both"], [zero] * LENGTH
            for place, layer in enumerate(layers):
                gate = 1 / (1 + torch.exp(-tower.gate[place] / 0.1))
                image, text = states["image"][layer], states["text"][layer]
                side = adapted(
                    tower.adapters[place], [side[f] + gate * image[f] + (1 - gate) * text[f] for f in range(LENGTH)]
                )
            given += linear(tower.out, side)
        is_readable = any(HAS[name][item] for name in beside.names.values())
        vectors.append(torch.stack(linear(beside.out, given) if is_readable else [zero] * WIDTH))
    return torch.stack(vectors)


@pytest.mark.parametrize(
    "settings", [{}, {"activation": "gelu", "layers": [1, 3]}, {"image": None}, {"text": None, "layers": [4]}], ids=str
)
def test_values_and_gradients_are_those_of_loops(settings: dict[str, Any]) -> None:
    encoder = encoder_of(**settings)
    items, parameters = items_of(encoder), list(encoder.parameters())
    found, expected = encoder(items).fused_UD, by_loops(encoder, items, settings)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)  # measured 1e-16
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ours, theirs = (
        torch.autograd.grad((one * weights).sum(), parameters, allow_unused=True, materialize_grads=True)
        for one in (found, expected)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)  # measured 1e-15


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give `text`, `image` or both"),
        ({"text": "one", "image": "one"}, "both are one"),
        ({"text": "text"}, "text: is no stored feature"),
        ({"text": "one", "layers": [2, 1]}, "must rise"),
        ({"text": "one", "vectors": 3, "layers": [0, 3]}, "must lie in 0 to 2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SideTowersConfig.model_validate(settings)
