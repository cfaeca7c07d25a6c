"""The graph of users and items as a sparse matrix, and products with it."""
# Shapes: M users, N items, V = M + N nodes, E edges, D width.

from __future__ import annotations

import warnings
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pmmrec.packing import Ints


class Adjacency:
    """The normalised adjacency `D^-1/2 A D^-1/2` of users and items: `A[u, i] = A[i, u] = 1` where u touched i.

    Users come first among the nodes. D holds the number of edges of each node; a node without any has zeros. No buffer
    of a module, so that no process sends it to others.
    """

    def __init__(self, user_E: Ints, item_E: Ints, num_users: int, num_items: int) -> None:
        """Of edges that are all different."""
        self.num_nodes = num_users + num_items
        degree_V = np.bincount(np.concatenate((user_E, num_users + item_E)), minlength=self.num_nodes)
        rows = np.concatenate((user_E, num_users + item_E))
        columns = np.concatenate((num_users + item_E, user_E))
        order = np.lexsort((columns, rows))
        rows, columns = rows[order], columns[order]
        self.num_edges = len(user_E)
        self.degree_V = torch.from_numpy(degree_V)
        self._start_V = torch.from_numpy(np.concatenate(([0], np.cumsum(degree_V))))
        self._row, self._column = torch.from_numpy(rows), torch.from_numpy(columns)
        self._edge = torch.from_numpy(order % max(1, len(user_E)))  # which edge each entry is of
        self._value = torch.from_numpy(1 / np.sqrt(degree_V[rows].astype(np.float64) * degree_V[columns]))
        self._held: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._places: dict[torch.device, tuple[Tensor, ...]] = {}

    def with_edges(self, is_kept_E: Tensor) -> Adjacency:
        """The graph without the edges that are not kept; they stand in the order in which they were given."""
        *_, edge = self._at(is_kept_E.device)
        return self._thinned(is_kept_E[edge])

    def with_nodes(self, is_kept_V: Tensor) -> Adjacency:
        """The graph without the edges of nodes that are not kept."""
        _, column, row, _ = self._at(is_kept_V.device)
        return self._thinned(is_kept_V[row] & is_kept_V[column])

    def _thinned(self, is_kept: Tensor) -> Adjacency:
        """Zeros in place of entries that are not kept, so that nothing is sorted, and the degrees that are left."""
        _, column, row, _ = self._at(is_kept.device)
        thinned, kept = copy(self), is_kept.double()
        thinned.degree_V = kept.new_zeros(self.num_nodes).index_add(0, row, kept)
        thinned._value = kept * (thinned.degree_V[row] * thinned.degree_V[column]).clamp(min=1).rsqrt()
        thinned._held = {}
        return thinned

    def times(self, x_VD: Tensor) -> Tensor:
        """The product with vectors of all nodes, `(V, D)`; gradients of any order pass through."""
        product_VD: Tensor = _Product.apply(x_VD, self)
        return product_VD

    def summed(self, x_VD: Tensor) -> Tensor:
        """The sum of the vectors of all neighbours of each node, `(V, D)`."""
        root_V1 = self.degree_V.to(x_VD)[:, None].sqrt()
        return root_V1 * self.times(root_V1 * x_VD)

    def mean(self, x_VD: Tensor, *, with_self: bool) -> Tensor:
        """The mean of the vectors of all neighbours of each node, and of its own if that is asked for, `(V, D)`.

        A node without neighbours has its own vector, or zeros.
        """
        degree_V1 = self.degree_V.to(x_VD)[:, None]
        if with_self:
            return (self.summed(x_VD) + x_VD) / (degree_V1 + 1)
        return self.summed(x_VD) / degree_V1.clamp(min=1)

    def product(self, x_VD: Tensor) -> Tensor:
        """The product, without gradients."""
        if x_VD.is_meta:
            return torch.empty_like(x_VD)
        product_VD: Tensor = self._matrix(x_VD.device, x_VD.dtype) @ x_VD
        return product_VD

    def _matrix(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Compressed rows; kept for each device and kind of number."""
        if (device, dtype) not in self._held:
            (start_V, column, *_), shape = self._at(device), (self.num_nodes, self.num_nodes)
            value = self._value.to(device, dtype)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
                self._held[device, dtype] = torch.sparse_csr_tensor(
                    start_V, column, value, shape, check_invariants=True
                )
        return self._held[device, dtype]

    def _at(self, device: torch.device) -> tuple[Tensor, ...]:
        """Where rows start, and column, row and edge of each entry, on a device."""
        if device not in self._places:
            places = self._start_V, self._column, self._row, self._edge
            self._places[device] = tuple(place.to(device) for place in places)
        return self._places[device]


class _Product(torch.autograd.Function):
    """The matrix equals its transpose, so the gradient is the product with the same matrix."""

    @staticmethod
    def forward(ctx: Any, x_VD: Tensor, adjacency: Adjacency) -> Tensor:
        ctx.adjacency = adjacency
        return adjacency.product(x_VD)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.adjacency.times(gradients[0]), None
