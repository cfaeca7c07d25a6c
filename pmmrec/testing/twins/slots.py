"""What twins of objectives walk through: targets one after another, and which items can be read."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from pmmrec.contracts import ItemVectors, Views
from pmmrec.objectives.targets import TargetsConfig


def target_slots(views: Views, config: TargetsConfig) -> Iterator[tuple[int, Tensor, int]]:
    """User, state and target item of every position with a target, by the words of `TargetsConfig`."""
    index, is_valid = views.windows.item_index_BS.tolist(), views.windows.is_valid_BS.tolist()
    states, is_masked_BL = views.states[config.window].hidden_BLD, views.windows.passes[config.window].is_masked_BL
    for b, row in enumerate(index):
        for s, item in enumerate(row):
            if config.targets == "masked":
                if is_masked_BL is not None and is_masked_BL[b, s]:
                    yield b, states[b, s], item
            elif config.targets == "each":
                if is_valid[b][s] and sum(is_valid[b]) > 1:
                    yield b, states[b, s], item
            elif s > 0 and is_valid[b][s] and is_valid[b][s - 1] and (config.targets == "next" or s == len(row) - 1):
                yield b, states[b, s - 1], item


def readable(items: ItemVectors) -> list[bool]:
    """For each item, whether it has something that the model reads."""
    fields = list(items.has_U.values())
    return [not fields or any(bool(has_U[u]) for has_U in fields) for u in range(len(items.fused_UD))]
