"""Measure what a shift of the item vectors onto those of the source does to zero-shot, on validation targets.

The content spaces of two shops differ by a shift and a stretch. Before ranking, item vectors x of the target become
(x - mean) A + mean of the source, where A is nothing, a scale of each number, or gives them the covariance of the
source (CORAL, https://arxiv.org/abs/1511.05547, with the roles of the domains swapped). No interactions are read:

    python tests/real/item_shift.py CHECKPOINT SOURCE TARGET [CACHE]
"""
# N items, D width.

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pmmrec.data.domain import Domain
from pmmrec.data.splits.leave_one_out import leave_one_out
from pmmrec.evaluation.catalogue import users_at_once
from pmmrec.evaluation.metrics import mean_metrics
from pmmrec.evaluation.model_scores import model_scorer
from pmmrec.evaluation.ranking import rank_targets
from pmmrec.models.build import scorer_with
from pmmrec.system import load
from pmmrec.zoo.checkpoint import load_recommender, open_checkpoint

RIDGE = 0.1  # of the mean variance, added to every variance before it is inverted

Moments = tuple[Tensor, Tensor]  # mean (D,) and covariance (D, D)


def moments_of(item_ND: Tensor) -> Moments:
    """Mean and covariance of some vectors."""
    mean_D = item_ND.mean(dim=0)
    return mean_D, (item_ND - mean_D).T @ (item_ND - mean_D) / len(item_ND)


def power(covariance_DD: Tensor, exponent: float) -> Tensor:
    """A power of a covariance with a ridge."""
    ridge_D = RIDGE * covariance_DD.diagonal().mean().expand(len(covariance_DD))
    value_D, vector_DD = torch.linalg.eigh(covariance_DD + torch.diag(ridge_D))
    return (vector_DD * value_D**exponent) @ vector_DD.T


def shifts(of_target: Moments, of_source: Moments) -> dict[str, Callable[[Tensor], Tensor]]:
    """The ways to move vectors of the target, by name."""
    (mean_D, cov_DD), (to_D, to_DD) = of_target, of_source
    scale_D = (to_DD.diagonal() / cov_DD.diagonal()).sqrt()
    turn_DD = power(cov_DD, -0.5) @ power(to_DD, 0.5)
    return {
        "as they are": lambda x: x,
        "mean of zero": lambda x: x - mean_D,
        "mean of the source": lambda x: x - mean_D + to_D,
        "mean and scales of the source": lambda x: (x - mean_D) * scale_D + to_D,
        "mean and covariance of the source": lambda x: (x - mean_D) @ turn_DD + to_D,
    }


def main(checkpoint: str, source: str, target: str, cache: str = "cache") -> None:
    """Print HR@10 and NDCG@10 of each way, by content alone."""
    system = load(checkpoint, cache=cache, device="cpu", popularity=0.0)
    encoded = {place: system.encode_items(Path(place)) for place in (source, target)}
    used = {place: one.vectors_ND[torch.from_numpy(one.contents.distinct)].double() for place, one in encoded.items()}
    split = leave_one_out(Domain.open(Path(target)))
    holdout, domain = split.holdout("validation"), split.domain
    opened = open_checkpoint(checkpoint, Path("hub"))
    model = load_recommender(opened)
    model.scorer = scorer_with(opened.model_config, 0.0)
    contents = encoded[target].contents
    for name, shift in shifts(moments_of(used[target]), moments_of(used[source])).items():
        moved_ND = shift(encoded[target].vectors_ND.double()).float()
        score = model_scorer(model, moved_ND, holdout, split.train_counts, "cpu", contents)
        rules = {"chunk": users_at_once(domain.num_items), "is_readable_N": contents.is_readable_N}
        ranks = rank_targets(holdout, domain.num_items, score, **rules)
        means = mean_metrics(ranks.rank, ranks.query)
        print(f"{name:36}HR@10 {100 * means['hr@10']:5.2f}  NDCG@10 {100 * means['ndcg@10']:5.2f}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit("usage: python tests/real/item_shift.py CHECKPOINT SOURCE TARGET [CACHE]")
    main(*sys.argv[1:])
