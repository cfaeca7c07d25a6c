"""Check before a run starts that it has targets for validation and for the test, and cut-offs that fit its domains."""

from __future__ import annotations

from typing import Protocol

from pmmrec.data.batches import DataConfig
from pmmrec.data.splits import HoldoutName
from pmmrec.errors import DataError, RecipeError
from pmmrec.evaluation.metrics import CUTOFFS
from pmmrec.requests import Holding
from pmmrec.train.callbacks import ValidationConfig
from pmmrec.train.prepare import Sources


class Ranked(Protocol):
    """The fields of a recipe that say what is ranked."""

    @property
    def data(self) -> DataConfig: ...
    @property
    def validation(self) -> ValidationConfig: ...
    @property
    def rank_test(self) -> bool: ...


def check_targets(recipe: Ranked, sources: Sources) -> None:
    """Refuse what could only fail later: after the first validation, or once training is over.

    Raises DataError where a domain has no validation target though validation reads them, or no test target though the
    recipe ranks them; RecipeError for a cut-off that reaches beyond the items of a domain, unless it is a usual one.
    """
    reads_targets = recipe.validation.judge == "ranking" or Holding.TARGET in recipe.data.kind.holds
    needed: dict[HoldoutName, bool] = {"validation": reads_targets, "test": recipe.rank_test}
    names = [name for name, is_needed in needed.items() if is_needed]
    for split in sources.splits:
        for name in names:
            if not split.has_query(name):
                advice = " or say rank_test=false" if name == "test" else ""
                raise DataError(
                    f"{split.domain.folder}: {split.no_query}, so there is no {name} target to rank; choose another "
                    f"data.split{advice}"
                )
    smallest = min(sources.domains, key=lambda domain: domain.num_items)
    for setting, cutoff in _cutoffs(recipe.validation):
        if cutoff not in CUTOFFS and cutoff > smallest.num_items:
            raise RecipeError(
                f"{setting}: {cutoff} is more than the {smallest.num_items:,} items of {smallest.name}, among which "
                f"every target is found; choose up to {smallest.num_items}"
            )


def _cutoffs(config: ValidationConfig) -> list[tuple[str, int]]:
    """Every cut-off that a recipe names, with its setting."""
    named = [("validation.cutoffs", cutoff) for cutoff in config.cutoffs]
    _, _, cutoff = config.metric.partition("@")
    return [*named, *([("validation.metric", int(cutoff))] if cutoff else [])]
