"""Refuse the name of a file whose suffix promises another format than is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pmmrec.errors import RecipeError


def suffix_of(path: Path, known: Sequence[str], where: str, otherwise: str = "") -> str:
    """The suffix of a file to write, in lower case; RecipeError unless it is one of those `known`.

    `where` names the option that holds the path, `otherwise` what else the option takes.
    """
    suffix = path.suffix.lower()
    if suffix not in known:
        wrong = f"cannot write {suffix} files" if suffix else "has no suffix that says the format"
        raise RecipeError(f"{where} {path}: {wrong}; end the name in {' or '.join(known)}{otherwise}")
    return suffix
