"""Export an index of the items of a platform, and measure its recall against exact search."""
# N items of the catalogue, C candidates, Q users of the sample, D width.

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from pmmrec.context import BuildContext
from pmmrec.contracts import ItemVectors
from pmmrec.data.domain import Domain
from pmmrec.data.histories import Histories
from pmmrec.errors import CheckpointError, DataError, RecipeError
from pmmrec.evaluation.eval_mode import evaluating
from pmmrec.evaluation.model_scores import alike_items
from pmmrec.evaluation.queries import queries_after
from pmmrec.evaluation.scan import SAFE, Scan, Sizes, inner_products
from pmmrec.faiss_library import faiss
from pmmrec.models.recommender import Recommender, packed, unpacked
from pmmrec.serving.candidates import EncodedItems
from pmmrec.serving.search import Floats, IndexSearch, Kind
from pmmrec.serving.service import (
    FAISS_FILE,
    FORMAT,
    INDEX_FILE,
    ITEMS_FILE,
    USER_ENCODER,
    IndexInfo,
    as_queries,
)
from pmmrec.users import user_encoders
from pmmrec.zoo import files
from pmmrec.zoo.about import about_parts
from pmmrec.zoo.checkpoint import Checkpoint
from pmmrec.zoo.parts import write_part

FLAT_UP_TO, HNSW_UP_TO = 200_000, 2_000_000  # items; beyond, exact search is slow and a graph is large
HNSW_LINKS, HNSW_BUILD = 32, 200
EFFORTS: dict[Kind, tuple[int, ...]] = {
    "flat": (1,),
    "hnsw": (64, 128, 256, 512, 1024, 2048),
    "ivf": (8, 16, 32, 64, 128, 256, 512),
}
GOOD_RECALL = 0.99
ROWS_OF_GROUP = 10_000


@dataclass(frozen=True)
class Recall:
    """The recall of an index against exact search, at one effort."""

    effort: int
    recall: float


@dataclass(frozen=True)
class Exported:
    """A written index and its recall."""

    folder: Path
    kind: Kind
    k: int
    num_candidates: int
    num_users: int
    tried: tuple[Recall, ...]  # the last one is the setting of the index

    @property
    def is_poor(self) -> bool:
        """Whether recall is below the target even at the highest effort."""
        return self.tried[-1].recall < GOOD_RECALL

    def lines(self) -> list[str]:
        """For people."""
        word = {"flat": "", "hnsw": "efSearch ", "ivf": "nprobe "}[self.kind]
        told = [
            f"recall@{self.k} of {self.kind}{f' at {word}{one.effort}' if word else ''}: {one.recall:.4f} of exact "
            f"search, {self.num_users:,} users"
            for one in self.tried
        ]
        return [*told, f"{self.folder}: {self.num_candidates:,} items"]


def kind_for(num_candidates: int) -> Kind:
    """The kind of index that suits this number of items."""
    if num_candidates <= FLAT_UP_TO:
        return "flat"
    return "hnsw" if num_candidates <= HNSW_UP_TO else "ivf"


def write_index(
    out: Path,
    checkpoint: Checkpoint,
    recommender: Recommender,
    encoded: EncodedItems,
    histories: Histories,
    *,
    kind: Kind | None,
    k: int,
    num_users: int,
    seed: int,
) -> Exported:
    """Write an index to `out`, whole or not at all.

    The inner product of a user's state (and a 1) with an item's key is the score of the model, including popularity,
    so the index ranks as the model does. Recall is measured on users drawn at random from the domain.

    Raises RecipeError if `out` exists or the score of the model is not an inner product, DataError if a score is not
    finite, MachineError without faiss.
    """
    faiss()
    readable = np.flatnonzero(encoded.contents.is_readable_N)
    kind = kind or kind_for(len(readable))
    if len(readable) < k:
        raise RecipeError(f"--k {k}: {encoded.domain.name} has only {len(readable)} items; choose k up to that")
    counts = encoded.domain.item_counts if recommender.scorer.reads_counts else None
    with evaluating(recommender):
        catalogue = recommender.catalogue(encoded.vectors_ND).items
    vectors_ND = packed(catalogue, recommender.item_encoder.streams).cpu()
    key_ND = _keys(checkpoint, recommender, vectors_ND, counts)
    streams = dict(recommender.item_encoder.streams)
    num_more, num_even = key_ND.shape[1] - (vectors_ND.shape[1] - sum(streams.values())), int(kind != "flat")
    key_ND = equally_long(key_ND) if num_even else key_ND
    key_CD = key_ND[torch.from_numpy(readable)].contiguous()
    query_QD = as_queries(_states(recommender, catalogue, histories, num_users, seed), num_more, num_even)
    _check_finite(encoded.domain.folder, query_QD, key_CD)
    index = _built(kind, key_CD.numpy())
    tried = tuple(_recalls(index, kind, query_QD, key_CD, alike_items(encoded.contents, counts)[readable], k))
    with files.writing(out, replace=False) as place:
        is_own_key = not (num_more + num_even or streams or recommender.scorer.unit_states)
        _write_items(place / ITEMS_FILE, encoded, vectors_ND, None if is_own_key else key_ND)
        faiss().write_index(index, str(place / FAISS_FILE))
        info = IndexInfo(
            format=FORMAT,
            kind=kind,
            width=vectors_ND.shape[1],
            streams=streams,
            unit_states=recommender.scorer.unit_states,
            num_more=num_more,
            num_even=num_even,
            effort=tried[-1].effort,
            num_items=len(vectors_ND),
            num_candidates=len(readable),
            user_encoder=_write_user_encoder(place, checkpoint),
            settings=checkpoint.model_config.user_encoder.model_dump(mode="json"),
            files={name: files.sha256_of(place / name) for name in (ITEMS_FILE, FAISS_FILE)},
            provenance={**_origin(checkpoint, encoded.domain), f"recall@{k}": tried[-1].recall, "users": len(query_QD)},
        )
        files.write_json(place / INDEX_FILE, info.model_dump(mode="json"))
    return Exported(out, kind, k, len(readable), len(query_QD), tried)


def _origin(checkpoint: Checkpoint, domain: Domain) -> dict[str, Any]:
    """Which checkpoint and domain an index is of."""
    return {
        "checkpoint": files.sha256_of(checkpoint.folder / files.INDEX_NAME),
        "domain": {"name": domain.name, "fingerprint": domain.fingerprint},
    }


def refuse_without_keys(checkpoint: Checkpoint, recommender: Recommender) -> None:
    """RecipeError for a model that no index can serve; known before its items are encoded."""
    config = checkpoint.model_config
    width = config.width + sum(recommender.item_encoder.streams.values())
    _keys(checkpoint, recommender, torch.zeros(1, width), None)


def _keys(
    checkpoint: Checkpoint, recommender: Recommender, vectors_ND: Tensor, counts: NDArray[np.int64] | None
) -> Tensor:
    """Keys `(N, D + more)` whose inner products with states are the scores. RecipeError for a scorer without keys.

    `counts`: interactions of each item; None for a scorer that does not use them.
    """
    if recommender.user_encoder.reads_users:
        raise RecipeError("index: serves histories, and this model knows users by id; use score instead")
    count_N = np.zeros(len(vectors_ND), np.int64) if counts is None else counts
    items = unpacked(vectors_ND, recommender.item_encoder.streams)
    key_ND = recommender.scorer.keys(items, torch.from_numpy(count_N))
    if key_ND is None:
        name = checkpoint.model_config.scorer.type
        raise RecipeError(f"scorer {name!r}: its scores are not inner products, as an index needs; use score instead")
    return key_ND


def equally_long(key_ND: Tensor) -> Tensor:
    """Append an entry to each key so that all norms equal the largest one: `(N, D + 1)`.

    Graphs and inverted lists are built on distances between keys. If norms differ, as they do with popularity, a graph
    by inner product only leads to the long keys, and no effort finds the others. With equal norms the nearest keys are
    those with the largest inner product. Scores do not change, because the matching entry of a query is 0. This is the
    reduction of Bachrach et al. (RecSys 2014), section 4.
    """
    square_N1 = torch.linalg.vector_norm(key_ND, dim=1, keepdim=True).square()
    return torch.cat((key_ND, (square_N1.max() - square_N1).sqrt()), dim=1)


def _check_finite(domain: Path, query_QD: Tensor, key_CD: Tensor) -> None:
    largest = float(query_QD.norm(dim=1).max()) * float(key_CD.norm(dim=1).max())
    if not largest < SAFE:
        raise DataError(f"{domain}: scores of its users reach {largest}; they must be finite, has the model diverged?")


def _states(
    recommender: Recommender, catalogue: ItemVectors, histories: Histories, num_users: int, seed: int
) -> Tensor:
    """States of users drawn at random from the domain, as keys want them; on the CPU."""
    num_users = min(num_users, histories.num_users)
    drawn = np.sort(np.random.default_rng(seed).choice(histories.num_users, num_users, replace=False))
    parts: list[Tensor] = []
    device = next((tensor.device for tensor in recommender.parameters()), torch.device("cpu"))
    with evaluating(recommender):
        for history in histories.chunks(1024, drawn):
            items = history.item_H.astype(np.int64)
            query = queries_after(recommender.user_encoder, catalogue, history.offset_B, items, device)
            parts.append(recommender.scorer.asked(query.hidden_KD).cpu())
    return torch.cat(parts)


def _built(kind: Kind, keys: Floats) -> Any:
    library, (num_keys, width) = faiss(), keys.shape
    if kind == "flat":
        index = library.IndexFlatIP(width)
    elif kind == "hnsw":
        index = library.IndexHNSWFlat(width, HNSW_LINKS, library.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = HNSW_BUILD
    else:
        num_lists = max(1, min(num_keys // 39, int(4 * math.sqrt(num_keys))))  # FAISS asks for 39 points per list
        coarse = library.IndexFlatIP(width)
        index = library.IndexIVFFlat(coarse, width, num_lists, library.METRIC_INNER_PRODUCT)
        index.train(keys)
    index.add(keys)
    return index


def _recalls(
    index: Any, kind: Kind, query_QD: Tensor, key_CD: Tensor, alike_C: NDArray[np.int64], k: int
) -> Iterator[Recall]:
    """Recall at rising effort, until it is good or the efforts are exhausted.

    Equal items have equal scores, so either of them counts as found.
    """
    sizes = Sizes.on(key_CD.device)
    scan = Scan(inner_products(key_CD), len(key_CD), k, sizes, key_CD.device)
    nothing = np.empty(0, dtype=np.int64)
    exact = torch.cat([scan.best(some, nothing, nothing, None)[1] for some in torch.split(query_QD, sizes.users)])
    for effort in EFFORTS[kind]:
        found, _ = IndexSearch.of(index, kind, effort, key_CD.numpy()).best(query_QD.numpy(), k)
        recall = float(np.mean([_shared(alike_C, one, other) for one, other in zip(exact.numpy(), found, strict=True)]))
        yield Recall(effort, recall)
        if recall >= GOOD_RECALL:
            return


def _shared(alike_C: NDArray[np.int64], exact: NDArray[np.int64], found: NDArray[np.int64]) -> float:
    """Share of an exact list that another list contains, where equal items stand for one another."""
    kinds, wanted = np.unique(alike_C[exact], return_counts=True)
    given = np.array([(alike_C[found[found >= 0]] == one).sum() for one in kinds])
    return float(np.minimum(wanted, given).sum() / len(exact))


def _write_items(path: Path, encoded: EncodedItems, vectors_ND: Tensor, key_ND: Tensor | None) -> None:
    columns = {"item_id": encoded.domain.item_ids, "vector": _lists(vectors_ND)}
    if key_ND is not None:
        columns["key"] = _lists(key_ND)
    columns["is_candidate"] = pa.array(encoded.contents.is_readable_N)
    pq.write_table(pa.table(columns), path, row_group_size=ROWS_OF_GROUP)


def _lists(vectors_ND: Tensor) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.numpy().ravel()), vectors_ND.shape[1])


def _write_user_encoder(place: Path, checkpoint: Checkpoint) -> Any:
    """Write the user encoder as a part of its own, with adapters merged."""
    config = checkpoint.model_config
    part_class: Any = user_encoders.part_class(config.user_encoder)
    part = part_class(config.user_encoder, BuildContext(config.width))
    if USER_ENCODER not in checkpoint.parts:
        raise CheckpointError(f"{checkpoint.folder}: holds no {USER_ENCODER}")
    state = checkpoint.part_state(USER_ENCODER, part)
    about = about_parts(config, {USER_ENCODER: part})
    return write_part(place, USER_ENCODER, part, state, about[USER_ENCODER])
