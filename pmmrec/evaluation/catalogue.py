"""Measure how well a model ranks the whole catalogue for the users of a holdout."""
# Q queries, q queries of one chunk, N items of the catalogue, U items of one chunk, L inputs, D width.

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pmmrec.data.contents import Contents
from pmmrec.data.items import ItemReader
from pmmrec.data.splits import Holdout, HoldoutName, Split
from pmmrec.errors import DataError
from pmmrec.evaluation.metrics import USUAL, Measured, query_metrics
from pmmrec.evaluation.queries import queries_after
from pmmrec.evaluation.ranking import Ranks, Rows, ScoreRows, Seen, rank_targets
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
        means = {name: float(values_Q.mean()) for name, values_Q in self._by_user.items()}
        return means | {"seen_target": self.ranks.seen_share}

    @cached_property
    def intervals(self) -> Mapping[str, Interval]:
        """Intervals of the same metrics over users; drawing them takes longer than ranking a small domain."""
        return {name: mean_interval(values_Q) for name, values_Q in self._by_user.items()}

    def where(self, is_in_T: NDArray[np.bool_]) -> Evaluation:
        """The same evaluation of the selected targets alone."""
        return replace(self, ranks=self.ranks.where(is_in_T))

    @property
    def _by_user(self) -> dict[str, NDArray[np.float64]]:
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
    precision: torch.dtype = torch.float32,
    group: WorkerGroup = SINGLE_PROCESS,
    progress: Progress | None = None,
) -> Evaluation:
    """Encode the catalogue once, rank it for every query of the holdout, and take the means with their intervals.

    A `group` shares the work, chunk by chunk as one process would cut it: every process calls this, and gets to the bit
    what one process alone would.
    """
    holdout = which if isinstance(which, Holdout) else split.holdout(which)
    num_items = split.domain.num_items
    if not holdout.num_queries:
        folder, name = split.domain.folder, holdout.name
        raise DataError(f"{folder}: {split.no_query}, so there is no {name} target to rank")
    rules: dict[str, Any] = {"chunk": ITEMS_AT_ONCE, "device": device, "precision": precision}
    vectors_ND = encode_catalogue(recommender, reader, domain_index, num_items, **rules, group=group, progress=progress)
    contents = reader.contents(domain_index)
    first_user = reader.first_user(domain_index)
    score = model_scorer(recommender, vectors_ND, holdout, split.train_counts, device, contents, first_user)
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
    vectors_ND, rows = torch.empty(0), reader.in_order(domain_index)
    autocast = torch.autocast(torch.device(device).type, dtype=precision, enabled=precision != torch.float32)
    with evaluating(recommender), autocast:
        for place, is_own in turns(-(-len(rows) // chunk), group):
            some = rows[place * chunk : (place + 1) * chunk]
            items = reader.read(np.full(len(some), domain_index), some)
            vectors_UD = packed(recommender.item_encoder(reader.to_device(items, device)))
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


def model_scorer(
    recommender: Recommender,
    vectors_ND: Tensor,
    holdout: Holdout,
    counts: Rows,
    device: torch.device | str,
    contents: Contents | None = None,
    first_user: int = 0,
) -> ScoreRows:
    """Scores of the model for slices of the holdout's queries, `(q, N)` float32 on `device`.

    `counts`: how often each item was touched in what may be known, `(N,)`. With `contents`, alike items tie exactly.
    `first_user`: the place of the domain's first user among those of all domains of the model.
    """
    vectors_ND, users = vectors_ND.to(device), first_user + holdout.user_index
    histories = (holdout.history_offsets, holdout.history_items)
    return history_scorer(recommender, vectors_ND, *histories, counts, contents, users)


def history_scorer(
    recommender: Recommender,
    vectors_ND: Tensor,
    offsets: Rows,
    items: Rows,
    counts: Rows,
    contents: Contents | None = None,
    users: Rows | None = None,
) -> ScoreRows:
    """Scores of all items after the histories items[offsets[i]:offsets[i+1]], cut to the model's most recent inputs.

    Every chunk is padded to one length, so that a user's scores do not depend on who else is in it. `counts`: how often
    each item was touched in what may be known, `(N,)`. With `contents`, alike items tie exactly: a product of matrices
    may round equal columns differently.
    """
    alike_N, contents = None, as_ranked(contents, recommender)
    if contents is not None:
        alike = alike_items(contents, counts if recommender.scorer.reads_counts else None)
        if (alike != np.arange(len(alike))).any():
            alike_N = torch.from_numpy(alike).to(vectors_ND.device)
    count_N = torch.from_numpy(np.asarray(counts)).to(vectors_ND.device)
    scorer = recommender.scorer
    with evaluating(recommender):
        catalogue = recommender.catalogue(vectors_ND)
    num_inputs = min(recommender.user_encoder.max_inputs, int(np.diff(offsets).max(initial=1)))

    def score(rows: slice) -> Tensor:
        some = np.asarray(offsets[rows.start : rows.stop + 1]).astype(np.int64)
        with evaluating(recommender):
            query = queries_after(
                recommender.user_encoder,
                catalogue.items,
                some - some[0],
                items[some[0] : some[-1]],
                vectors_ND.device,
                keeps_histories=scorer.reads_histories,
                num_inputs=num_inputs,
                user_index_B=None if users is None else users[rows].astype(np.int64),
                user_MD=catalogue.user_MD,
            )
            score_qN = scorer.ranked(recommender.score(query, catalogue.items), count_N).float()
        return score_qN if alike_N is None else score_qN[:, alike_N]

    return score


def as_ranked(contents: Contents | None, recommender: Recommender) -> Contents | None:
    """The contents as a ranking compares items: a graph tells equal items apart, by who touched them."""
    if contents is None or not recommender.propagation.reads_graph:
        return contents
    return Contents(np.arange(len(contents.same_as_N)), contents.is_readable_N)


def alike_items(contents: Contents, counts: Rows | None) -> NDArray[np.int64]:
    """For each item the first that no scorer can tell from it, `(N,)`; `counts` where scores read them."""
    if counts is None:
        return contents.same_as_N
    key_N = contents.same_as_N * (int(counts.max(initial=0)) + 1) + counts
    _, first, place_N = np.unique(key_N, return_index=True, return_inverse=True)
    alike_N: NDArray[np.int64] = first[place_N]
    return alike_N


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards each module is in the mode it was in."""
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():  # inference_mode would hand out tensors that a user's own training cannot touch
            yield
    finally:
        for module, mode in was_training.items():
            module.training = mode
