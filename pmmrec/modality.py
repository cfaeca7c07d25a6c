"""The modalities of an item, and how a model reads its fields; kept without torch, which a domain does not need."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeAlias


class Modality(str, Enum):
    """What an item can be read by."""

    TEXT = "text"
    IMAGE = "image"


ITEM_ID = "item_id"  # the field that stands for an item itself, in a model that reads fields as well


@dataclass(frozen=True)
class PixelSpec:
    """How an image must look when it reaches a vision encoder: RGB, resized to `size` x `size` pixels, not cropped."""

    size: int


class Tokenizer(Protocol):
    """What the data room needs of a text encoder's tokenizer."""

    max_tokens: int
    pad_token_id: int

    @property
    def fingerprint(self) -> str:
        """Changes whenever any text could get other tokens."""
        ...

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text with the special tokens, at most `max_tokens` each, without padding."""
        ...


@dataclass(frozen=True)
class TextSpec:
    """How a model reads texts: as the token ids that one tokenizer gives."""

    tokenizer: Tokenizer


@dataclass(frozen=True)
class VectorSpec:
    """Which stored feature a model reads: one whose entries have this shape."""

    shape: tuple[int, ...]  # (F,), or (T, F) for features of several vectors
    num_values: int | None = None  # entries are codes, whole numbers below it; None: any numbers


@dataclass(frozen=True)
class ValueSpec:
    """That a model reads a further column of the items as an attribute with a few different values."""


@dataclass(frozen=True)
class IdSpec:
    """That a model knows each item by its row, so that no two items are the same to it; the field is `ITEM_ID`."""


FieldSpec: TypeAlias = TextSpec | PixelSpec | VectorSpec | ValueSpec | IdSpec
