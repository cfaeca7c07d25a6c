"""Measure how well a model ranks the whole catalogue for the users of a holdout."""
# Q queries, T targets, N items of the catalogue, U items of one chunk, D width.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pmmrec.data.items import ItemReader
from pmmrec.data.splits import Holdout, HoldoutName, Split
from pmmrec.errors import DataError
from pmmrec.evaluation.blend import Blend
from pmmrec.evaluation.eval_mode import evaluating
from pmmrec.evaluation.metrics import USUAL, Measured, query_metrics
from pmmrec.evaluation.model_scores import model_scorer
from pmmrec.evaluation.ranking import Ranks, ScoreRows, Seen, rank_targets
from pmmrec.evaluation.share import SINGLE_PROCESS, WorkerGroup, turns
from pmmrec.evaluation.significance import Interval, mean_interval, over_users
from pmmrec.models.recommender import Recommender, packed
from pmmrec.progress import Progress

ITEMS_AT_ONCE = 256
ROWS_AT_ONCE = 1 << 18
SCORES_AT_ONCE = 1 << 25  # users x items of one chunk: 128 MB of float32


class NotFiniteVectorError(DataError):
    """The vector of an item holds NaN or infinity."""

    def __init__(self, row: int, where: str, item: str | None = None) -> None:
        """`item`: its id, where that is known."""
        named = row if item is None else repr(item)
        super().__init__(f"{where}: the vector of item {named} is not finite; has the model diverged?")
        self.row = row


@dataclass(frozen=True)
class Evaluation:
    """What one model did on one holdout."""

    ranks: Ranks
    measured: Measured = USUAL

    @cached_property
    def metrics(self) -> Mapping[str, float]:
        """Means over users, 0..1, and `seen_target`: the share no model can hit."""
        means = {name: float(values_Q.mean()) for name, values_Q in self.by_user.items()}
        return means | {"seen_target": self.ranks.seen_share}

    @cached_property
    def intervals(self) -> Mapping[str, Interval]:
        """Intervals of the same metrics over users; drawing them takes longer than ranking a small domain."""
        return {name: mean_interval(values_Q) for name, values_Q in self.by_user.items()}

    def where(self, is_in_T: NDArray[np.bool_]) -> Evaluation:
        """The same evaluation of the selected targets alone."""
        return replace(self, ranks=self.ranks.where(is_in_T))

    @property
    def by_user(self) -> dict[str, NDArray[np.float64]]:
        """Values of each user whose means are the metrics, `(Q,)`, in the order of users."""
        ranks = self.ranks
        values = query_metrics(ranks.rank, ranks.query, self.measured, ranks.num_candidates, ranks.num_tied)
        user_Q = self.ranks.user_of_query.numpy()
        return {name: over_users(values_Q, user_Q) for name, values_Q in values.items()}


def evaluate_model(
    recommender: Recommender,
    reader: ItemReader,
    domain_index: int,
    split: Split,
    which: HoldoutName | Holdout,
    device: torch.device | str,
    seen: Seen = "exclude",
    *,
    measured: Measured = USUAL,
    vectors_ND: Tensor | None = None,
    blend: Blend | None = None,
    group: WorkerGroup = SINGLE_PROCESS,
    progress: Progress | None = None,
) -> Evaluation:
    """Encode the catalogue once, rank it for every query of the holdout, and take the means with their intervals.

    `vectors_ND`: the vectors of `encode_catalogue`, where they are known. `blend`: what it adds to scores. A `group`
    shares the work, chunk by chunk as one process would cut it: every process calls this, and gets to the bit what one
    process alone would.
    """
    holdout = which if isinstance(which, Holdout) else split.holdout(which)
    num_items = split.domain.num_items
    if not holdout.num_queries:
        folder, name = split.domain.folder, holdout.name
        raise DataError(f"{folder}: {split.no_query}, so there is no {name} target to rank")
    if vectors_ND is None:
        rules: dict[str, Any] = {"chunk": ITEMS_AT_ONCE, "device": device, "group": group, "progress": progress}
        vectors_ND = encode_catalogue(recommender, reader, domain_index, num_items, **rules)
    contents = reader.contents(domain_index)
    first_user = reader.first_user(domain_index)
    score: ScoreRows = model_scorer(recommender, vectors_ND, holdout, split.train_counts, device, contents, first_user)
    if blend is not None:
        score = blend.added_to(score, holdout)
    chunk, is_readable_N = users_at_once(num_items), contents.is_readable_N
    ranks = rank_targets(
        *(holdout, num_items, score),
        seen=seen,
        chunk=chunk,
        is_readable_N=is_readable_N,
        counts_ties=measured.reads_ties,
        group=group,
        progress=progress,
    )
    return Evaluation(ranks, measured)


def users_at_once(num_items: int) -> int:
    """How many users to score at a time over a catalogue of this size."""
    return max(1, min(1024, SCORES_AT_ONCE // max(1, num_items)))


def encode_catalogue(
    recommender: Recommender,
    reader: ItemReader,
    domain_index: int,
    num_items: int,
    *,
    chunk: int,
    device: torch.device | str,
    precision: torch.dtype = torch.float32,
    group: WorkerGroup = SINGLE_PROCESS,
    progress: Progress | None = None,
) -> Tensor:
    """Vectors of all items of a domain, as `packed` lays them out, `(N, D)` float32; each content is encoded once.

    Items that are alike have the very same vector, whatever chunk and padding they would have met; those with nothing
    to read have zeros. `precision`: bfloat16 or float16 run the encoders under autocast. Modes of the model are as
    before afterwards. A `group` shares the chunks; all of it must call this, and gets all vectors. Raises DataError
    when the reader knows another number of items or a vector is not finite.
    """
    contents = reader.contents(domain_index)
    if len(contents.same_as_N) != num_items:
        known = len(contents.same_as_N)
        raise DataError(
            f"domain {domain_index}: the reader knows {known} items, not {num_items}; read the domain to rank"
        )
    vectors_ND, rows, encoder = torch.empty(0), reader.in_order(domain_index), recommender.item_encoder
    autocast = torch.autocast(torch.device(device).type, dtype=precision, enabled=precision != torch.float32)
    with evaluating(recommender), autocast:
        for place, is_own in turns(-(-len(rows) // chunk), group):
            some = rows[place * chunk : (place + 1) * chunk]
            items = reader.read(np.full(len(some), domain_index), some)
            vectors_UD = packed(encoder(reader.to_device(items, device)), encoder.streams)
            if not len(vectors_ND):
                vectors_ND = torch.zeros(num_items, vectors_UD.shape[1], device=device)
            if is_own:
                vectors_ND[items.row_U.to(device)] = vectors_UD.float()
            if progress is not None:
                progress("items encoded", min((place + 1) * chunk, len(rows)), len(rows))
    vectors_ND = group.summed(vectors_ND)  # where one has a vector all others have zeros, so nothing is rounded
    for start in range(0, num_items, ROWS_AT_ONCE):  # in place: the first of those that are alike stays as it is
        end = start + ROWS_AT_ONCE
        vectors_ND[start:end] = vectors_ND[torch.from_numpy(contents.same_as_N[start:end]).to(device)]
        is_broken_U = ~torch.isfinite(vectors_ND[start:end]).all(dim=1)
        if is_broken_U.any():
            row = start + int(torch.nonzero(is_broken_U)[0])
            raise NotFiniteVectorError(row, f"domain {domain_index}")
    return vectors_ND
