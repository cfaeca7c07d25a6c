"""The modalities of an item. Kept apart from `contracts`, so that describing a domain does not load torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Modality(str, Enum):
    """What an item can be read by."""

    TEXT = "text"
    IMAGE = "image"


@dataclass(frozen=True)
class PixelSpec:
    """How an image must look when it reaches a vision encoder: RGB, resized to `size` x `size` pixels, not cropped."""

    size: int
