"""The YAML under `Example:` in the docstring of a part."""

from __future__ import annotations

import inspect
import textwrap
from typing import Any

from pmmrec.settings import parse_yaml


def example_of(part_class: type) -> dict[str, Any]:
    """The settings that a docstring shows."""
    text = inspect.cleandoc(part_class.__doc__ or "")
    assert text.count("Example:\n") == 1, f"{part_class.__name__}: give one example in its docstring"
    tree = parse_yaml(textwrap.dedent(text.partition("Example:\n")[2]), part_class.__name__)
    assert isinstance(tree, dict)
    return tree


def types_in(tree: Any) -> set[str]:
    """Every `type` that settings name."""
    if isinstance(tree, list):
        return set().union(*map(types_in, tree))
    if not isinstance(tree, dict):
        return set()
    return {tree["type"]} | types_in(list(tree.values())) if "type" in tree else types_in(list(tree.values()))
