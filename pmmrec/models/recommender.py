"""Parts composed: what items are, what users want, and how the two are compared."""
# Shapes: B users, L positions, N items, K queries, C candidates, W width with streams.

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pmmrec.contracts import History, ItemVectors, Query, UserStates
from pmmrec.family import Family, PartGroup
from pmmrec.models import ItemEncoder, Scorer, item_encoders, scorers
from pmmrec.users import UserEncoder, user_encoders


class Recommender(nn.Module):
    """An item encoder, a user encoder and a scorer."""

    def __init__(self, item_encoder: ItemEncoder, user_encoder: UserEncoder, scorer: Scorer) -> None:
        super().__init__()
        self.item_encoder, self.user_encoder, self.scorer = item_encoder, user_encoder, scorer

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        """The parts that are saved and transferred alone, by their name in a checkpoint; all parameters are in one."""
        parts = {**self.item_encoder.parts, "user_encoder": self.user_encoder}
        if self.scorer.state_dict():
            parts["scorer"] = self.scorer
        return parts

    @property
    def part_groups(self) -> Mapping[str, PartGroup | None]:
        """What each part works on: what the family says that it is built from."""
        items: dict[str, Family[Any]] = dict.fromkeys(self.item_encoder.parts, item_encoders)
        families = {**items, "user_encoder": user_encoders, "scorer": scorers}
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


def packed(items: ItemVectors) -> Tensor:
    """All vectors of items that rank, side by side, `(N, W)`: how a catalogue is kept. See `unpacked`."""
    vectors = [items.fused_UD, *(items.streams_UD[name] for name in sorted(items.streams_UD))]
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=1)


def unpacked(packed_NW: Tensor, streams: Mapping[str, int]) -> ItemVectors:
    """The items out of what `packed` gave; `streams` are those of the item encoder."""
    if not streams:
        return ItemVectors(packed_NW)
    widths = [streams[name] for name in sorted(streams)]
    fused_ND, *rest = torch.split(packed_NW, [packed_NW.shape[1] - sum(widths), *widths], dim=1)
    return ItemVectors(fused_ND, streams_UD=dict(zip(sorted(streams), rest, strict=True)))
