"""Ids and streams of items along interactions, each for itself, and one vector made of all (MMGCL, SLMRec)."""
# Shapes: M users, N items, D width, S streams and ids, W = S D.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from pmmrec.context import BuildContext
from pmmrec.contracts import ItemVectors, Nodes
from pmmrec.precision import outside_autocast, widened
from pmmrec.propagations import Propagation, propagations
from pmmrec.propagations.lightgcn import LightGCN, LightGCNConfig, checked
from pmmrec.settings import PartConfig

IDS = "ids"  # the stream of vectors by id, beside those that items have


class StreamGraphConfig(PartConfig):
    """Settings of a graph of several streams."""

    type: Literal["stream_graph"] = "stream_graph"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"streams": ["text"]},
        {"streams": ["text", "image"], "interactions": {"num_layers": 1, "prune": 0.5}},
    )
    streams: list[str] = Field(min_length=1, description="The streams of items that are passed on beside ids.")
    interactions: LightGCNConfig = Field(
        default_factory=LightGCNConfig, description="How vectors are passed along interactions."
    )


@propagations.register("stream_graph", StreamGraphConfig)
class StreamGraph(Propagation):
    """Pass ids and each stream along the interactions, and let a linear layer make one vector of all.

    For ids and for each stream x of items, `h = LightGCN([e; x])` with the same vectors e of users; the vector of a
    node is `W [h_ids; h_1; ...] + b`, with one W for users and one for items, as MMGCL
    (https://arxiv.org/abs/2205.15155) and SLMRec (https://doi.org/10.1109/TMM.2022.3187556) have it. All streams pass
    in one product. Items keep what the graph made of each: of ids as the stream `ids`, of others under their names.

    Example:
        model:
          item_encoder:
            type: with_streams
            streams: {text: {features: {content: 384}}, image: {features: {image_content: 512}}}
          user_encoder: {type: user_table}
          propagation: {type: stream_graph, streams: [text, image], interactions: {num_layers: 3}}
    """

    reads_graph = True

    def __init__(self, config: StreamGraphConfig, context: BuildContext) -> None:
        super().__init__()
        self.names, self.streams = sorted(set(config.streams)), frozenset(config.streams)
        self.interactions = LightGCN(config.interactions, context)
        self.graph, width = self.interactions.graph, context.width
        self.of_users = nn.Linear((1 + len(self.names)) * width, width)
        self.of_items = nn.Linear((1 + len(self.names)) * width, width)

    def begin_epoch(self, epoch: int) -> None:
        """Draw the edges of the epoch."""
        self.interactions.begin_epoch(epoch)

    def forward(self, nodes: Nodes) -> Nodes:
        """Vectors of all items and users. ValueError where they are not those of the graph."""
        user_MD, item_ND = checked(nodes, self.graph, "stream_graph")
        of_items = [item_ND, *(nodes.items.streams_UD[name] for name in self.names)]
        with outside_autocast(item_ND.device):
            item_NW = torch.cat([widened(x_ND) for x_ND in of_items], dim=1)
            user_MW = widened(user_MD).repeat(1, len(of_items))
            passed: Nodes = self.interactions(Nodes(ItemVectors(item_NW), user_MW))
            item_NW, user_MW = passed.items.fused_UD, checked(passed, self.graph, "stream_graph")[0]
            made_ND, made_MD = self.of_items(item_NW), self.of_users(user_MW)
        apart = torch.split(item_NW, item_ND.shape[1], dim=1)
        streams_UD = {**nodes.items.streams_UD, **dict(zip((IDS, *self.names), apart, strict=True))}
        return Nodes(replace(nodes.items, fused_UD=made_ND, streams_UD=streams_UD), made_MD)
