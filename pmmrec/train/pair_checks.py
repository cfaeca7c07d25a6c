"""Check that a step has texts and images of several items, where objectives compare them with one another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pmmrec.contracts import PixelSpec, TextSpec
from pmmrec.data.batches import DataConfig
from pmmrec.data.contents import having
from pmmrec.data.domain import Domain
from pmmrec.errors import DataError, RecipeError
from pmmrec.modality import Modality
from pmmrec.requests import LOSSES_OF_ITEMS, View
from pmmrec.train.log import RunLog
from pmmrec.train.task import TrainingTask

MAX_NAMED = 3


def check_pairs(
    task: TrainingTask, data: DataConfig, domains: Sequence[Domain], batch_users: int, num_shares: int, log: RunLog
) -> None:
    """Check a stage that trains on items alone, without users.

    Items that lack a text or an image are counted and named where objectives compare the two. `num_shares`: into how
    many batches a step is cut, each with its own negatives. RecipeError where a batch has one item, or where an
    objective that hides parts of items is given other examples; DataError where no two items have both.
    """
    for name, requests in task.requests_by_name.items():
        if requests.views & LOSSES_OF_ITEMS and data.examples.type != "items":
            raise RecipeError(
                f"data.examples: {data.examples.type}, but objectives.{name} learns from items alone, each once an "
                "epoch; choose data.examples=items"
            )
    compared = [name for name, one in task.requests_by_name.items() if View.MODALITIES in one.views]
    if not compared or data.examples.type != "items":
        return
    names = " and ".join(f"objectives.{name}" for name in compared)
    if batch_users // num_shares < 2:
        cut = f" in each of {num_shares} parts" if num_shares > 1 else ""
        raise RecipeError(
            f"train.batch_users: {batch_users} leaves one pair{cut}, and {names} compare pairs with one another; take "
            f"{2 * num_shares} or more"
        )
    num_pairs = 0
    for domain in domains:
        has_N = having(domain, Modality.TEXT, TextSpec) & having(domain, Modality.IMAGE, PixelSpec)
        num_pairs += int(has_N.sum())
        lacking = np.flatnonzero(~has_N)
        if len(lacking):
            named = ", ".join(domain.item_ids[int(row)].as_py() for row in lacking[:MAX_NAMED])
            more = ", ..." if len(lacking) > MAX_NAMED else ""
            log.warn(
                f"{domain.name}: {len(lacking):,} of {domain.num_items:,} items lack a text or an image, and are no "
                f"pair for {names}: {named}{more}"
            )
    if num_pairs < 2:
        raise DataError(
            f"{', '.join(str(domain.folder) for domain in domains)}: {num_pairs} items have a text and an image, and "
            f"{names} compare pairs with one another; use domains whose items have both"
        )
