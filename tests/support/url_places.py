"""What stands at a URL that fsspec opens."""

from __future__ import annotations

import fsspec


def names_at(url: str) -> set[str]:
    """Names of the files and folders right below it."""
    fs, root = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    return {str(path).rstrip("/").rpartition("/")[2] for path in fs.ls(root, detail=False)}
