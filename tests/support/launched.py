"""A small program for launchers to start."""

from __future__ import annotations

from pathlib import Path


def a_program(folder: Path, text: str) -> Path:
    """A file with this text, below imports and `here`, the folder that it lies in."""
    path = folder / "program.py"
    path.write_text(f"import os, signal, sys, time\nfrom pathlib import Path\nhere = Path({str(folder)!r})\n{text}")
    return path
