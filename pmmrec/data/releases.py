"""Name the releases of libraries that the content of a cache depends on, as part of the cache's key."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Literal

import PIL
from PIL import features

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

    Another release may compute other values from the same input, so a cache is not read under another one. Caches of
    hashes alone (which images are alike) depend on no release.
    """
    names = dict.fromkeys(name for content in contents for name in LIBRARIES[content])
    return ", ".join(f"{name} {_release(name)}" for name in names)


def _release(name: str) -> str:
    if name == "pillow":  # of the code at hand: forks of Pillow are installed under other names
        return PIL.__version__
    if name == JPEG_READER:  # decodes the stored images; builds of one Pillow may carry different ones
        return str(features.version("libjpeg_turbo") or features.version("jpg"))
    return version(name)
