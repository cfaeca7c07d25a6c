"""Lists of the items that are most like each item, by the cosine of stored or learned vectors."""
# Shapes: N items, F length of a vector, K places of a list, D width.

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from pmmrec.context import InteractionGraph, ItemFeature
from pmmrec.errors import RecipeError
from pmmrec.propagations.room import check_room

CELLS_AT_ONCE = 2**22  # similarities that are held together: a block of rows, never all
COPIES = 8  # of the vectors of a list, in float64 with their products and squares, that a cosine of pairs holds


@torch.no_grad()
def nearest(vector_NF: Tensor, has_N: Tensor, num_neighbors: int) -> Tensor:
    """The items with the largest cosines to each item, `(N, K)` int64; itself is the first.

    Only items in `has_N` have a vector. An item without one lists itself alone, and nobody else lists it; places for
    which there is no item hold the item itself again. Similarities are computed in blocks of rows.
    """
    unit_NF, self_N = F.normalize(vector_NF, dim=1), torch.arange(len(vector_NF), device=vector_NF.device)
    list_NK = self_N[:, None].repeat(1, num_neighbors)
    rows_at_once = max(1, CELLS_AT_ONCE // max(1, len(unit_NF)))
    for row_R in torch.split(self_N, rows_at_once):
        cosine_RN = (unit_NF[row_R] @ unit_NF.T).masked_fill_(~has_N, -torch.inf)
        cosine_RN[row_R - row_R[0], row_R] = torch.inf
        best_RK, item_RK = cosine_RN.topk(num_neighbors, dim=1)
        is_there_RK = (best_RK > -torch.inf) & has_N[row_R, None]
        list_NK[row_R] = torch.where(is_there_RK, item_RK, row_R[:, None])
    return list_NK


def cosines(vector_NF: Tensor, list_NK: Tensor) -> Tensor:
    """The cosine of each item and those of its list, `(N, K)`, with gradients; 1 of an item and itself."""
    unit_NF = F.normalize(vector_NF, dim=1)
    cosine_NK = (unit_NF[:, None] * F.embedding(list_NK, unit_NF)).sum(dim=2)
    return torch.where(list_NK == torch.arange(len(list_NK), device=list_NK.device)[:, None], 1.0, cosine_NK)


def normalized(value_NK: Tensor, list_NK: Tensor) -> Tensor:
    """`D^-1/2 S D^-1/2` at the places of S, D holding the sums of its rows. A row without a positive sum has zeros."""
    sum_N = value_NK.sum(dim=1)
    scale_N = torch.where(sum_N > 0, torch.where(sum_N > 0, sum_N, 1.0).rsqrt(), 0.0)
    return scale_N[:, None] * value_NK * F.embedding(list_NK, scale_N[:, None])[:, :, 0]


def gathered(value_NK: Tensor, list_NK: Tensor, x_ND: Tensor) -> Tensor:
    """The product of the matrix that has these values at these places with vectors, `(N, D)`.

    Gradients reach values and vectors. Nothing larger than the lists and the vectors is held.
    """
    product_ND: Tensor = F.embedding_bag(list_NK, x_ND, mode="sum", per_sample_weights=value_NK)
    return product_ND


def check_lists(graph: InteractionGraph, num_neighbors: int, num_features: int) -> None:
    """Refuse lists that the catalogue or the memory has no room for, before anything is read.

    RecipeError with the number of items, or with the bytes.
    """
    if num_neighbors > graph.num_items:
        raise RecipeError(
            f"model.propagation.neighbors: {num_neighbors} neighbors of each item, and there are {graph.num_items} "
            f"items; choose {graph.num_items} or fewer"
        )
    num_bytes = graph.num_items * num_neighbors * num_features * 3 * torch.float64.itemsize  # places, values, products
    check_room(f"lists of {num_neighbors} neighbors of {graph.num_items:,} items", num_bytes)


def fingerprints(features: Iterable[ItemFeature]) -> Tensor:
    """A tensor that says by which stored vectors items were compared; it is kept in a checkpoint."""
    return torch.tensor(list("".join(one.fingerprint.rjust(64) for one in features).encode()), dtype=torch.uint8)


@torch.no_grad()
def list_of(feature: ItemFeature, num_neighbors: int) -> tuple[Tensor, Tensor, Tensor]:
    """The list of a stored feature `(N, K)`, its cosines `(N, K)` in float64, and which items have the feature."""
    vectors_NF, has_N = feature.read()
    vector_NF, is_there_N = torch.from_numpy(vectors_NF), torch.from_numpy(has_N)
    list_NK = nearest(vector_NF, is_there_N, num_neighbors)
    rows_at_once = max(1, CELLS_AT_ONCE // (COPIES * vector_NF.shape[1] * num_neighbors))
    cosine_NK = [
        F.cosine_similarity(vector_NF[row_R, None].double(), vector_NF[list_NK[row_R]].double(), dim=2, eps=0)
        for row_R in torch.split(torch.arange(len(vector_NF)), rows_at_once)
    ]
    is_itself_NK = list_NK == torch.arange(len(list_NK))[:, None]
    return list_NK, torch.where(is_itself_NK, 1.0, torch.cat(cosine_NK)), is_there_N
