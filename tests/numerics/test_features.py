"""The encoder of stored features against nested loops over items, features and numbers, in float64."""
# Shapes: U distinct items, T vectors of an item, F length of a stored vector, D width.

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from pmmrec.context import BuildContext, Catalogue
from pmmrec.contracts import ItemInputs, StoredInputs, ValueInputs
from pmmrec.errors import RecipeError
from pmmrec.models import item_encoders
from pmmrec.models.features import Features, FeaturesConfig
from pmmrec.packing import HostArray

WIDTH = 4
LENGTHS = {"clip": 3, "audio": 2}
NUM_VECTORS = 4
BRANDS = {"brand": [7, 5, None, 9]}  # numbers that stand for values; the item without a brand has a clip
HAS = {"clip": [True, False, True, False], "audio": [True, True, False, False]}


def items_of(names: Sequence[str], several: str | None = None) -> ItemInputs:
    """Four items: with both features, with one of them, with neither. `several` holds several vectors of each item."""
    draw = torch.Generator().manual_seed(2)
    rows = torch.arange(4)
    fields, has_U = {}, {name: torch.tensor(HAS[name]) for name in names}
    for name in names:
        index_R = rows[has_U[name]]
        shape = (NUM_VECTORS, LENGTHS[name]) if name == several else (LENGTHS[name],)
        vectors = torch.randn(len(index_R), *shape, generator=draw, dtype=torch.float64)
        fields[name] = StoredInputs(vectors, HostArray(index_R.tolist()))
    return ItemInputs(torch.zeros_like(rows), rows, has_U, fields)


def pooled_by_loops(vector_TF: Tensor, pool: str, query: Tensor | None) -> Tensor:
    """The mean of T vectors, their mean weighted by exp(q . x / sqrt(F)), or vector 2."""
    if pool == "one":
        return vector_TF[2]
    weights = [torch.ones((), dtype=torch.float64) for _ in range(len(vector_TF))]
    if query is not None:
        length = len(query)
        weights = [torch.exp(sum(query[f] * x[f] for f in range(length)) / math.sqrt(length)) for x in vector_TF]
    total = sum(weights)
    return torch.stack(
        [sum(w * x[f] for w, x in zip(weights, vector_TF, strict=True)) / total for f in range(vector_TF.shape[1])]
    )


def weighed_by_loops(state: Mapping[str, Tensor], read: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The softmax over fields of w . relu(W x + b)."""
    weight, bias, out = (state[f"join.weigh.{name}"] for name in ("0.weight", "0.bias", "2.weight"))
    exponentials = []
    for row in read:
        inner = [bias[d] + sum(weight[d, k] * row[k] for k in range(WIDTH)) for d in range(WIDTH)]
        exponentials.append(torch.exp(sum(out[0, d] * inner[d] * (inner[d] > 0) for d in range(WIDTH))))
    return [one / sum(exponentials) for one in exponentials]


def by_loops(encoder: Features, items: ItemInputs, activation: str) -> Tensor:
    """GELU(sum, or weighted mean, of W_f x_f + b_f and of v_a), then GELU(W h + b) for each layer.

    An item without any field is zeros.
    v_a is the vector of the value of attribute a, of which there is one for all values that the encoder does not know.
    """

    def act(x: Tensor) -> Tensor:
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2 if activation == "gelu" else x * (x > 0)

    state = dict(encoder.feature_encoder.named_parameters())
    layers = sorted({int(key.split(".")[1]) for key in state if key.startswith("head.")})
    vectors = []
    for item in range(items.num_items):
        read = []  # the vectors of its fields, as lists of numbers
        for place, name in enumerate(name for name in sorted(items.fields) if name not in BRANDS):
            index_R = items.fields[name].item_index_R.values.tolist()
            if item not in index_R:
                continue
            vector = items.fields[name].vector_RF[index_R.index(item)]
            if vector.dim() == 2:
                vector = pooled_by_loops(
                    vector, encoder.feature_encoder.pools[place].pool, state.get(f"pools.{place}.query")
                )
            weight, bias = state[f"projections.{place}.weight"], state[f"projections.{place}.bias"]
            read.append([bias[d] + sum(weight[d, f] * vector[f] for f in range(len(vector))) for d in range(WIDTH)])
        for name in BRANDS:
            if name not in items.fields or item not in items.fields[name].item_index_R.values.tolist():
                continue
            key = int(items.fields[name].key_R[items.fields[name].item_index_R.values.tolist().index(item)])
            known = encoder.feature_encoder.tables[0].value_key_V.tolist()
            vector_D = state["tables.0.vector.weight"][known.index(key) + 1 if key in known else 0]
            read.append(list(vector_D))
        if not read:
            vectors.append(torch.zeros(WIDTH, dtype=torch.float64))
            continue
        shares = weighed_by_loops(state, read) if "join.weigh.0.weight" in state else [1.0] * len(read)
        hidden = [act(sum(share * row[d] for share, row in zip(shares, read, strict=True))) for d in range(WIDTH)]
        for layer in layers:
            weight, bias = state[f"head.{layer}.weight"], state[f"head.{layer}.bias"]
            hidden = [act(bias[d] + sum(weight[d, k] * hidden[k] for k in range(WIDTH))) for d in range(WIDTH)]
        vectors.append(torch.stack(hidden))
    return torch.stack(vectors)


@pytest.mark.parametrize("names", [("clip",), ("clip", "audio")])
@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_values_and_gradients_are_those_of_loops(names: tuple[str, ...], layers: int, activation: str) -> None:
    torch.manual_seed(1)
    head = {"layers": layers, "activation": activation}
    config = FeaturesConfig.model_validate({"features": {name: LENGTHS[name] for name in names}, "head": head})
    encoder = Features(config, BuildContext(WIDTH)).double().eval()
    check(encoder, items_of(names), activation)


@pytest.mark.parametrize("pool", ["mean", "attention", "one"])
def test_several_vectors_are_pooled_as_loops_pool_them(pool: str) -> None:
    torch.manual_seed(1)
    layers = {"vectors": NUM_VECTORS, "length": 3, "pool": pool, **({"index": 2} if pool == "one" else {})}
    config = FeaturesConfig.model_validate({"features": {"clip": layers, "audio": 2}})
    encoder = Features(config, BuildContext(WIDTH)).double().eval()
    for name, parameter in encoder.named_parameters():
        if name.endswith("query"):
            torch.nn.init.normal_(parameter)  # it starts at 0, where all vectors weigh the same
    check(encoder, items_of(("clip", "audio"), several="clip"), "gelu")


@pytest.mark.parametrize(("names", "join"), [((), "add"), (("clip", "audio"), "add"), (("clip", "audio"), "attention")])
def test_values_of_attributes_are_joined_as_by_loops(names: tuple[str, ...], join: str) -> None:
    torch.manual_seed(1)
    features = {name: LENGTHS[name] for name in names}
    config = FeaturesConfig(features=features, attributes={"brand": 2}, join=join)
    books = Catalogue("books", 4, "aa", value_counts=lambda _: {7: 1, 5: 3, 9: 1})
    encoder = Features(config, BuildContext(WIDTH, catalogues=[books])).double().eval()
    torch.nn.init.normal_(encoder.feature_encoder.tables[0].vector.weight)  # the first starts at 0
    keys = BRANDS["brand"]
    index_R = HostArray([item for item, key in enumerate(keys) if key is not None])
    brand = ValueInputs(torch.tensor([key for key in keys if key is not None]), index_R)
    items = items_of(names)
    has_U = {**items.has_U, "brand": torch.tensor([key is not None for key in keys])}
    check(encoder, dataclasses.replace(items, fields={**items.fields, "brand": brand}, has_U=has_U), "gelu")


def test_attention_over_fields_is_that_of_loops_whatever_an_item_lacks() -> None:
    torch.manual_seed(1)
    encoder = Features(FeaturesConfig(features=LENGTHS, join="attention"), BuildContext(WIDTH)).double().eval()
    check(encoder, items_of(("clip", "audio")), "gelu")


def test_attention_over_one_field_is_refused() -> None:
    with pytest.raises(RecipeError, match="join: attention weighs several fields, and there is one"):
        item_encoders.config({"type": "features", "features": {"clip": 3}, "join": "attention"})


def check(encoder: Features, items: ItemInputs, activation: str) -> None:
    """Values and gradients equal those of loops."""
    parameters = list(encoder.parameters())
    found, expected = encoder(items).fused_UD, by_loops(encoder, items, activation)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)  # measured 6e-17
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ours = torch.autograd.grad((found * weights).sum(), parameters)
    theirs = torch.autograd.grad((expected * weights).sum(), parameters)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)  # measured 2e-16


def test_an_item_without_any_feature_is_the_zero_vector_and_a_row_that_stands_in_trains_nothing() -> None:
    encoder = Features(FeaturesConfig(features={"clip": 3}), BuildContext(WIDTH)).double()
    rows = torch.arange(2)
    alone = {"clip": StoredInputs(torch.zeros(1, 3, dtype=torch.float16), HostArray([2]))}
    vectors = encoder(ItemInputs(rows, rows, {"clip": torch.zeros(2, dtype=torch.bool)}, alone))
    assert not vectors.fused_UD.any()
    assert not vectors.is_readable_U.any()
    vectors.fused_UD.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in encoder.parameters())
