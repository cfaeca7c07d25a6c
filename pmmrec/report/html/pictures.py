"""Embed pictures in a page as data URIs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image

THUMBNAIL_SIDE = 160  # pixels; shown at half the size, to be sharp in print and on dense screens
JPEG_QUALITY = 80


@dataclass(frozen=True)
class PageImage:
    """A picture as a data URI, with a text alternative and a caption."""

    source: str
    alt: str
    caption: str


def data_uri(data: bytes, kind: str) -> str:
    """The bytes of an image (`png` or `jpeg`) as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def thumbnail(jpeg: bytes | None) -> str | None:
    """A small copy of a stored image as a data URI; None if there is none or it cannot be read."""
    if jpeg is None:
        return None
    small = io.BytesIO()
    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
            image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
            image.convert("RGB").save(small, format="JPEG", quality=JPEG_QUALITY)
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    return data_uri(small.getvalue(), "jpeg")
