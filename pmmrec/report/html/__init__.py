"""Build an HTML report of runs: tables, curves, maps of items and users, and lists for sample users."""

from __future__ import annotations

from importlib.util import find_spec

from pmmrec.errors import not_installed

NEEDED = {"jinja2": "jinja2", "matplotlib": "matplotlib", "sklearn": "scikit-learn"}


def require_report() -> None:
    """MachineError if a package that the report needs is not installed."""
    missing = [package for module, package in NEEDED.items() if find_spec(module) is None]
    if missing:
        raise not_installed("report", missing, "report")
