"""Vectors of items and users: the nodes of a graph, as the rest of a model sees them."""
# U distinct items of a batch, M users and N items of a graph, D width.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class ItemVectors:
    """Items as the rest of the model sees them."""

    fused_UD: Tensor
    cls_UD: Mapping[str, Tensor] = field(default_factory=dict)  # by field; zeros where the item lacks it
    has_U: Mapping[str, Tensor] = field(default_factory=dict)  # bool, by field
    streams_UD: Mapping[str, Tensor] = field(default_factory=dict)  # named extra vectors of two-stream systems
    mask_D: Tensor | None = None  # what stands for a hidden item, where it was encoded with these

    @property
    def is_readable_U(self) -> Tensor:
        """Which items have something that the model reads; all of them where items are known by id."""
        if not self.has_U:
            return torch.ones(len(self.fused_UD), dtype=torch.bool, device=self.fused_UD.device)
        return torch.stack(list(self.has_U.values())).any(dim=0)


@dataclass(frozen=True)
class GraphView:
    """Items and users as a graph gives them that lacks some edges or nodes."""

    item_ND: Tensor
    user_MD: Tensor | None  # None: what an objective sees of users otherwise stands for them
    share_ND: Tensor  # what one stream adds to the vectors of items


@dataclass(frozen=True)
class Nodes:
    """The items of a step or of a catalogue, and all users where they are known by id: the nodes of a graph."""

    items: ItemVectors
    user_MD: Tensor | None = None  # M users of all domains of the run; None: users are known by what they did alone
    targets: Nodes | None = None  # the same before a predictor; None: there is none
    draw: Tensor | None = None  # as that of `ItemInputs`, where views are asked for: decides what they lack
    views: tuple[GraphView, ...] = ()  # what a graph made of them; (): none were asked for
