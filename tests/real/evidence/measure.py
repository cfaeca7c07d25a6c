"""Compute metrics with intervals by stratum from the ranks of several seeds."""
# M seeds, Q queries of a holdout, T targets of all queries.

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pmmrec.data.splits import HoldoutName, Split
from pmmrec.evaluation.baselines import BASELINES, Baseline
from pmmrec.evaluation.catalogue import users_at_once
from pmmrec.evaluation.metrics import query_metrics
from pmmrec.evaluation.ranking import rank_targets, read_ranks, write_ranks
from pmmrec.evaluation.scenarios import STRATA, stratum_mask
from pmmrec.evaluation.significance import difference_interval, mean_interval, sign_flip_p, t_test_p, wilcoxon_p
from pmmrec.evaluation.tuned_baselines import TUNED_BASELINES
from tests.real.evidence.cells import Chosen, Figures, digest_of
from tests.real.evidence.plan import slug

TESTS = {"sign flip": sign_flip_p, "t-test": t_test_p, "Wilcoxon": wilcoxon_p}


class Targets:
    """The test or validation targets of a domain, and their strata by the training part of all users.

    Where some user has several targets, there is the stratum of all alone.
    """

    def __init__(self, split: Split, which: HoldoutName = "test") -> None:
        self._split = split
        self._holdout = split.holdout(which)
        size_Q = np.diff(self._holdout.target_offsets)
        self._query_T = torch.from_numpy(np.repeat(np.arange(len(size_Q)), size_Q))
        is_in = {"all": np.ones(len(size_Q), dtype=np.bool_)}
        if (size_Q == 1).all():
            is_in = {name: stratum_mask(split, self._holdout, name) for name in STRATA}
        self._is_in = {name: torch.from_numpy(is_in_Q) for name, is_in_Q in is_in.items()}

    def ranks(self, files: Sequence[Path]) -> Tensor:
        """Read ranks `(M, T)` from the files of M seeds. DataError if they are of other users or targets."""
        domain = self._split.domain
        return torch.stack([read_ranks(file, self._holdout, domain.user_ids, domain.item_ids) for file in files])

    def figures(self, rank_MT: Tensor) -> dict[str, Figures]:
        """Means and intervals of the metrics over users and seeds, by stratum."""
        metrics = query_metrics(rank_MT, self._query_T)
        return {name: _figures(metrics, is_in_Q) for name, is_in_Q in self._is_in.items()}

    def digest(self, rank_MT: Tensor) -> str:
        """The `digest_of` the metrics of these ranks."""
        metrics = query_metrics(rank_MT, self._query_T)
        return digest_of({name: _means(metrics, is_in_Q) for name, is_in_Q in self._is_in.items()})

    def difference(self, rank_a_MT: Tensor, rank_b_MT: Tensor) -> dict[str, Figures]:
        """First minus second, paired over users; a system without training has one row for all seeds."""
        a, b = (query_metrics(rank_MT, self._query_T) for rank_MT in (rank_a_MT, rank_b_MT))
        return {name: _difference(a, b, is_in_Q) for name, is_in_Q in self._is_in.items()}

    def p_values(self, metrics: Sequence[str], rank_a_MT: Tensor, rank_b_MT: Tensor) -> dict[str, dict[str, float]]:
        """By metric, the p-value of each test that both systems are equal, paired over users; seeds are averaged."""
        a, b = (query_metrics(rank_MT, self._query_T) for rank_MT in (rank_a_MT, rank_b_MT))
        apart = {name: a[name].mean(dim=0) - b[name].mean(dim=0) for name in metrics}
        return {name: {test: p_of(apart_Q) for test, p_of in TESTS.items()} for name, apart_Q in apart.items()}

    def write_baselines(
        self, folder: Path, baselines: Mapping[str, Baseline] = BASELINES, learned: Split | None = None
    ) -> dict[str, Path]:
        """Rank with every baseline; returns the file of ranks of each, below `folder`.

        `learned`: the split whose training part they count, such as that of some users; None: that of the targets.
        """
        domain, files = self._split.domain, {}
        for name, baseline in baselines.items():
            score = baseline(learned or self._split, self._holdout)
            ranks = rank_targets(self._holdout, domain.num_items, score, chunk=users_at_once(domain.num_items))
            files[slug(name)] = folder / slug(name) / "ranks.parquet"
            write_ranks(files[slug(name)], ranks, domain.user_ids, domain.item_ids)
        return files

    def write_tuned_baselines(self, folder: Path) -> Chosen:
        """Rank with the baselines that are tuned on the validation targets; returns the settings that were chosen."""
        start = time.process_time()
        tuned = {name: tune(self._split, "exclude") for name, tune in TUNED_BASELINES.items()}
        self.write_baselines(folder, {name: one.baseline for name, one in tuned.items()})
        values = {f"{slug(name)}.{key}": value for name, one in tuned.items() for key, value in one.settings.items()}
        num_tried = sum(one.num_tried for one in tuned.values())
        return Chosen(values=values, trials=num_tried, cpu_s=time.process_time() - start)


def _means(metrics: Mapping[str, Tensor], is_in_Q: Tensor) -> Figures:
    num_users = int(is_in_Q.sum())
    if not num_users:
        return Figures(num_users=0)
    by_seed = {name: tuple(values_MQ[:, is_in_Q].mean(dim=1).tolist()) for name, values_MQ in metrics.items()}
    return Figures(num_users=num_users, by_seed=by_seed)


def _figures(metrics: Mapping[str, Tensor], is_in_Q: Tensor) -> Figures:
    means = _means(metrics, is_in_Q)
    names = metrics if means.num_users else ()
    return means.model_copy(update={"intervals": {name: mean_interval(metrics[name][:, is_in_Q]) for name in names}})


def _difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor], is_in_Q: Tensor) -> Figures:
    num_users = int(is_in_Q.sum())
    if not num_users:
        return Figures(num_users=0)
    pairs = {name: (a[name][:, is_in_Q], b[name][:, is_in_Q]) for name in a}
    return Figures(
        num_users=num_users,
        intervals={name: difference_interval(*pair) for name, pair in pairs.items()},
        by_seed={name: tuple((x - y).mean(dim=1).tolist()) for name, (x, y) in pairs.items()},
    )
