"""Parts composed: what items are, what users want, and how the two are compared."""
# Shapes: B users, L positions, N items, K queries, C candidates, W width with streams.

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pmmrec.contracts import History, ItemVectors, Nodes, Query, UserStates, to_device
from pmmrec.family import Family, PartGroup
from pmmrec.models import ItemEncoder, Scorer, item_encoders, scorers
from pmmrec.propagations import Propagation, propagations
from pmmrec.users import UserEncoder, user_encoders


class Recommender(nn.Module):
    """An item encoder, a user encoder, a scorer, and the graph between items and users."""

    def __init__(
        self, item_encoder: ItemEncoder, user_encoder: UserEncoder, scorer: Scorer, propagation: Propagation
    ) -> None:
        super().__init__()
        self.item_encoder, self.user_encoder, self.scorer = item_encoder, user_encoder, scorer
        self.propagation = propagation

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        """The parts that are saved and transferred alone, by their name in a checkpoint; all parameters are in one."""
        parts = {**self.item_encoder.parts, "user_encoder": self.user_encoder}
        beside: dict[str, nn.Module] = {"propagation": self.propagation, "scorer": self.scorer}
        return parts | {name: part for name, part in beside.items() if part.state_dict()}

    @property
    def knows_ids(self) -> bool:
        """Whether it serves the items or the users of its domains alone, by their rows."""
        return self.item_encoder.knows_ids or self.user_encoder.reads_users or self.propagation.reads_graph

    def nodes(self, items: ItemVectors, *, with_users: bool = False) -> Nodes:
        """Items with the vectors of users known by id, where a graph reads them, or where they are asked for."""
        reads_users = with_users or self.propagation.reads_graph
        return Nodes(items, self.user_encoder.vectors() if reads_users else None)

    def propagate(self, nodes: Nodes) -> Nodes:
        """What the graph makes of items and users: once a step, and once after a catalogue is encoded."""
        propagated: Nodes = self.propagation(nodes)
        return propagated

    def catalogue(self, packed_NW: Tensor) -> Nodes:
        """The catalogue that ranks, out of what `packed` gave for all items of a domain, and on the same device."""
        nodes = self.nodes(unpacked(packed_NW, self.item_encoder.streams))
        weight = nodes.user_MD if nodes.user_MD is not None else next(self.propagation.parameters(), packed_NW)
        return to_device(self.propagate(to_device(nodes, weight.device)), packed_NW.device)

    @property
    def part_groups(self) -> Mapping[str, PartGroup | None]:
        """What each part works on: what the family says that it is built from."""
        items: dict[str, Family[Any]] = dict.fromkeys(self.item_encoder.parts, item_encoders)
        families = {**items, "user_encoder": user_encoders, "propagation": propagations, "scorer": scorers}
        return {name: families[name].group for name in self.parts}

    def states(self, history: History) -> UserStates:
        """States at every position of histories, as training sees them."""
        states: UserStates = self.user_encoder(history)
        return states

    def query(self, history: History) -> Query:
        """The one state of each user that ranks: of the last item, or of a mask behind it; see `UserEncoder.query`."""
        return self.user_encoder.query(history)

    def score(self, query: Query, items: ItemVectors, candidate_KC: Tensor | None = None) -> Tensor:
        """Scores of all items `(K, N)`, or of the candidates of each query `(K, C)`; larger is better."""
        scores: Tensor = self.scorer(query, items, candidate_KC)
        return scores


def packed(items: ItemVectors, streams: Iterable[str]) -> Tensor:
    """All vectors of items that rank, side by side, `(N, W)`: how a catalogue is kept. See `unpacked`.

    `streams`: those of the item encoder; training streams are left out.
    """
    vectors = [items.fused_UD, *(items.streams_UD[name] for name in sorted(streams))]
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=1)


def unpacked(packed_NW: Tensor, streams: Mapping[str, int]) -> ItemVectors:
    """The items out of what `packed` gave; `streams` are those of the item encoder."""
    if not streams:
        return ItemVectors(packed_NW)
    widths = [streams[name] for name in sorted(streams)]
    fused_ND, *rest = torch.split(packed_NW, [packed_NW.shape[1] - sum(widths), *widths], dim=1)
    return ItemVectors(fused_ND, streams_UD=dict(zip(sorted(streams), rest, strict=True)))
