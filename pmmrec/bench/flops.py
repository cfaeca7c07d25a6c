"""The FLOPs and bytes that a training step needs: every formula of `pmmrec bench`.

A multiply-add counts as two FLOPs, as in torch's counter. Only products count: linear maps, attention, convolutions,
and the scores of objectives. `docs/bench.md` explains them; `tests/unit/bench/test_flops.py` holds them to torch.
"""
# Shapes: R rows (texts, images, histories), U distinct items, D width, K counted positions.

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn
from typing_extensions import Self

Ints = NDArray[np.int64]
ADAMW_PASSES = 7  # over the trainable weights: reads weight, gradient and both moments, writes all but the gradient


@dataclass(frozen=True)
class Work:
    """FLOPs of the two passes of a stage, and the bytes that each must at least move to or from memory."""

    forward: float = 0.0
    backward: float = 0.0
    forward_bytes: float = 0.0
    backward_bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.forward + other.forward,
            self.backward + other.backward,
            self.forward_bytes + other.forward_bytes,
            self.backward_bytes + other.backward_bytes,
        )

    def __mul__(self, times: float) -> Work:
        return Work(
            times * self.forward, times * self.backward, times * self.forward_bytes, times * self.backward_bytes
        )

    @property
    def flops(self) -> float:
        return self.forward + self.backward

    @classmethod
    def total(cls, works: Iterable[Work]) -> Self:
        """The sum of several."""
        listed = list(works)
        return cls(
            sum(one.forward for one in listed),
            sum(one.backward for one in listed),
            sum(one.forward_bytes for one in listed),
            sum(one.backward_bytes for one in listed),
        )


def product(rows: float, inner: float, outer: float, *, learning_sides: int) -> Work:
    """`(rows, inner) @ (inner, outer)`; the backward pass has one such product for each side that learns."""
    forward = 2.0 * rows * inner * outer
    return Work(forward, learning_sides * forward)


def linear_map(layer: nn.Linear | nn.Conv2d, rows: float, *, input_learns: bool) -> Work:
    """A linear layer on `rows` vectors, or a convolution at `rows` places whose patches do not overlap."""
    outer = layer.weight.shape[0]
    return product(rows, layer.weight[0].numel(), outer, learning_sides=layer.weight.requires_grad + input_learns)


def attention(length_R: Ints, width: int, *, learns: bool, last_alone: bool = False) -> Work:
    """Every position of a row attends to all of its row: `Q K^T` and its product with V, `2 n^2 width` FLOPs each.

    `last_alone`: the last position of each row does, `2 n width` FLOPs each. The backward pass has two products for
    each. Causal rows count in full, as in torch's counter, and scores that fused kernels compute once more on the way
    back do not count.
    """
    forward = 4.0 * float((length_R if last_alone else length_R**2).sum()) * width
    return Work(forward, 2 * forward if learns else 0.0)


def learns(module: nn.Module) -> bool:
    """Whether any of its parameters is trained."""
    return any(parameter.requires_grad for parameter in module.parameters())


def block_work(
    block: nn.Module,
    entries: str,
    length_R: Ints,
    *,
    input_learns: bool,
    is_pre_norm: bool,
    last_alone: bool = False,
) -> Work:
    """A Transformer block over rows of these lengths.

    Args:
        block: Its linear layers are those that make queries, keys and values, and others that follow them.
        entries: Pattern of the names of the first ones.
        length_R: Valid positions of each row.
        input_learns: Whether something below it is trained, so that gradients flow through it.
        is_pre_norm: Whether queries, keys and values are made of a layer norm of the block.
        last_alone: Whether only the last position of each row is computed: from one layer come queries for it, and keys
            and values for all.
    """
    rows = float(length_R.sum())
    asked = float(len(length_R)) if last_alone else rows
    mapped = (2 * rows + asked) / 3  # of a layer that makes all three
    layers = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
    first = [layer for name, layer in layers.items() if re.fullmatch(entries, name)]
    rest = [layer for name, layer in layers.items() if not re.fullmatch(entries, name)]
    flows = input_learns or (is_pre_norm and learns(block))
    works = [linear_map(layer, mapped, input_learns=flows) for layer in first]
    flows = flows or learns(block)
    works.append(attention(length_R, rest[0].in_features, learns=flows, last_alone=last_alone))
    works += [linear_map(layer, asked, input_learns=flows) for layer in rest]
    return Work.total(works)


def stack_work(
    blocks: Sequence[nn.Module],
    entries: str,
    length_R: Ints,
    *,
    input_learns: bool,
    is_pre_norm: bool,
    last_alone: bool = False,
) -> Work:
    """Blocks one after another, from bottom to top; `last_alone`: nobody reads more than the last place of each row."""
    works, top = [], len(blocks) - 1
    for place, block in enumerate(blocks):
        rules = {"input_learns": input_learns, "is_pre_norm": is_pre_norm, "last_alone": last_alone and place == top}
        works.append(block_work(block, entries, length_R, **rules))
        input_learns = input_learns or learns(block)
    return Work.total(works)


def scores(num_queries: float, num_items: float, width: float) -> Work:
    """Dot products of states with item vectors; both sides learn."""
    return product(num_queries, width, num_items, learning_sides=2)


def alignment_scores(num_anchors: float, num_items: float, num_users: float, width: float, num_kinds: int) -> Work:
    """NICL and its kin in both directions: similarities of `num_kinds` kinds, and their sums over users' negatives.

    `num_anchors`: distinct items at counted positions. The weights of the sums are counts, which do not learn.
    """
    similarities = scores(num_anchors, num_items, width) * num_kinds
    return (similarities + product(num_anchors, num_items, num_users, learning_sides=1)) * 2


def weight_bytes(module: nn.Module, *, trained_alone: bool = False) -> float:
    """Bytes of its parameters without tables of embeddings, of which a step reads a few rows."""
    tables = {id(one.weight) for one in module.modules() if isinstance(one, nn.Embedding)}
    return float(
        sum(
            parameter.nbytes
            for parameter in module.parameters()
            if id(parameter) not in tables and (parameter.requires_grad or not trained_alone)
        )
    )


def stage_bytes(module: nn.Module, input_bytes: float, output_bytes: float) -> Work:
    """What a stage moves at least: its weights once, what goes in and comes out; on the way back gradients too."""
    trained = weight_bytes(module, trained_alone=True)
    back = 2 * trained + output_bytes if learns(module) else 0.0
    return Work(forward_bytes=weight_bytes(module) + input_bytes + output_bytes, backward_bytes=back)


def update_bytes(module: nn.Module) -> float:
    """What AdamW moves in one update."""
    return float(ADAMW_PASSES * sum(one.nbytes for one in module.parameters() if one.requires_grad))
