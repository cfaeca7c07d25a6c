"""Search for the best settings of a recipe by validation metrics."""

from __future__ import annotations

from importlib.util import find_spec

from pmmrec.errors import not_installed


def require_optuna() -> None:
    """MachineError if Optuna is not installed."""
    if find_spec("optuna") is None:
        raise not_installed("tune", ["optuna"], "tune")
