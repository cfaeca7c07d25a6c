"""Split the hits of systems by whether the training part pairs the target with an item of the user's history.

The paragraph on item-kNN in zoo/RESULTS.md rests on these figures. Takes a domain and the run folder of each system:
python -m tests.real.pairs runs/evidence/domains/hm_week PMMRec=runs/evidence/cells/in_domain/hm_week/pmmrec
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from pmmrec.data.domain import Domain
from pmmrec.data.splits import Split
from pmmrec.data.splits.leave_one_out import leave_one_out
from tests.real.evidence.measure import Targets


def is_known_pair(split: Split) -> torch.Tensor:
    """`(Q,)`: whether one user's training part holds both the target and an item of this query's history."""
    offsets, num_items = split.train_offsets, split.domain.num_items
    user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    ones = np.ones(len(user), dtype=np.float32)
    held = sparse.csr_matrix((ones, (user, split.train_items)), shape=(len(offsets) - 1, num_items))
    together = (held.T @ held).tolil()
    together.setdiag(0)
    together = together.tocsr()
    holdout = split.holdout("test")
    found = [together[target, holdout.history(query)].sum() > 0 for query, target in enumerate(holdout.target)]
    return torch.tensor(found)


def same_day(split: Split) -> float:
    """Share of test targets that carry the date of the item before."""
    holdout, domain = split.holdout("test"), split.domain
    times = [np.asarray(domain.times(int(user))).astype(np.int64)[-2:] // 86_400 for user in holdout.user_index]
    return float(np.mean([before == last for before, last in times]))


def main(folder: str, *systems: str) -> None:
    split = leave_one_out(Domain.open(Path(folder)))
    targets, is_known = Targets(split), is_known_pair(split)
    print(f"{split.domain.name}: {same_day(split):.1%} of the test targets carry the date of the item before;")
    print(f"{is_known.float().mean():.1%} somebody in training had together with an item of the history. HR@10 in %:")
    for system in systems:
        name, _, runs = system.partition("=")
        is_hit = (targets.ranks(sorted(Path(runs).rglob("ranks.parquet"))) <= 10).float()
        known, unknown = (100 * is_hit[:, which].mean() for which in (is_known, ~is_known))
        print(f"{name:<12} together {known:5.2f}  not {unknown:5.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
