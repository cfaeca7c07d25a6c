"""Name the library releases on which the content of a cache depends; they are part of the cache's keys."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Literal

import PIL
from PIL import features

version = cache(metadata.version)  # each call reads and parses a file, and one ranking asks thirty times
Content = Literal["pixels", "tokens", "states", "vectors"]
JPEG_READER = "libjpeg"
LIBRARIES: Mapping[Content, tuple[str, ...]] = {
    "pixels": ("pillow", JPEG_READER),
    "tokens": ("tokenizers", "transformers"),
    "states": ("torch", "transformers", "timm"),
    "vectors": ("torch", "transformers", "timm", "peft"),
}


def made_by(*contents: Content) -> str:
    """The libraries that compute these contents, with their releases, such as `pillow 13.0.0, libjpeg 3.1.2`.

    Another release may compute other values from the same input, so it has its own cache entries. Entries made from
    hashes only (which images are the same) do not depend on releases.
    """
    names = dict.fromkeys(name for content in contents for name in LIBRARIES[content])
    return ", ".join(f"{name} {_release(name)}" for name in names)


def _release(name: str) -> str:
    if name == "pillow":  # of the imported code: forks of Pillow are installed under other names
        return PIL.__version__
    if name == JPEG_READER:  # decodes the stored images; builds of the same Pillow may contain different ones
        return str(features.version("libjpeg_turbo") or features.version("jpg"))
    return version(name)
