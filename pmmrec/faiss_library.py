"""Import faiss, which is needed for indexes of items and for their codes."""

from __future__ import annotations

import importlib
from typing import Any

from pmmrec.errors import not_installed


def faiss() -> Any:
    """Import faiss. MachineError if it is not installed."""
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise not_installed("index", ["faiss-cpu"], "index") from error
