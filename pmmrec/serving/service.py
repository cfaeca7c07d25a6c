"""Recommend to one user at a time from an exported index of items; no item encoder is needed."""
# N items of the catalogue, C candidates in the index, D width, H items of a history.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from pmmrec.context import BuildContext
from pmmrec.errors import CheckpointError, DataError, RecipeError
from pmmrec.evaluation.eval_mode import evaluating
from pmmrec.evaluation.queries import queries_after
from pmmrec.evaluation.ranking import Seen, check_seen
from pmmrec.faiss_library import faiss
from pmmrec.homes import expanded
from pmmrec.models import as_asked
from pmmrec.models.recommender import unpacked
from pmmrec.serving.search import Floats, IndexSearch, Kind
from pmmrec.settings import Config, validate
from pmmrec.users import UserEncoder, user_encoders
from pmmrec.zoo import files
from pmmrec.zoo.index import InsidePath, PartEntry, Sha256
from pmmrec.zoo.parts import fill, misfits, read_part

FORMAT = 1
INDEX_FILE, ITEMS_FILE, FAISS_FILE, USER_ENCODER = "index.json", "items.parquet", "items.faiss", "user_encoder"


class IndexInfo(Config):
    """The content of `index.json`."""

    format: Literal[1]
    kind: Kind
    width: int = Field(gt=0)  # of all vectors of an item
    streams: dict[str, int] = {}  # those beside an item's own vector, and their widths
    unit_states: bool = False  # whether a query is a state divided by its norm
    num_more: int = Field(ge=0, le=1)  # 1: a key ends in a prior, and a query in a 1
    num_even: int = Field(0, ge=0, le=1)  # 1: then an entry that makes all key norms equal, and a 0 in a query
    effort: int = Field(ge=1)  # efSearch of hnsw, nprobe of ivf; 1 for flat
    num_items: int = Field(ge=1)
    num_candidates: int = Field(ge=1)  # the items that the model can read
    user_encoder: PartEntry
    settings: dict[str, Any]  # of the user encoder
    files: dict[InsidePath, Sha256]
    provenance: dict[str, Any] = {}  # checkpoint, domain, and recall against exact search

    @property
    def state_width(self) -> int:
        """Width of an item's own vector and of user states."""
        return self.width - sum(self.streams.values())


@dataclass(frozen=True)
class ItemIndex:
    """An index that recommends items. Open one with `load_index`."""

    info: IndexInfo
    item_ids: pa.Array
    vectors_ND: Tensor
    item_of_C: NDArray[np.int64]  # item row of each entry of the index
    found_by: IndexSearch
    user_encoder: UserEncoder

    def encode_user(self, history: Sequence[str]) -> Floats:
        """The query vector of `history` (item ids, oldest first), to compare with keys by inner product: `(D,)`.

        It is longer by one if popularity is part of the score, and by one if the index is not flat. Raises DataError
        for an item that the index lacks, RecipeError for an empty history.
        """
        return self._query(self._rows(history))

    def recommend(self, history: Sequence[str], k: int = 10, *, seen: Seen = "exclude") -> list[tuple[str, float]]:
        """The best k items after `history` (item ids, oldest first) as (item id, score), best first.

        Equal scores are ordered by item row. The list is shorter if fewer candidates are left. Raises what
        `encode_user` raises, and RecipeError if k is out of range.
        """
        check_seen(seen)
        num_items = self.info.num_items
        if not 1 <= k <= num_items:
            raise RecipeError(f"k: {k} items cannot be recommended from a catalogue of {num_items}; choose 1 to that")
        rows = self._rows(history)
        found = self.search(self._query(rows)[None], k + (len(set(rows.tolist())) if seen == "exclude" else 0))
        items, scores = found[0][0], found[1][0]
        is_listed = items >= 0
        if seen == "exclude":
            is_listed &= ~np.isin(items, rows)
        items, scores = items[is_listed][:k], scores[is_listed][:k]
        ids = self.item_ids.take(pa.array(items)).to_pylist()
        return list(zip(ids, scores.tolist(), strict=True))

    def search(self, queries: Floats, k: int) -> tuple[NDArray[np.int64], Floats]:
        """Item rows and scores `(Q, k)` for queries of `encode_user`, best first, equal scores by row.

        The row is -1 if the index finds no more.
        """
        entries, scores = self.found_by.best(queries, min(k, self.info.num_candidates))
        return np.where(entries >= 0, self.item_of_C[entries], -1), scores

    def _rows(self, history: Sequence[str]) -> NDArray[np.int64]:
        if not history:
            raise RecipeError("history: is empty; give one item id or more, oldest first")
        texts = [item if isinstance(item, str) else None for item in history]
        found = pc.index_in(pa.array(texts, pa.large_string()), value_set=self.item_ids)
        if found.null_count:
            unknown = next(item for item, row in zip(history, found.to_pylist(), strict=True) if row is None)
            raise DataError(f"history: {unknown!r} is not an item of this index; ids are strings, exactly as imported")
        rows: NDArray[np.int64] = found.to_numpy(zero_copy_only=False).astype(np.int64)
        return rows

    def _query(self, rows: NDArray[np.int64]) -> Floats:
        offsets = np.array([0, len(rows)])
        with evaluating(self.user_encoder):
            items = unpacked(self.vectors_ND, self.info.streams)
            queried = queries_after(self.user_encoder, items, offsets, rows, self.vectors_ND.device)
        asked_1D = as_asked(queried.hidden_KD, unit_states=self.info.unit_states)
        query: Floats = as_queries(asked_1D, self.info.num_more, self.info.num_even)[0].numpy()
        return query


def load_index(folder: Path | str) -> ItemIndex:
    """Open an index written by `pmmrec index`, on the CPU; every file is checked against its hash.

    Raises CheckpointError if a file is missing, changed or inconsistent with the others, MachineError without faiss.
    """
    folder = expanded(Path(folder))
    library = faiss()
    info = _read_info(folder)
    problems = files.changes(folder, {**info.files, **_below(info.user_encoder)})
    if problems:
        raise CheckpointError(f"{folder}: {'; '.join(problems)}; take a whole copy of the index, or write it again")
    table = pq.read_table(folder / ITEMS_FILE)
    vectors = _matrix(table["vector"], info.width)
    item_of_C = np.flatnonzero(table["is_candidate"].to_numpy())
    width_of_key = info.state_width + info.num_more + info.num_even
    index = library.read_index(str(folder / FAISS_FILE))
    fits = len(table) == info.num_items and index.d == width_of_key
    if not fits or not len(item_of_C) == index.ntotal == info.num_candidates:
        raise CheckpointError(f"{folder}: {ITEMS_FILE} and {FAISS_FILE} do not fit {INDEX_FILE}; write the index again")
    keys = _matrix(table["key"], width_of_key) if "key" in table.column_names else vectors
    return ItemIndex(
        info=info,
        item_ids=table["item_id"].cast(pa.large_string()).combine_chunks(),
        vectors_ND=torch.from_numpy(vectors.copy()),
        item_of_C=item_of_C,
        found_by=IndexSearch.of(index, info.kind, info.effort, keys),
        user_encoder=_read_user_encoder(folder, info),
    )


def _matrix(column: pa.ChunkedArray, width: int) -> Floats:
    matrix: Floats = column.combine_chunks().flatten().to_numpy().reshape(-1, width)
    return matrix


def as_queries(state_QD: Tensor, num_more: int, num_even: int) -> Tensor:
    """Extend states to match the keys: a 1 for the prior, a 0 for the entry that makes key norms equal."""
    query_QD = torch.nn.functional.pad(state_QD, (0, num_more), value=1.0)
    return torch.nn.functional.pad(query_QD, (0, num_even))


def _read_info(folder: Path) -> IndexInfo:
    path = folder / INDEX_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder}: not an index: it holds no {INDEX_FILE}; `pmmrec index` writes one")
    tree = files.read_json(path)
    found = tree.get("format") if isinstance(tree, dict) else None
    if found != FORMAT:
        raise CheckpointError(f"{path}: format {found!r} is not known; this pmmrec reads format {FORMAT}")
    try:
        return validate(IndexInfo, tree, str(path))
    except RecipeError as error:
        raise CheckpointError(str(error)) from error


def _below(entry: PartEntry) -> dict[str, str]:
    return {f"{entry.folder}/{name}": digest for name, digest in entry.files.items()}


def _read_user_encoder(folder: Path, info: IndexInfo) -> UserEncoder:
    part_class: Any = user_encoders.part_class(config := user_encoders.config(info.settings))
    encoder: UserEncoder = part_class(config, BuildContext(info.state_width))
    state = read_part(folder / info.user_encoder.folder, encoder)
    if problems := misfits(USER_ENCODER, state, encoder):
        raise CheckpointError("\n".join([f"{folder}: the user encoder does not fit its settings", *problems]))
    fill(encoder, state)
    return encoder.eval()
