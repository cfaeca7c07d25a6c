"""Clean the texts that users give for items."""

from __future__ import annotations

import html
import re
import unicodedata

MAX_CHARACTERS = 10_000
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # NUL, and halves of surrogate pairs, which UTF-8 cannot encode


def cleaned(text: str | None) -> str | None:
    """Decode HTML entities, collapse white space, compose (NFC) and cut to `MAX_CHARACTERS`; None for no words."""
    if text is None:
        return None
    words = " ".join(_UNSTORABLE.sub("", html.unescape(text)).split())
    # cut before and after: composing takes quadratic time on hostile runs of accents, and may lengthen a text
    composed = unicodedata.normalize("NFC", words[:MAX_CHARACTERS])
    return composed[:MAX_CHARACTERS].strip() or None
