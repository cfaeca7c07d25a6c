"""Naive twins of parts: the same result by loops, as the paper prints it. Every module of this package holds some."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, TypeVar

from pmmrec.family import Family

NO_TWIN = "no twin"
_TwinT = TypeVar("_TwinT", bound=Callable[..., Any])
_TWINS: dict[tuple[str, str], Callable[..., Any]] = {}


def twin_of(family: Family[Any], *names: str) -> Callable[[_TwinT], _TwinT]:
    """Decorator that gives parts their twin; the check `twin` compares values and gradients in float64.

    Args:
        family: The family of the parts. The twin of an objective is called as `twin(objective, views)` and gives its
            sum and count; that of a scorer as `twin(scorer, query, items, count_N)` and gives the ranked scores
            `(K, N)`; that of a propagation as `twin(propagation, nodes)` and gives nodes.
        names: The names that the parts are registered under.

    Example:
        @twin_of(objectives, "bpr")
        def bpr_by_loops(objective: BPR, views: Views) -> tuple[Tensor, int]: ...
    """

    def add(twin: _TwinT) -> _TwinT:
        for name in names:
            if _TWINS.setdefault((family.name, name), twin) is not twin:
                raise ValueError(f"{family.name} {name!r} has a twin already; keep one")
        return twin

    return add


def find_twin(family: Family[Any], name: str) -> Callable[..., Any] | None:
    """The twin of a part, or None."""
    for module in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
        importlib.import_module(module.name)
    return _TWINS.get((family.name, name))
