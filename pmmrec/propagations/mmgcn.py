"""Users and items along their interactions, once for each stream of what is stored of items (MMGCN)."""
# Shapes: M users, N items, V = M + N nodes, D width.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pmmrec.context import BuildContext
from pmmrec.contracts import Nodes
from pmmrec.precision import outside_autocast, widened
from pmmrec.propagations import Propagation, propagations
from pmmrec.propagations.adjacency import Adjacency
from pmmrec.propagations.lightgcn import checked, edges_of, only
from pmmrec.row_table import RowTable
from pmmrec.settings import PartConfig


class MMGCNConfig(PartConfig):
    """Settings of MMGCN."""

    type: Literal["mmgcn"] = "mmgcn"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"streams": ["text"], "num_layers": 1},
        {"streams": ["text", "image"], "num_layers": 2},
    )
    streams: list[str] = Field(min_length=1, description="The streams of items that are passed on, each for itself.")
    num_layers: int = Field(default=3, ge=1, le=20, description="How many edges away a vector is passed.")


@propagations.register("mmgcn", MMGCNConfig)
class MMGCN(Propagation):
    """Pass each stream along the interactions by layers of its own, and give the mean of the streams.

    For a stream, x begins as unit vectors: those of items from the stream, those of users from a table of the stream.
    A layer makes `lrelu(G [lrelu(mean of W x over neighbours); lrelu(U x + a) + e] + b)` of them, with e the vectors by
    id; a node does not pass to itself (MMGCN, https://doi.org/10.1145/3343031.3351034, eq. 1 to 6, as MMRec has it).
    Differs from the released codes: the tables of users and of ids learn, which were left out of the parameters there,
    and `num_layers` has an effect. Vectors of users of a stream start as normal(0.02), before they are divided by their
    lengths.

    Example:
        model:
          item_encoder:
            type: with_streams
            streams: {text: {features: {content: 384}}, image: {features: {image_content: 512}}}
          user_encoder: {type: user_table}
          propagation: {type: mmgcn, streams: [text, image], num_layers: 3}
    """

    reads_graph = True

    def __init__(self, config: MMGCNConfig, context: BuildContext) -> None:
        super().__init__()
        self.graph, self.streams, width = only(context.graphs), frozenset(config.streams), context.width
        self._adjacency = Adjacency(*edges_of(self.graph), self.graph.num_users, self.graph.num_items)
        names = sorted(self.streams)
        self.users = nn.ModuleDict({name: RowTable(context.catalogues, width, "users") for name in names})
        layers = range(config.num_layers)
        self.layers = nn.ModuleDict({name: nn.ModuleList(_Layer(width) for _ in layers) for name in names})

    def forward(self, nodes: Nodes) -> Nodes:
        """Vectors of all items and users. ValueError where they are not those of the graph, or a stream is missing."""
        user_MD, item_ND = checked(nodes, self.graph, "mmgcn")
        with outside_autocast(item_ND.device):
            id_VD = torch.cat((widened(user_MD), widened(item_ND)))
            means_VD = []
            for name, layers in self.layers.items():
                table = self.users[name]
                row_M = torch.arange(len(user_MD), device=user_MD.device)
                of_users_MD = table(torch.zeros_like(row_M), row_M)
                x_VD = F.normalize(torch.cat((widened(of_users_MD), widened(nodes.items.streams_UD[name]))), dim=1)
                for layer in layers if isinstance(layers, nn.ModuleList) else ():
                    x_VD = layer(x_VD, id_VD, self._adjacency)
                means_VD.append(x_VD)
            mean_VD = torch.stack(means_VD).mean(dim=0)
        passed = replace(nodes.items, fused_UD=mean_VD[len(user_MD) :])
        return replace(nodes, items=passed, user_MD=mean_VD[: len(user_MD)])


class _Layer(nn.Module):
    """What neighbours say, what the node says, and both together; linear layers start as torch's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.of_neighbors = nn.Linear(width, width, bias=False)
        self.of_itself = nn.Linear(width, width)
        self.of_both = nn.Linear(2 * width, width)

    def forward(self, x_VD: Tensor, id_VD: Tensor, adjacency: Adjacency) -> Tensor:
        told_VD = F.leaky_relu(adjacency.mean(self.of_neighbors(x_VD), with_self=False))
        own_VD = F.leaky_relu(self.of_itself(x_VD)) + id_VD
        both_VD: Tensor = F.leaky_relu(self.of_both(torch.cat((told_VD, own_VD), dim=1)))
        return both_VD
