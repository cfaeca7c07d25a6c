"""Train from Python, as `pmmrec pretrain` and `pmmrec finetune` do from a shell."""

from __future__ import annotations

import runpy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pmmrec.data.domain import Domain
from pmmrec.errors import RecipeError
from pmmrec.evaluation.outcome import Outcome, read_outcome
from pmmrec.recipe import FinetuneRecipe, PretrainRecipe, RunRecipe, read_recipe
from pmmrec.shipped import find_recipe, shipped_file
from pmmrec.system import System, load
from pmmrec.train.finish import CHECKPOINT_FOLDER

ROOMS: dict[bool, tuple[str, type[RunRecipe]]] = {
    True: ("pretrain", PretrainRecipe),
    False: ("finetune", FinetuneRecipe),
}


@dataclass(frozen=True)
class FinishedRun:
    """A run that `fit` has finished: its folder holds the checkpoint, the metrics and the log."""

    folder: Path

    @cached_property
    def system(self) -> System:
        """The trained system, which ranks, scores and recommends."""
        return load(self.folder / CHECKPOINT_FOLDER)

    @cached_property
    def outcome(self) -> Outcome:
        """All that the run measured, with intervals and baselines: what `metrics.json` in the folder holds."""
        return read_outcome(self.folder)

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The test metrics in 0..1, by the name of the domain and of the metric."""
        return {
            one.domain: {name: interval.mean for name, interval in one.metrics.items()} for one in self.outcome.domains
        }


def fit(
    recipe: str | Path,
    *overrides: str,
    on: Domain | str | Path | tuple[Any, Any] | None = None,
    start_from: str | Path | None = None,
    domain: str | Path | None = None,
    **settings: Any,
) -> FinishedRun:
    """Pretrain (without `on`) or fine-tune on one domain, and rank the test targets once.

    Args:
        recipe: A file, or the name of a shipped recipe.
        overrides: Settings that win, such as `"train.epochs=3"`.
        on: What to fine-tune on: a domain, its folder, or a table of items and one of interactions, as
            `Domain.from_tables` takes them.
        start_from: Checkpoint to fine-tune from; `"none"` trains from scratch.
        domain: Folder that tables become a domain in; must not exist.
        settings: Further ones of `Domain.from_tables`, such as `k_core=None`.

    Raises RecipeError for arguments that cannot be meant, and what the commands raise.

    Example:
        run = pmmrec.fit("zoo/ids/small/sasrec", on=(goods, sales), domain="domains/shop", start_from="none")
        run.metrics["shop"]["ndcg@10"]
        run.system.recommend(["item-7"], k=5)
    """
    if (on is None) != (start_from is None):
        raise RecipeError("fit: on= and start_from= go together; give both to fine-tune, neither to pretrain")
    if isinstance(on, tuple) != (domain is not None) or (settings and domain is None):
        raise RecipeError("fit: on=(items, interactions) and domain=FOLDER go together; tables become a domain there")
    room, kind = ROOMS[on is None]
    folder = read_recipe(kind, find_recipe(str(recipe)), list(overrides)).folder.absolute()
    program = runpy.run_path(str(shipped_file(f"{room}/run.py")), run_name=f"pmmrec_{room}_run")
    if on is None:
        program["main"](str(recipe), list(overrides))
    else:
        program["main"](str(recipe), str(start_from), _folder_of(on, domain, settings), list(overrides))
    return FinishedRun(folder)


def _folder_of(on: Any, folder: str | Path | None, settings: dict[str, Any]) -> Path:
    """The folder of a domain, which tables become first."""
    if isinstance(on, tuple) and folder is not None:
        items, interactions = on
        return Domain.from_tables(items, interactions, out=Path(folder), **settings).folder
    return on.folder if isinstance(on, Domain) else Path(on)
