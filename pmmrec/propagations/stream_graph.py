"""Ids and streams of items along interactions, each for itself, and one vector made of all (MMGCL, SLMRec)."""
# Shapes: M users, N items, E edges, D width, S streams and ids, W = S D.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pmmrec.context import BuildContext
from pmmrec.contracts import GraphView, Nodes
from pmmrec.hashed import left_in, one_of
from pmmrec.precision import outside_autocast, widened
from pmmrec.propagations import Propagation, propagations
from pmmrec.propagations.lightgcn import LightGCN, LightGCNConfig, checked
from pmmrec.settings import Config, PartConfig

IDS = "ids"  # the stream of vectors by id, beside those that items have

# What numbers are drawn for; each has its own salt.
EDGES, USERS, ITEMS, MASKED, CHANGED = 1, 2, 3, 4, (5, 6)


class GraphViewsConfig(Config):
    """What the two views of a graph lack."""

    edges: float = Field(default=0.05, ge=0, lt=1, description="Share of the edges that the first view lacks.")
    nodes: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="Share of the users, and of the items, whose edges one stream of the second view lacks.",
    )


class StreamGraphConfig(PartConfig):
    """Settings of a graph of several streams."""

    type: Literal["stream_graph"] = "stream_graph"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"streams": ["text"]},
        {"streams": ["text", "image"], "interactions": {"num_layers": 1, "prune": 0.5}, "views": {"nodes": 0.2}},
    )
    streams: list[str] = Field(min_length=1, description="The streams of items that are passed on beside ids.")
    interactions: LightGCNConfig = Field(
        default_factory=LightGCNConfig, description="How vectors are passed along interactions."
    )
    views: GraphViewsConfig | None = Field(
        default=None, description="Views that each step draws, for the objective graph_contrast (MMGCL). null: none."
    )


@propagations.register("stream_graph", StreamGraphConfig)
class StreamGraph(Propagation):
    """Pass ids and each stream along the interactions, and let a linear layer make one vector of all.

    For ids and for each stream x of items, `h = LightGCN([e; x])` with the same vectors e of users; the vector of a
    node is `W [h_ids; h_1; ...] + b`, with one W for users and one for items, as MMGCL
    (https://arxiv.org/abs/2205.15155) and SLMRec (https://doi.org/10.1109/TMM.2022.3187556) have it. All streams pass
    in one product. Items keep what the graph made of each: of ids as the stream `ids`, of others under their names.

    With `views`, a step that asks for them also has two views, drawn from its number (MMGCL's modality edge dropout and
    modality masking): the first passes ids and all streams along a graph that lacks a share of the edges; in the second
    one stream passes along a graph that lacks the edges of a share of the users and of the items, and the rest along
    the whole graph. A view also tells what one stream, drawn as well, adds to each item; ids are never the one.

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
        self.views, self.gives_views = config.views, config.views is not None

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
            given = user_MW, item_NW
            user_MW, item_NW = self.interactions.passed(*given, self.interactions.adjacency)
            made_ND, made_MD = self.of_items(item_NW), self.of_users(user_MW)
            views = self._views(given, (user_MW, item_NW), nodes.draw)
        apart = torch.split(item_NW, item_ND.shape[1], dim=1)
        streams_UD = {**nodes.items.streams_UD, **dict(zip((IDS, *self.names), apart, strict=True))}
        return Nodes(replace(nodes.items, fused_UD=made_ND, streams_UD=streams_UD), made_MD, views=views)

    def _views(
        self, given: tuple[Tensor, Tensor], passed: tuple[Tensor, Tensor], draw: Tensor | None
    ) -> tuple[GraphView, ...]:
        """Of vectors of users and items as they were given, and as the whole graph passed them on."""
        if self.views is None or draw is None:
            return ()
        adjacency, num_users = self.interactions.adjacency, len(given[0])
        fewer_edges = adjacency.with_edges(left_in(draw, adjacency.num_edges, self.views.edges, EDGES))
        is_kept_M = left_in(draw, num_users, self.views.nodes, USERS)
        is_kept_N = left_in(draw, len(given[1]), self.views.nodes, ITEMS)
        fewer_nodes = adjacency.with_nodes(torch.cat((is_kept_M, is_kept_N)))
        masked = self._drawn(draw, MASKED)
        of_users, of_items = (self._of_stream(x_RW, masked) for x_RW in given)
        user_MD, item_ND = self.interactions.passed(of_users, of_items, fewer_nodes)
        first = self.interactions.passed(*given, fewer_edges)
        second = self._with_stream(passed[0], masked, user_MD), self._with_stream(passed[1], masked, item_ND)
        changed = [self._drawn(draw, salt) for salt in CHANGED]
        return self._view(*first, changed[0]), self._view(*second, changed[1])

    def _drawn(self, draw: Tensor, salt: int) -> Tensor:
        """The place of one stream behind the ids, a scalar; each stream is as likely as the others."""
        return 1 + one_of(draw, len(self.names), salt)

    def _apart(self, x_RW: Tensor) -> Tensor:
        """`(R, S, D)`."""
        return x_RW.view(len(x_RW), 1 + len(self.names), -1)

    def _of_stream(self, x_RW: Tensor, stream: Tensor) -> Tensor:
        return self._apart(x_RW).index_select(1, stream[None])[:, 0]

    def _with_stream(self, x_RW: Tensor, stream: Tensor, x_RD: Tensor) -> Tensor:
        """With other vectors of one stream."""
        return self._apart(x_RW).index_copy(1, stream[None], x_RD[:, None]).flatten(1)

    def _view(self, user_MW: Tensor, item_NW: Tensor, stream: Tensor) -> GraphView:
        share_ND = F.linear(self._of_stream(item_NW, stream), self._of_stream(self.of_items.weight, stream))
        return GraphView(self.of_items(item_NW), self.of_users(user_MW), share_ND)
