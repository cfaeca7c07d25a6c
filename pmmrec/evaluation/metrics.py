"""Compute HR, Recall, NDCG, MRR and MAP of each query from the ranks of its targets."""
# T targets of all queries, Q queries. Ranks may have further dimensions in front, such as seeds.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CUTOFFS = (10, 20, 50)
MEASURES = ("hr", "ndcg", "mrr")
OF_SEVERAL = ("recall", "map")  # with one target, recall is hr and map is mrr
FULL_MRR, AUC = "mrr", "auc"  # without a cut-off
METRIC_PATTERN = rf"^({'|'.join((*MEASURES, *OF_SEVERAL))})@[1-9][0-9]{{0,8}}$|^({FULL_MRR}|{AUC})$"


@dataclass(frozen=True)
class Measured:
    """The metrics to compute: every measure at each cut-off, and those of `also`."""

    cutoffs: tuple[int, ...] = CUTOFFS
    also: tuple[str, ...] = ()

    @property
    def reads_ties(self) -> bool:
        """Whether a metric needs to know which candidates tie with a target."""
        return AUC in self.also

    def names(self, *, of_several: bool) -> Iterator[str]:
        """Names of the metrics; `of_several`: some query has several targets."""
        measures = (*MEASURES, *OF_SEVERAL) if of_several else MEASURES
        at_cutoffs = [metric_name(measure, cutoff) for cutoff in self.cutoffs for measure in measures]
        yield from dict.fromkeys((*at_cutoffs, *self.also))


USUAL = Measured()


def metric_name(measure: str, cutoff: int) -> str:
    """The name of a metric in logs, files and recipes, such as `hr@10`."""
    return f"{measure}@{cutoff}"


def query_metrics(
    rank_T: Tensor,
    query_T: Tensor | None = None,
    measured: Measured = USUAL,
    num_candidates_T: Tensor | None = None,
    num_tied_T: Tensor | None = None,
) -> dict[str, Tensor]:
    """Each metric of each query, `(Q,)` float64 in 0..1, from the ranks of its targets (1 is best, 0 a miss).

    `query_T`: the query of each target, whose targets have different ranks; queries come in rising order. None: each
    target is a query of its own.

        HR@k      1 if a target is within the first k ranks
        Recall@k  share of the targets within the first k ranks
        NDCG@k    sum of 1 / log2(rank + 1) over targets within the first k ranks, divided by its largest possible
                  value: that of min(targets, k) targets at the top
        MRR@k     1 / rank of the best target if that is within the first k ranks, else 0; `mrr`: without a cut-off
        MAP@k     sum, over targets within the first k ranks, of (targets up to that rank) / rank, divided by the
                  number of targets
        AUC       share of the pairs of a target and another candidate in which the target scores higher, where a tie
                  counts one half; needs `num_candidates_T`, the number of candidates of the target's query, those
                  targets included that are no misses, and `num_tied_T`, of the others those that tie with the target
                  and so rank above it (None: none). A miss ranks below all others; without others AUC is 1
    """
    if query_T is None:
        query_T = torch.arange(rank_T.shape[-1])
    _, place_T, size_Q = torch.unique(query_T, return_inverse=True, return_counts=True)
    targets = _Targets(rank_T, place_T, size_Q, num_candidates_T, num_tied_T)
    return {name: targets.metric(name) for name in measured.names(of_several=bool((size_Q > 1).any()))}


@dataclass(frozen=True)
class _Targets:
    """The ranks of all targets, and which query each belongs to."""

    rank_T: Tensor
    place_T: Tensor  # of the target's query, 0..Q-1
    size_Q: Tensor  # targets of each query
    num_candidates_T: Tensor | None
    num_tied_T: Tensor | None

    def metric(self, name: str) -> Tensor:
        measure, _, cutoff = name.partition("@")
        is_hit_T = self.rank_T >= 1
        if cutoff:
            is_hit_T &= self.rank_T <= int(cutoff)
        rank_T = self.rank_T.double().clamp(min=1)
        if measure in ("hr", "mrr"):
            gain_T = torch.ones_like(rank_T) if measure == "hr" else 1 / rank_T
            return self._largest(torch.where(is_hit_T, gain_T, 0.0))
        if measure == AUC:
            return self._auc(is_hit_T)
        if measure == "recall":
            return self._sums(is_hit_T.double()) / self.size_Q
        if measure == "ndcg":
            return self._sums(torch.where(is_hit_T, _gain(rank_T), 0.0)) / self._ideal(int(cutoff))
        return self._sums(torch.where(is_hit_T, self._targets_up_to() / rank_T, 0.0)) / self.size_Q

    def _auc(self, is_hit_T: Tensor) -> Tensor:
        if self.num_candidates_T is None:
            raise ValueError("AUC needs the number of candidates of each query")
        num_others_T = self.num_candidates_T - self._sums(is_hit_T.double())[..., self.place_T]
        ahead_T = self.rank_T - self._targets_up_to() - (0 if self.num_tied_T is None else self.num_tied_T / 2)
        ahead_T = torch.where(is_hit_T, ahead_T, num_others_T)
        return 1 - self._sums(ahead_T / num_others_T.clamp(min=1)) / self.size_Q

    def _sums(self, values_T: Tensor) -> Tensor:
        return values_T.new_zeros(*values_T.shape[:-1], len(self.size_Q)).index_add_(-1, self.place_T, values_T)

    def _largest(self, values_T: Tensor) -> Tensor:
        place_T = self.place_T.expand_as(values_T)
        return values_T.new_zeros(*values_T.shape[:-1], len(self.size_Q)).scatter_reduce_(-1, place_T, values_T, "amax")

    def _ideal(self, cutoff: int) -> Tensor:
        """The DCG of a query whose targets are all at the top, `(Q,)`."""
        most = min(int(self.size_Q.max()), cutoff)
        dcg = torch.cumsum(_gain(torch.arange(1, most + 1, dtype=torch.float64)), dim=0)
        return dcg[self.size_Q.clamp(max=most) - 1]

    def _targets_up_to(self) -> Tensor:
        """For each target, how many targets of its query have its rank or a better one; misses are never counted."""
        ranks = self.rank_T.reshape(-1, self.rank_T.shape[-1])
        last = int(ranks.max()) + 1
        keys = self.place_T * (last + 1) + torch.where(ranks >= 1, ranks, last)
        first_Q = torch.cat([torch.zeros(1, dtype=torch.int64), self.size_Q.cumsum(0)[:-1]])
        order = keys.argsort(dim=-1)
        place = torch.empty_like(order).scatter_(-1, order, torch.arange(order.shape[-1]).expand_as(order))
        return (place - first_Q[self.place_T] + 1).reshape(self.rank_T.shape).double()


def _gain(rank: Tensor) -> Tensor:
    return 1 / torch.log2(rank + 1)


def mean_metrics(rank_T: Tensor, query_T: Tensor | None = None, measured: Measured = USUAL) -> dict[str, float]:
    """The mean of each metric over the queries, in 0..1."""
    return {name: values_Q.mean().item() for name, values_Q in query_metrics(rank_T, query_T, measured).items()}
