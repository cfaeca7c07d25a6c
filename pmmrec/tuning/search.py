"""Search for settings: propose settings, run trials, end poor ones early, and keep the best."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from pmmrec.errors import DataError, MachineError, PMMRecError, RecipeError
from pmmrec.processes import end_all, folder_lock, signals_as_interrupts
from pmmrec.recipe import FinetuneRecipe, Name, PretrainRecipe, read_recipe, recipe_class_for, recipe_tree
from pmmrec.settings import Config, Place, Tree, overlay, validate
from pmmrec.shipped import find_recipe, shipped_file
from pmmrec.tuning import results
from pmmrec.tuning.inputs import search_inputs
from pmmrec.tuning.record import STUDY_FILE, Ending, Record, best_first
from pmmrec.tuning.space import read_space
from pmmrec.tuning.trial import TrialProcess

POLL_S = 0.2
# Errors that end the search while no trial is complete; later they are due to the settings of one trial.
_FATAL = {RecipeError.exit_code: RecipeError, DataError.exit_code: DataError}


class SearchPlan(Config):
    """The arguments of a search."""

    recipe: str
    overrides: tuple[str, ...] = ()
    space: Place
    trials: int = Field(ge=1, description="Total, including those of earlier starts.")
    start_from: str | None = None
    on: Place | None = None
    name: Name | None = None
    runs: Place | None = None
    timeout_min: float | None = Field(None, gt=0, description="No trial starts after this many minutes.")
    jobs: int = Field(1, ge=1)
    seed: int = Field(1, ge=0)
    prune_after: int | None = Field(3, ge=0, description="Epochs that every trial gets; None: no trial ends early.")
    keep_checkpoints: bool = False
    weights: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """The result of a search: a table of its best trials, and the recipe to run next."""

    folder: Path
    columns: list[str]
    rows: list[results.Row]
    importances: Mapping[str, float]
    best: Path


class Search:
    """A search. Creating one checks its recipe, space and data."""

    def __init__(self, plan: SearchPlan, say: Callable[[str], None]) -> None:
        self._plan, self._say = plan, say
        path = find_recipe(plan.recipe)
        self._tree = recipe_tree(path, plan.overrides)
        self._is_finetune = recipe_class_for(self._tree) is FinetuneRecipe
        self._recipe: FinetuneRecipe | PretrainRecipe = (
            read_recipe(FinetuneRecipe, path, plan.overrides)
            if self._is_finetune
            else read_recipe(PretrainRecipe, path, plan.overrides)
        )
        if self._recipe.validation.judge == "loss":
            raise RecipeError(
                f"{plan.recipe}: validation.judge: loss: trials are compared by a metric; search with judge: ranking"
            )
        inputs = search_inputs(plan, self._recipe, say)
        self._space = read_space(plan.space)
        self._space.refuse_invalid(self._recipe, self._tree)
        self._short = results.short_names(list(self._space.dimensions))
        self._metric = self._recipe.validation.metric
        self.folder = (plan.runs or self._recipe.runs) / (plan.name or f"{self._recipe.name}-tune")
        dimensions = self._space.dimensions.items()
        self.about = {**inputs, "space": {name: d.model_dump(mode="json", exclude_none=True) for name, d in dimensions}}
        self._active: dict[int, TrialProcess] = {}
        self._values: dict[int, Mapping[str, Any]] = {}
        self._seen: dict[int, dict[int, float]] = {}  # value of each epoch, by trial

    def run(self) -> Found:
        """Run trials until the requested number is reached; earlier trials of the search count.

        Raises:
            RecipeError: The folder holds another search or something else, or the recipe is wrong.
            DataError: The data or the checkpoint are broken.
            PMMRecError: No trial completed.
        """
        self._make_folder()
        with (
            folder_lock(self.folder, "a search, or a trial that it left,") as lock,
            signals_as_interrupts() as self._asked,
        ):
            how = (self._plan.seed, self._plan.prune_after, self._recipe.retold)
            self._record = Record.open(self.folder, self._space, self.about, *how)
            if self._record.is_new:
                self._refuse_trials_of_no_record()
                self._begin()
            try:
                self._work(lock)
            finally:
                self._end_all()
        return self._found()

    def _make_folder(self) -> None:
        trials = self.folder / "trials"
        is_search = trials.is_dir() or (self.folder / STUDY_FILE).is_file()
        if self.folder.exists() and not is_search:
            raise RecipeError(f"{self.folder}: exists and is not a search; choose another --name")
        try:
            trials.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MachineError(f"{self.folder}: cannot be made: {error.strerror}") from error

    def _refuse_trials_of_no_record(self) -> None:
        """Refuse trials without a record: a new search would collide with them and might delete them."""
        left = sorted(path.name for path in (self.folder / "trials").iterdir())
        if left:
            raise DataError(
                f"{self.folder / 'trials'}: holds {left[0]}, but {STUDY_FILE} lists no trial; put the record back, "
                "or choose another --name"
            )

    def _begin(self) -> None:
        own = self._space.own_values(self._recipe, self._tree)
        missing = [path for path in self._space.dimensions if path not in own]
        for path in missing:
            self._say(f"{path}: the recipe's own value is outside the space; the first trial draws one")
        self._record.begin_with(own)

    def _work(self, lock: int) -> None:
        started_s, is_exhausted = time.monotonic(), False
        while True:
            limit_s = (self._plan.timeout_min or 0) * 60
            is_late = bool(limit_s) and time.monotonic() - started_s >= limit_s
            num_trials = len(self._record.endings()) + len(self._active)
            is_wanted = num_trials < self._plan.trials and not (is_late or is_exhausted)
            if is_wanted and len(self._active) < self._plan.jobs:
                is_exhausted = not self._start(lock)
                continue
            if not self._active:
                return
            for number in list(self._active):
                self._follow(number)
            time.sleep(POLL_S)

    def _start(self, lock: int) -> bool:
        """Start another trial; False if every point of the space was tried."""
        proposed = self._record.propose()
        if proposed is None:
            self._say(f"{self._space.source}: all of its {self._space.num_points} points were tried; no further trial")
            return False
        number, values = proposed
        self._values[number], self._seen[number] = values, {}
        name = results.folder_name(number)
        path, tree = self.folder / "trials" / f"{name}.yaml", self._trial_tree(name, values)
        try:
            validate(type(self._recipe), tree, str(path))
        except RecipeError as error:  # each value is valid alone, but not together
            self._close(number, "failed", 0.0, "; ".join(line.strip() for line in str(error).splitlines()))
            return True
        results.write_recipe(path, tree, [f"Trial {name} of {self.folder}."])
        program = shipped_file("finetune/run.py" if self._is_finetune else "pretrain/run.py")
        command = [sys.executable, "-u", str(program), str(path), *self._options()]
        self._active[number] = TrialProcess(self.folder / "trials" / name, command, lock)
        return True

    def _trial_tree(self, name: str, values: Mapping[str, Any]) -> Tree:
        place: Tree = {"name": name, "runs": str(self.folder / "trials"), "rank_test": False}
        if not self._is_finetune:
            place |= {
                "publish_as": None,
                "hub": str(self.folder / "hub"),
            }  # never created: no name can be taken
        return overlay(overlay(self._tree, self._space.tree(values)), place)

    def _options(self) -> list[str]:
        start = ["--from", str(self._plan.start_from), "--on", str(self._plan.on)] if self._is_finetune else []
        return [*start, *(word for pair in self._plan.weights for word in ("--weights", pair))]

    def _follow(self, number: int) -> None:
        if self._asked.is_set():
            raise KeyboardInterrupt
        process = self._active[number]
        code = process.exit_code()  # read before the events, so that none is missed
        for epoch, value in process.new_epochs(self._metric):
            self._seen[number][epoch] = value
            is_poor = self._record.report(number, epoch, value)
            if is_poor and code is None:
                end_all([process])
                self._close(number, "pruned", process.seconds)
                return
        if code is None:
            return
        if code == 0 and process.outcome() is not None:
            self._close(number, "complete", process.seconds)
            return
        complaint = process.failure()
        self._close(number, "failed", process.seconds, complaint)
        endings = self._record.endings()
        if code in _FATAL and not best_first(endings):
            if len(endings) == 1:  # other trials, perhaps of an earlier start, are kept
                self._leave_nothing()
            raise _FATAL[code](f"trial {results.folder_name(number)}: {complaint}")

    def _close(self, number: int, state: str, seconds: float, message: str = "") -> None:
        self._active.pop(number, None)
        seen = self._seen[number]
        best_epoch = max(seen, key=lambda epoch: (seen[epoch], -epoch)) if seen else None
        self._record.end(
            Ending(
                number=number,
                state=state,
                values=self._values[number],
                is_own=False,
                value=None if best_epoch is None or state == "failed" else seen[best_epoch],
                best_epoch=best_epoch,
                num_epochs=max(seen) if seen else None,
                seconds=round(seconds, 1),
                message=message,
            )
        )
        endings = self._record.endings()
        ended = next(ending for ending in endings if ending.number == number)
        self._say(results.trial_line(ended, endings, self._metric, self._short))
        results.write_trials(self.folder, endings, list(self._space.dimensions))
        ranked = best_first(endings)
        if ranked and ranked[0].number == number:
            self._write_best(ranked[0])
        if not self._plan.keep_checkpoints:
            self._drop_checkpoints(endings, ranked[0].number if ranked else None)

    def _write_best(self, best: Ending) -> None:
        verb = "finetune" if self._is_finetune else "pretrain"
        path = self.folder / results.BEST_FILE
        comment = [
            f"The best settings of the search {self.folder}: trial {results.folder_name(best.number)}, "
            f"validation {self._metric} {best.value:.2%} at epoch {best.best_epoch}.",
            shlex.join(["pmmrec", verb, str(path), *self._options()]),
        ]
        tree = overlay(self._tree, self._space.tree(best.values))
        results.write_recipe(path, {**tree, "name": f"{self.folder.name[:90]}-best"}, comment)

    def _drop_checkpoints(self, endings: list[Ending], best: int | None) -> None:
        for ending in endings:
            if ending.number != best:
                shutil.rmtree(self._run_folder(ending.number) / "checkpoint", ignore_errors=True)

    def _run_folder(self, number: int) -> Path:
        return self.folder / "trials" / results.folder_name(number)

    def _end_all(self) -> None:
        end_all(self._active.values())
        for number in list(self._active):
            del self._active[number]
            self._record.give_up(number)
            shutil.rmtree(self._run_folder(number) / "checkpoint", ignore_errors=True)

    def _leave_nothing(self) -> None:
        """Remove the search, so that a corrected recipe or space can use the same name."""
        end_all(self._active.values())
        self._active.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _found(self) -> Found:
        endings = self._record.endings()
        if not best_first(endings):
            last = endings[-1].message if endings else "the time ran out before one ended"
            raise PMMRecError(f"{self.folder}: no trial completed; the last: {last}")
        results.write_trials(self.folder, endings, list(self._space.dimensions))  # rewritten, because a killed start
        self._write_best(best_first(endings)[0])  # may have left both out of date
        columns, rows = results.best_rows(endings, self._short, self._metric)
        shares = {self._short[path]: share for path, share in self._record.importances().items()}
        return Found(self.folder, columns, rows, shares, self.folder / results.BEST_FILE)
