"""A frozen part that can be checked by eye, and what a reader hands out with its states."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pmmrec.contracts import ItemInputs, PixelInputs, PrefixInputs, TokenInputs
from pmmrec.data.items import ItemReader

WIDTH = 3
TEXTS = ["a", "bb cc", None, "bb cc", "dddd ee f", "gg", "hh ii jj kk", "lllll"]
SEQUENCES = [[0, 1, 2, 3], [4, 5, 6, 7], [0, 3, 6, 4], [2, 4, 5, 1]]


@dataclass
class Ladder:
    """A frozen part that can be checked by eye: a token's state is its id times 1, 2, 3; an image's its mean grey.

    Pooled, the state of a text is the mean of those of its tokens.
    """

    name: str = "ladder"
    num_rows: int = 0
    is_pooled: bool = False

    @property
    def fingerprint(self) -> str:
        return self.name

    def states(self, inputs: TokenInputs | PixelInputs) -> torch.Tensor:
        values = inputs.token_id_K if isinstance(inputs, TokenInputs) else inputs.pixels_RCHW.float().mean((1, 2, 3))
        self.num_rows += len(inputs.item_index_R)
        states = values.float()[..., None] * torch.arange(1.0, 1 + WIDTH)
        return inputs.packing.mean(states) if self.is_pooled and isinstance(inputs, TokenInputs) else states

    def at_cut(self, inputs: TokenInputs | PixelInputs) -> PrefixInputs:
        packing = inputs.packing if isinstance(inputs, TokenInputs) and not self.is_pooled else None
        return PrefixInputs(self.states(inputs), packing, inputs.item_index_R)


class Network:
    """A frozen part that works for its states: each token alone through a small network of fixed weights."""

    fingerprint = "network"
    is_pooled = False

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.vectors, self.matrix = torch.randn(64, 32, generator=draw), torch.randn(32, 32, generator=draw) / 32**0.5
        self.num_rows = 0

    @torch.no_grad()
    def states(self, inputs: TokenInputs | PixelInputs) -> torch.Tensor:
        assert isinstance(inputs, TokenInputs)
        self.num_rows += len(inputs.item_index_R)
        state = self.vectors[inputs.token_id_K % len(self.vectors)]
        for _ in range(20):
            state = (state @ self.matrix).tanh()
        return state

    def at_cut(self, inputs: TokenInputs | PixelInputs) -> PrefixInputs:
        assert isinstance(inputs, TokenInputs)
        return PrefixInputs(self.states(inputs), inputs.packing, inputs.item_index_R)


def read(reader: ItemReader, domain_U: list[int], row_U: list[int]) -> ItemInputs:
    return reader.to_device(reader.read(np.array(domain_U), np.array(row_U)), "cpu")


def text_of(items: ItemInputs) -> PrefixInputs:
    rows = items.fields["text"]
    assert isinstance(rows, PrefixInputs)
    return rows


def image_of(items: ItemInputs) -> PrefixInputs:
    rows = items.fields["image"]
    assert isinstance(rows, PrefixInputs)
    return rows


def tables(cache: Path) -> list[Path]:
    return sorted(cache.glob("prefix-*"))


def assert_same(plain: ItemInputs, kept: ItemInputs) -> None:
    """Kept states are those of the rows that the plain reader hands out, in their order."""
    plain_text, plain_image = plain.fields["text"], plain.fields["image"]
    assert isinstance(plain_text, TokenInputs)
    assert isinstance(plain_image, PixelInputs)
    text, image = text_of(kept), image_of(kept)
    assert text.packing is not None
    assert text.packing.length_R.tolist() == plain_text.packing.length_R.tolist()
    assert text.item_index_R.values.tolist() == plain_text.item_index_R.values.tolist()
    assert torch.equal(text.state, Ladder().states(plain_text))
    assert image.packing is None
    assert image.item_index_R.values.tolist() == plain_image.item_index_R.values.tolist()
    assert torch.equal(image.state, Ladder().states(plain_image))
