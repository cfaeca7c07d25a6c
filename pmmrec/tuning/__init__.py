"""Search for settings, judged by validation alone."""

from __future__ import annotations

from importlib.util import find_spec

from pmmrec.errors import not_installed


def require_optuna() -> None:
    """MachineError where the package that proposes settings is not installed."""
    if find_spec("optuna") is None:
        raise not_installed("tune", ["optuna"], "tune")
