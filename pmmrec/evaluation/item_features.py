"""Vectors of items to store as a feature of their domain, as a model computes them."""
# N items of the domain, U items encoded at once, R of them with a field, T layers, H width of a backbone, D width.

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pmmrec.contracts import ItemInputs
from pmmrec.data.items import ItemReader
from pmmrec.errors import DataError, RecipeError
from pmmrec.evaluation.catalogue import ITEMS_AT_ONCE, NotFiniteVectorError
from pmmrec.evaluation.eval_mode import evaluating
from pmmrec.models import ItemEncoder
from pmmrec.progress import Progress
from pmmrec.rows import laid_out

FUSED, POOLED, LAYERS = "fused", ".pooled", ".layers"


def item_features(
    encoder: ItemEncoder,
    reader: ItemReader,
    domain_index: int,
    which: str,
    device: torch.device,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Vectors of all items: `fused`, those of a field, or of its backbone `FIELD.pooled` or `FIELD.layers`.

    The first two are `(N, D)`; what a backbone gives without projection is `(N, H)`, and its hidden states are
    `(N, T, H)`: what enters its lowest block and what leaves each, pooled. NaN where an item has none. Raises
    RecipeError where the model gives no such vectors, NotFiniteVectorError where a vector is not finite.
    """
    contents = reader.contents(domain_index)
    of_backbones = [f"{field}{kind}" for field in sorted(encoder.encoders) for kind in (POOLED, LAYERS)]
    kinds = [FUSED, *sorted(encoder.cls_fields), *of_backbones]
    if which not in kinds:
        raise RecipeError(f"the checkpoint gives no {which} vectors; ask for {' or '.join(kinds)}")
    vectors_N: NDArray[np.float32] | None = None
    num_done, num_items = 0, len(contents.same_as_N)
    for items in reader.catalogue(domain_index, ITEMS_AT_ONCE):
        with evaluating(encoder):
            vectors_U, has_U = _vectors(encoder, reader.to_device(items, device), which)
        rows = items.row_U.numpy()
        is_finite_U = torch.isfinite(vectors_U.flatten(1)).all(dim=1)
        wrong = torch.nonzero(~is_finite_U & has_U)
        if len(wrong):
            raise NotFiniteVectorError(int(rows[int(wrong[0])]), f"domain {domain_index}")
        if vectors_N is None:
            vectors_N = np.full((num_items, *vectors_U.shape[1:]), np.nan, dtype=np.float32)
        vectors_N[rows[has_U.cpu().numpy()]] = vectors_U[has_U].float().cpu().numpy()
        num_done += len(rows)
        if progress is not None:
            progress("items encoded", num_done, len(contents.distinct))
    if vectors_N is None:
        raise DataError(f"domain {domain_index}: no item can be read")
    return vectors_N[contents.same_as_N]


def _vectors(encoder: ItemEncoder, items: ItemInputs, which: str) -> tuple[Tensor, Tensor]:
    """The vectors of U items, and which of them have one."""
    if which.endswith((POOLED, LAYERS)):
        field, _, kind = which.rpartition(".")
        rows, backbone = items.fields[field], encoder.encoders[field]
        found = backbone.layers(rows) if kind == LAYERS[1:] else backbone.pooled(rows)
        return laid_out(found, rows.item_index_R, items.num_items), items.has_U[field]
    vectors = encoder(items)
    if which == FUSED:
        return vectors.fused_UD, vectors.is_readable_U
    return vectors.cls_UD[which], vectors.has_U[which]
