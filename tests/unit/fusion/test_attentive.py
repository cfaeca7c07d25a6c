"""Merge-attention says what the equation says of each item alone, with its padding cut off."""
# Shapes: U distinct items, T text tokens, P image tokens, D width.

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pmmrec.blocks import TransformerBlock
from pmmrec.context import BuildContext
from pmmrec.contracts import Modality, TokenStates
from pmmrec.errors import RecipeError
from pmmrec.fusion.attentive import MergeAttention, MergeAttentionConfig

WIDTH = 12
TEXT, IMAGE = Modality.TEXT, Modality.IMAGE
torch.set_num_threads(1)


def fresh(**settings: object) -> MergeAttention:
    torch.manual_seed(0)
    return MergeAttention(MergeAttentionConfig(**{"num_heads": 3, **settings}), BuildContext(WIDTH)).double()


def states_of(lengths: list[int], num_tokens: int, seed: int) -> TokenStates:
    """Random states of items that lie `num_tokens` apart; noise between them must not matter."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(len(lengths) * num_tokens, WIDTH, dtype=torch.float64, generator=generator)
    cls = torch.randn(len(lengths), WIDTH, dtype=torch.float64, generator=generator)
    return TokenStates(tokens.requires_grad_(), np.arange(len(lengths)) * num_tokens, np.array(lengths), cls)


def four_items() -> dict[Modality, TokenStates]:
    """Both modalities, text alone, image alone, neither."""
    return {TEXT: states_of([3, 5, 0, 0], 5, seed=1), IMAGE: states_of([4, 0, 2, 0], 4, seed=2)}


def block_by_loops(block: TransformerBlock, x_JD: Tensor) -> Tensor:
    """One post-norm block over the tokens of one item: every token looks at every token."""
    num_heads, size = block.attention.num_heads, WIDTH // block.attention.num_heads
    query, key, value = (F.linear(x_JD, *pair) for pair in _thirds(block))
    rows = []
    for row in range(len(x_JD)):
        heads = []
        for head in range(num_heads):
            part = slice(head * size, (head + 1) * size)
            scores = torch.stack([query[row, part] @ key[other, part] for other in range(len(x_JD))]) / size**0.5
            heads.append(sum(share * value[other, part] for other, share in enumerate(scores.softmax(0))))
        rows.append(torch.cat(heads))
    attended = block.attention_norm(x_JD + block.attention.out(torch.stack(rows)))
    return block.feed_forward_norm(attended + block.contract(F.gelu(block.expand(attended))))


def _thirds(block: TransformerBlock) -> list[tuple[Tensor, Tensor]]:
    qkv = block.attention.qkv
    return list(zip(qkv.weight.chunk(3), qkv.bias.chunk(3), strict=True))


def fusion_by_loops(fusion: MergeAttention, states: dict[Modality, TokenStates]) -> Tensor:
    """Eq. 3, item by item."""
    items = []
    for item in range(len(states[TEXT].cls_RD)):
        fields = [states[modality].of_item(item) for modality in (TEXT, IMAGE)]
        x_JD = torch.cat([fusion.mm_cls[None], *fields])
        for block in fusion.blocks:
            x_JD = block_by_loops(block, x_JD)
        means = [one.mean(0) for one in x_JD[1:].split([len(field) for field in fields]) if len(one)]
        of_fields = sum(means) / len(means) if means else x_JD[0]
        items.append({"cls": x_JD[0], "mean": x_JD.mean(0), "mean_of_fields": of_fields}[fusion.pool])
    return torch.stack(items)


@pytest.mark.parametrize("pool", ["cls", "mean", "mean_of_fields"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_values_and_gradients_are_those_of_loops_over_items(pool: str, num_layers: int) -> None:
    fusion, states = fresh(pool=pool, num_layers=num_layers).eval(), four_items()
    inputs = [states[TEXT].token_KD, states[IMAGE].token_KD, *fusion.parameters()]
    expected, actual = fusion_by_loops(fusion, states), fusion(states)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)  # float64; measured 7e-16
    weights = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    expected_gradients = torch.autograd.grad((expected * weights).sum(), inputs)
    actual_gradients = torch.autograd.grad((actual * weights).sum(), inputs)
    for one, other in zip(actual_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)  # float64; measured 4e-15


@pytest.mark.parametrize("pool", ["cls", "mean", "mean_of_fields"])
def test_an_item_is_fused_the_same_in_any_company(pool: str) -> None:
    fusion, states = fresh(pool=pool).eval(), four_items()
    alone = {
        modality: TokenStates(state.of_item(0), np.zeros(1, dtype=int), state.length_R[:1], state.cls_RD[:1])
        for modality, state in states.items()
    }
    torch.testing.assert_close(fusion(alone), fusion(states)[:1], rtol=0, atol=1e-12)


def test_one_modality_alone_is_an_item_that_lacks_the_other() -> None:
    fusion = fresh().eval()
    text = states_of([3, 5], 5, seed=1)
    absent = states_of([0, 0], 4, seed=2)
    torch.testing.assert_close(fusion({TEXT: text}), fusion({TEXT: text, IMAGE: absent}), rtol=0, atol=1e-12)


def test_a_field_weighs_the_same_with_twice_its_tokens() -> None:
    fusion, states = fresh(pool="mean_of_fields", with_cls=False).eval(), four_items()
    image = states[IMAGE]
    doubled = TokenStates(
        torch.cat([image.token_KD[:4], image.token_KD[:4]]),
        np.array([0, 0, 0, 0]),
        np.array([8, 0, 0, 0]),
        image.cls_RD,
    )
    # Without blocks the item is what its tokens are.
    fusion.blocks = torch.nn.ModuleList()
    torch.testing.assert_close(fusion({**states, IMAGE: doubled})[0], fusion(states)[0], rtol=0, atol=1e-12)


def test_the_order_of_the_mapping_does_not_matter() -> None:
    fusion, states = fresh().eval(), four_items()
    assert torch.equal(fusion(states), fusion(dict(reversed(states.items()))))


def test_the_cls_vectors_do_not_enter() -> None:
    fusion, states = fresh().eval(), four_items()
    other = {modality: dataclasses.replace(state, cls_RD=state.cls_RD + 1) for modality, state in states.items()}
    assert torch.equal(fusion(states), fusion(other))


def test_dropped_modalities_leave_an_item_with_the_other() -> None:
    fusion, states = fresh(modality_dropout=1.0, dropout=0.0), four_items()
    text, image = states[TEXT], states[IMAGE]
    no_text, no_image = (dataclasses.replace(one, length_R=np.zeros_like(one.length_R)) for one in (text, image))
    fusion.eval()
    text_only, image_only = fusion({TEXT: text, IMAGE: no_image}), fusion({TEXT: no_text, IMAGE: image})
    whole = fusion(states)
    fusion.train()
    torch.manual_seed(0)
    kept = set()
    for _ in range(20):
        fused = fusion(states)
        kept.add(tuple(torch.allclose(fused[0], one[0], rtol=0, atol=1e-12) for one in (text_only, image_only)))
        # Items with one modality, or none, keep what they have.
        torch.testing.assert_close(fused[1:], whole[1:], rtol=0, atol=1e-12)
    assert kept == {(True, False), (False, True)}


def test_modality_dropout_is_off_in_eval() -> None:
    dropping, plain, states = fresh(modality_dropout=1.0).eval(), fresh().eval(), four_items()
    assert torch.equal(dropping(states), plain(states))


def test_modality_dropout_draws_on_a_meta_device_too() -> None:
    with torch.device("meta"):
        fused = fresh(modality_dropout=0.5)(four_items_of("meta"))
    assert (fused.device.type, fused.shape) == ("meta", (4, WIDTH))


def four_items_of(device: str) -> dict[Modality, TokenStates]:
    with torch.device("cpu"):
        states = four_items()
    return {
        modality: dataclasses.replace(one, token_KD=one.token_KD.to(device), cls_RD=one.cls_RD.to(device))
        for modality, one in states.items()
    }


def test_half_of_the_items_are_dropped_at_one_half() -> None:
    fusion = fresh(modality_dropout=0.5, dropout=0.0)
    torch.manual_seed(0)
    shown = fusion._shown({"text": np.full(4000, True), "image": np.full(4000, True)})
    assert (shown["text"] | shown["image"]).all()
    for has_U in shown.values():
        assert abs((~has_U).mean() - 0.25) < 0.03  # 4 standard errors of 4000 draws


def test_heads_that_do_not_divide_the_width_are_an_error() -> None:
    with pytest.raises(RecipeError, match=r"fusion\.num_heads: 5 do not divide the width 12"):
        fresh(num_heads=5)
