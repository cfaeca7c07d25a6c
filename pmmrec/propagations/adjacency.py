"""The graph of users and items as a sparse matrix, and products with it."""
# Shapes: M users, N items, V = M + N nodes, E edges, D width.

from __future__ import annotations

import warnings
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
        self.degree_V = degree_V
        self._start_V = np.concatenate(([0], np.cumsum(degree_V)))
        self._column = columns
        self._value = 1 / np.sqrt(degree_V[rows].astype(np.float64) * degree_V[columns])
        self._held: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def times(self, x_VD: Tensor) -> Tensor:
        """The product with vectors of all nodes, `(V, D)`; gradients of any order pass through."""
        product_VD: Tensor = _Product.apply(x_VD, self)
        return product_VD

    def summed(self, x_VD: Tensor) -> Tensor:
        """The sum of the vectors of all neighbours of each node, `(V, D)`."""
        root_V1 = torch.from_numpy(self.degree_V).to(x_VD)[:, None].sqrt()
        return root_V1 * self.times(root_V1 * x_VD)

    def mean(self, x_VD: Tensor, *, with_self: bool) -> Tensor:
        """The mean of the vectors of all neighbours of each node, and of its own if that is asked for, `(V, D)`.

        A node without neighbours has its own vector, or zeros.
        """
        degree_V1 = torch.from_numpy(self.degree_V).to(x_VD)[:, None]
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
            place = torch.from_numpy(self._start_V).to(device), torch.from_numpy(self._column).to(device)
            value, shape = torch.from_numpy(self._value).to(device, dtype), (self.num_nodes, self.num_nodes)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
                self._held[device, dtype] = torch.sparse_csr_tensor(*place, value, shape, check_invariants=True)
        return self._held[device, dtype]


class _Product(torch.autograd.Function):
    """The matrix equals its transpose, so the gradient is the product with the same matrix."""

    @staticmethod
    def forward(ctx: Any, x_VD: Tensor, adjacency: Adjacency) -> Tensor:
        ctx.adjacency = adjacency
        return adjacency.product(x_VD)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.adjacency.times(gradients[0]), None
