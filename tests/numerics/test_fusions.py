"""The fusions of MMSR against loops over items, tokens and heads, in float64."""
# Shapes: U distinct items, T tokens of one field of an item, D width.

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pmmrec.context import BuildContext
from pmmrec.contracts import TokenStates
from pmmrec.errors import RecipeError
from pmmrec.fusion import Fusion, fusions
from pmmrec.models.towers import TowersConfig

WIDTH = 6
PAIRED = ("sum", "concat", "gate", "film")
POOLS = ("mean", "mean_without_cls", "cls")


def fusion_of(**settings: Any) -> Fusion:
    config = fusions.config(settings)
    torch.manual_seed(0)
    part_class: Any = fusions.part_class(config)
    fusion: Fusion = part_class(config, BuildContext(WIDTH)).double().eval()
    for parameter in fusion.parameters():  # biases start at 0, LayerNorm at 1
        torch.nn.init.normal_(parameter)
    return fusion


def states_of(lengths: list[int], has: list[bool], seed: int) -> TokenStates:
    """Random states of items; an item with a field and no token has a cls vector alone."""
    draw = torch.Generator().manual_seed(seed)
    length_R = np.array(lengths)
    token_KD = torch.randn(int(length_R.sum()), WIDTH, dtype=torch.float64, generator=draw)
    cls_RD = torch.randn(len(lengths), WIDTH, dtype=torch.float64, generator=draw) * torch.tensor(has)[:, None]
    first_RD = torch.randn(len(lengths), WIDTH, dtype=torch.float64, generator=draw) * torch.tensor(has)[:, None]
    start_R = np.cumsum(length_R) - length_R
    learned = (one.requires_grad_() for one in (cls_RD, first_RD))
    cls_RD, first_RD = learned
    return TokenStates(token_KD.requires_grad_(), start_R, length_R, cls_RD, np.array(has), first_RD)


def five_items() -> dict[str, TokenStates]:
    """Both fields, text alone, image alone, neither, and an image beside a text without tokens."""
    return {
        "image": states_of([4, 0, 2, 0, 3], [True, False, True, False, True], seed=2),
        "text": states_of([3, 5, 0, 0, 0], [True, True, False, False, True], seed=1),
    }


def tokens_of(states: TokenStates, item: int, *, with_cls: bool) -> list[Tensor]:
    """The tokens of an item, its cls token first."""
    if not states.has_R[item]:
        return []
    return [*([states.first_RD[item]] if with_cls else []), *states.of_item(item)]


def linear(layer: torch.nn.Linear, x_D: Tensor) -> Tensor:
    num_out, num_in = layer.weight.shape
    return torch.stack(
        [
            layer.bias[out] + sum(layer.weight[out, place] * x_D[place] for place in range(num_in))
            for out in range(num_out)
        ]
    )


def normed(norm: torch.nn.LayerNorm, x_D: Tensor) -> Tensor:
    mean = sum(x_D) / len(x_D)
    variance = sum((x - mean) ** 2 for x in x_D) / len(x_D)
    return torch.stack(
        [(x_D[d] - mean) / (variance + norm.eps) ** 0.5 * norm.weight[d] + norm.bias[d] for d in range(len(x_D))]
    )


def paired_by_loops(fusion: Any, states: dict[str, TokenStates], settings: dict[str, Any]) -> Tensor:
    zeros, items = torch.zeros(WIDTH, dtype=torch.float64), []
    for item in range(5):
        under = []
        for field in ("text", "image"):
            one, pool = states[field], settings.get("pool", "mean")
            tokens = [one.cls_RD[item]] if pool == "cls" else tokens_of(one, item, with_cls=pool == "mean")
            vector = sum(tokens) / len(tokens) if tokens else zeros
            vector = normed(fusion.norm, vector) if settings.get("norm", True) else vector
            under.append(vector if one.has_R[item] else zeros)
        x, y = under
        kind = settings["type"]
        if kind == "sum":
            fused = linear(fusion.of_x, x) + linear(fusion.of_y, y)
        elif kind == "concat":
            fused = linear(fusion.out, torch.cat((x, y)))
        elif kind == "gate":
            fused = linear(fusion.out, 1 / (1 + torch.exp(-linear(fusion.of_x, x))) * linear(fusion.of_y, y))
        else:
            both = linear(fusion.of_x, x)
            fused = linear(fusion.out, both[:WIDTH] * y + both[WIDTH:])
        for layer in (one for one in fusion.blocks if isinstance(one, torch.nn.Linear)):
            fused = linear(layer, fused) * (linear(layer, fused) > 0)
        items.append(fused)
    return torch.stack(items)


def attended(queries: list[Tensor], keys: list[Tensor], values: list[Tensor], num_heads: int) -> list[Tensor]:
    """Scaled dot-product attention; zeros where there is no key."""
    size, found = WIDTH // num_heads, []
    for query in queries:
        heads = []
        for head in range(num_heads):
            part = slice(head * size, (head + 1) * size)
            scores = [torch.exp(query[part] @ key[part] / size**0.5) for key in keys]
            mixed = [score / sum(scores) * value[part] for score, value in zip(scores, values, strict=True)]
            heads.append(sum(mixed) if mixed else torch.zeros(size, dtype=torch.float64))
        found.append(torch.cat(heads))
    return found


def block_by_loops(block: Any, tokens: list[Tensor]) -> list[Tensor]:
    """A post-norm Transformer block over the tokens of one field of an item."""
    thirds = [linear(block.attention.qkv, token).chunk(3) for token in tokens]
    queries, keys, values = ([one[place] for one in thirds] for place in range(3))
    found = attended(queries, keys, values, block.attention.num_heads)
    mixed = [
        normed(block.attention_norm, token + linear(block.attention.out, one))
        for token, one in zip(tokens, found, strict=True)
    ]
    return [
        normed(block.feed_forward_norm, one + linear(block.contract, F.gelu(linear(block.expand, one))))
        for one in mixed
    ]


def co_attention_by_loops(fusion: Any, states: dict[str, TokenStates], settings: dict[str, Any]) -> Tensor:
    items = []
    for item in range(5):
        streams = []
        for place, field in enumerate(("text", "image")):
            tokens = tokens_of(states[field], item, with_cls=settings.get("with_cls", True))
            # A text without tokens of which no cls is read has one of zeros.
            if not tokens and states[field].has_R[item]:
                tokens = [torch.zeros(WIDTH, dtype=torch.float64)]
            streams.append([token + fusion.type_vector[place] for token in tokens])
        for block in fusion.blocks:
            cross, crossed = block.cross, []
            for here, there in (streams, streams[::-1]):
                queries = [linear(cross.query, token) for token in here]
                keys = [linear(cross.key, token) for token in there]
                values = [linear(cross.value, token) for token in there]
                found = attended(queries, keys, values, cross.num_heads)
                crossed.append(
                    [normed(cross.norm, token + linear(cross.out, one)) for token, one in zip(here, found, strict=True)]
                )
            streams = [block_by_loops(own, tokens) for own, tokens in zip(block.own, crossed, strict=True)]
        means = [sum(one) / len(one) if one else torch.zeros(WIDTH, dtype=torch.float64) for one in streams]
        items.append(linear(fusion.out, torch.cat(means)))
    return torch.stack(items)


def merged_by_loops(fusion: Any, states: dict[str, TokenStates], settings: dict[str, Any]) -> Tensor:
    items = []
    for item in range(5):
        tokens = [fusion.mm_cls] if settings.get("mm_cls", True) else []
        for field in ("text", "image"):
            tokens += tokens_of(states[field], item, with_cls=settings.get("with_cls", False))
        tokens = tokens or [torch.zeros(WIDTH, dtype=torch.float64)]
        for block in fusion.blocks:
            tokens = block_by_loops(block, tokens)
        items.append(tokens[0] if settings.get("pool", "cls") == "cls" else sum(tokens) / len(tokens))
    return torch.stack(items)


TWINS = {
    **dict.fromkeys(PAIRED, paired_by_loops),
    "co_attention": co_attention_by_loops,
    "merge_attention": merged_by_loops,
}
MMSR = {"mm_cls": False, "with_cls": True, "pool": "mean", "norm_eps": 1e-12}
SETTINGS: list[dict[str, Any]] = [
    *({"type": kind, "pool": pool} for kind in PAIRED for pool in POOLS),
    *({"type": kind, "layers": 3, "dropout": 0.5} for kind in PAIRED),
    *({"type": kind, "norm": False, "init": "torch"} for kind in PAIRED),
    {"type": "co_attention", "num_heads": 2, "feed_forward_factor": 2},
    {"type": "co_attention", "num_heads": 3, "num_layers": 2, "with_cls": False},
    {"type": "merge_attention", "num_heads": 2, "num_layers": 2, **MMSR},
    {"type": "merge_attention", "num_heads": 2, "with_cls": True},
    {"type": "merge_attention", "num_heads": 2, "mm_cls": False, "pool": "mean"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_values_and_gradients_are_those_of_loops_whatever_an_item_lacks(settings: dict[str, Any]) -> None:
    fusion, states = fusion_of(**settings), five_items()
    given = [tensor for one in states.values() for tensor in (one.token_KD, one.cls_RD, one.first_RD)]
    learned = [*given, *fusion.parameters()]
    found, expected = fusion(states), TWINS[settings["type"]](fusion, states, settings)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)  # weights and values near 1; measured 6e-14
    weights = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    ours, theirs = (
        torch.autograd.grad((one * weights).sum(), learned, allow_unused=True, materialize_grads=True)
        for one in (found, expected)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)  # measured 7e-14


@pytest.mark.parametrize("kind", PAIRED)
def test_a_gate_and_a_film_read_the_text_and_change_the_image(kind: str) -> None:
    fusion, states = fusion_of(type=kind), five_items()
    assert torch.equal(fusion(states), fusion(dict(reversed(states.items()))))
    swapped = {"text": states["image"], "image": states["text"]}
    assert not torch.allclose(fusion(states)[0], fusion(swapped)[0])


def test_a_fusion_of_two_fields_is_refused_where_three_are_read() -> None:
    text = {"type": "hf_text", "architecture": {"model_type": "bert"}}
    vision = {"type": "hf_vision", "architecture": {"model_type": "vit"}}
    tree = {"text": text, "text_fields": ["text", "about"], "vision": vision, "fusion": {"type": "gate"}}
    with pytest.raises(ValueError, match="fusion: gate joins 2 fields, but text and about and vision are read"):
        TowersConfig.model_validate(tree)


def test_what_merge_attention_does_not_have_cannot_be_pooled() -> None:
    with pytest.raises(RecipeError, match="mm_cls: false leaves out; use mean"):
        fusions.config({"type": "merge_attention", "mm_cls": False})
