"""Check before a run starts that it has targets to rank, users who can be ranked, and cut-offs that fit its domains."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from pmmrec.data.batches import DataConfig
from pmmrec.data.splits import HoldoutName
from pmmrec.errors import DataError, RecipeError
from pmmrec.evaluation.metrics import CUTOFFS
from pmmrec.models.build import ModelConfig
from pmmrec.requests import Holding
from pmmrec.train.callbacks import ValidationConfig
from pmmrec.train.prepare import Sources
from pmmrec.users import user_encoders


class Ranked(Protocol):
    """The fields of a recipe that say what is ranked."""

    @property
    def data(self) -> DataConfig: ...
    @property
    def validation(self) -> ValidationConfig: ...
    @property
    def rank_test(self) -> bool: ...


def check_targets(recipe: Ranked, sources: Sources, judging: Sources | None = None) -> None:
    """Refuse what could only fail later: after the first validation, or once training is over.

    Raises DataError where a domain has no validation target though validation reads them, or no test target though the
    recipe ranks them; RecipeError for a cut-off that reaches beyond the items of a domain, unless it is a usual one.
    `judging`: the domains whose validation targets judge the epochs; None: the sources.
    """
    judging = judging or sources
    for name in _needed(recipe):
        for split in judging.splits if name == "validation" else sources.splits:
            if not split.has_query(name):
                advice = " or say rank_test=false" if name == "test" else ""
                raise DataError(
                    f"{split.domain.folder}: {split.no_query}, so there is no {name} target to rank; choose another "
                    f"data.split{advice}"
                )
    smallest = min((*sources.domains, *judging.domains), key=lambda domain: domain.num_items)
    for setting, cutoff in _cutoffs(recipe.validation):
        if cutoff not in CUTOFFS and cutoff > smallest.num_items:
            raise RecipeError(
                f"{setting}: {cutoff} is more than the {smallest.num_items:,} items of {smallest.name}, among which "
                f"every target is found; choose up to {smallest.num_items}"
            )


def check_users(recipe: Ranked, model: ModelConfig, sources: Sources) -> None:
    """DataError where a model that knows users by id would rank users who have nothing in training.

    Each user has a row, but theirs would never learn.
    """
    if not user_encoders.part_class(model.user_encoder).reads_users:
        return
    for split in sources.splits:
        is_trained_M = np.concatenate([lengths for _, lengths in split.train_lengths()]) > 0
        for name in _needed(recipe):
            users, _ = split.query_users(name)
            num_unseen = int((~is_trained_M[users]).sum())
            if num_unseen:
                other = "another data.split" if split.users is None else "data.users.held_out=sample"
                raise DataError(
                    f"{split.domain.folder}: {num_unseen:,} of {len(users):,} users with {name} targets have no "
                    f"interaction in training, and model.user_encoder: {model.user_encoder.type} knows users by id; "
                    f"choose {other}, or a user encoder that reads histories"
                )


def _needed(recipe: Ranked) -> list[HoldoutName]:
    """The held-out parts that a run reads."""
    reads_targets = recipe.validation.judge == "ranking" or Holding.TARGET in recipe.data.kind.holds
    needed: dict[HoldoutName, bool] = {"validation": reads_targets, "test": recipe.rank_test and recipe.data.has_test}
    return [name for name, is_needed in needed.items() if is_needed]


def _cutoffs(config: ValidationConfig) -> list[tuple[str, int]]:
    """Every cut-off that a recipe names, with its setting."""
    named = [("validation.cutoffs", cutoff) for cutoff in config.cutoffs]
    _, _, cutoff = config.metric.partition("@")
    return [*named, *([("validation.metric", int(cutoff))] if cutoff else [])]
