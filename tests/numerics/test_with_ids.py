"""Vectors of ids joined with those of content, against nested loops in float64."""
# Shapes: U distinct items, D width, C width of the content.

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pmmrec.context import BuildContext, Catalogue
from pmmrec.contracts import ItemInputs, StoredInputs
from pmmrec.errors import RecipeError
from pmmrec.models.with_ids import WithIds, WithIdsConfig
from pmmrec.packing import HostArray

WIDTH = 4
CONTENT: dict[str, Any] = {"type": "features", "features": {"clip": 3}, "head": {"activation": "none"}}
BOOKS, FILMS = Catalogue("books", 3, "aa"), Catalogue("films", 2, "bb")


def encoder_of(**settings: Any) -> WithIds:
    torch.manual_seed(1)
    config = WithIdsConfig.model_validate({"content": CONTENT, **settings})
    return WithIds(config, BuildContext(WIDTH, catalogues=[BOOKS, FILMS])).double().eval()


def items_of() -> ItemInputs:
    """Books 2 and 0 and film 1; book 0 has no clip."""
    domain_U, row_U = torch.tensor([0, 0, 1]), torch.tensor([2, 0, 1])
    clip_RF = torch.randn(2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    has_U = {"clip": torch.tensor([True, False, True]), "item_id": torch.ones(3, dtype=torch.bool)}
    return ItemInputs(domain_U, row_U, has_U, {"clip": StoredInputs(clip_RF, HostArray([0, 2]))})


def by_loops(encoder: WithIds, items: ItemInputs, settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The items and their content: e + c or [e; c], then act(W x + b) for each block."""

    def act(x: Tensor) -> Tensor:
        how = settings.get("activation", "gelu")
        return x if how == "none" else x * (1 + torch.erf(x / math.sqrt(2))) / 2 if how == "gelu" else x * (x > 0)

    state = dict(encoder.named_parameters())
    table, weight = state["item_table.vector.weight"], state["content.feature_encoder.projections.0.weight"]
    bias, width = state["content.feature_encoder.projections.0.bias"], settings.get("content_width", WIDTH)
    if settings.get("join") == "beside":
        width = settings.get("content_width", WIDTH // 2)
    layers = sorted({int(key.split(".")[1]) for key in state if key.startswith("join.")})
    rows, clips = [2, 0, 3 + 1], {0: 0, 2: 1}  # films follow the three books
    vectors, contents = [], []
    for item, row in enumerate(rows):
        content = [torch.zeros((), dtype=torch.float64) for _ in range(width)]
        if item in clips:
            clip = items.fields["clip"].vector_RF[clips[item]]
            content = [bias[c] + sum(weight[c, f] * clip[f] for f in range(3)) for c in range(width)]
        scale = math.sqrt(WIDTH) if settings.get("scale_ids") == "sqrt_width" else 1
        vector = [scale * number for number in table[row]]
        if settings.get("join") in ("concat", "beside"):
            vector = vector + content
        elif settings.get("join") != "stream":
            vector = [vector[d] + content[d] for d in range(WIDTH)]
        for layer in layers:
            w, b = state[f"join.{layer}.weight"], state[f"join.{layer}.bias"]
            vector = [act(b[d] + sum(w[d, k] * vector[k] for k in range(len(vector)))) for d in range(WIDTH)]
        vectors.append(torch.stack(vector))
        contents.append(torch.stack(content))
    return torch.stack(vectors), torch.stack(contents)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"layers": 2},
        {"join": "concat"},
        {"join": "concat", "layers": 3, "activation": "relu"},
        {"join": "concat", "activation": "none", "scale_ids": "sqrt_width", "content_width": 5 * WIDTH},
        {"join": "beside"},
        {"join": "beside", "content_width": 3, "scale_ids": "sqrt_width"},
        {"join": "stream", "content_width": 3},
        {"join": "stream", "scale_ids": "sqrt_width"},
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_loops(settings: dict[str, Any]) -> None:
    encoder, items = encoder_of(**settings), items_of()
    vectors = encoder(items)
    expected_UD, content_UC = by_loops(encoder, items, settings)
    pairs = [(vectors.fused_UD, expected_UD)]
    if settings.get("join") == "stream":
        pairs.append((vectors.streams_UD["content"], content_UC))
        assert encoder.streams == {"content": settings.get("content_width", WIDTH)}
    draw = torch.Generator().manual_seed(3)
    losses = [torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)]
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)  # measured 4e-16
        weights = torch.randn(found.shape, generator=draw, dtype=torch.float64)
        losses = [losses[0] + (found * weights).sum(), losses[1] + (expected * weights).sum()]
    ours, theirs = (torch.autograd.grad(loss, list(encoder.parameters())) for loss in losses)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)  # measured 4e-16


def test_ids_need_some_of_the_width() -> None:
    with pytest.raises(RecipeError, match="takes 4 of the 4 numbers"):
        encoder_of(join="beside", content_width=4)


def test_an_item_without_content_is_known_by_its_id_and_can_be_ranked() -> None:
    encoder = encoder_of()
    vectors = encoder(items_of())
    assert torch.equal(vectors.fused_UD[1], encoder.item_table.vector.weight[0])
    assert vectors.is_readable_U.all()
