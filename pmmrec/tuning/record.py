"""Record the trials of a search in an Optuna study on disk (study.db), and propose the next one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import OptunaError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError
from typing_extensions import Self

from pmmrec.errors import DataError, RecipeError
from pmmrec.settings import Tree
from pmmrec.tuning.space import Dimension, Space

STUDY_FILE = "study.db"
ADVICE = "put a whole copy back, or choose another --name"
OWN = "own"  # attribute of the trial with the recipe's own values
SAMPLER_DRAWS = 20  # draws of settings already tried, before random new ones are taken
PRUNE_AFTER_TRIALS = 5  # a median of fewer trials says little
LEAST_FOR_IMPORTANCE = 20


@dataclass(frozen=True)
class Ending:
    """The result of one trial that ended."""

    number: int
    state: str  # complete, pruned, failed
    values: Mapping[str, Any]  # the settings tried, by path
    is_own: bool  # whether these are the recipe's own values
    value: float | None = None  # the metric at the best epoch
    best_epoch: int | None = None
    num_epochs: int | None = None
    seconds: float | None = None
    message: str = ""


class Record:
    """The trials of one search. Interrupted trials do not count: their settings are tried again."""

    def __init__(self, study: optuna.Study, space: Space, seed: int) -> None:
        self._study, self._space, self._seed = study, space, seed
        self._distributions = {path: _distribution(dimension) for path, dimension in space.dimensions.items()}
        self._open: dict[int, optuna.Trial] = {}

    @classmethod
    def open(
        cls,
        folder: Path,
        space: Space,
        about: Mapping[str, Any],
        seed: int,
        prune_after: int | None,
        retold: Callable[[Tree], Tree],
    ) -> Self:
        """Start a search in `folder`, or resume the one that is there.

        Args:
            folder: Holds study.db.
            space: The settings to search.
            about: The inputs that must be equal for trials to be comparable, by a name for people.
            seed: A proposal is a function of this seed, the number of the trial and the trials before it.
            prune_after: Epochs that every trial gets; None: no trial ends early.
            retold: What an earlier version recorded of a recipe, as this one would record it.

        Raises:
            RecipeError: The existing search has other inputs.
            DataError: The existing record cannot be read.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        pruner = (
            optuna.pruners.NopPruner()
            if prune_after is None
            else optuna.pruners.MedianPruner(n_startup_trials=PRUNE_AFTER_TRIALS, n_warmup_steps=prune_after)
        )
        try:
            study = optuna.create_study(
                storage=f"sqlite:///{(folder / STUDY_FILE).resolve()}",
                study_name="search",
                direction="maximize",
                pruner=pruner,
                load_if_exists=True,
            )
            known, trials = study.user_attrs.get("about"), study.get_trials(deepcopy=False)
        except (SQLAlchemyError, OptunaError, KeyError) as error:
            raise DataError(f"{folder / STUDY_FILE}: is not a record of a search, or was changed: {ADVICE}") from error
        if known is None:
            if trials:
                raise DataError(f"{folder / STUDY_FILE}: does not say what was searched: {ADVICE}")
            study.set_user_attr("about", dict(about))
        else:
            _refuse_other(folder, {**known, "recipe": retold(known["recipe"])}, about)
        record = cls(study, space, seed)
        for left in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            record._try_again(left)  # its process has ended, because a search locks its folder
        return record

    @property
    def is_new(self) -> bool:
        """Whether the record holds no trial yet."""
        return not self._study.get_trials(deepcopy=False)

    def begin_with(self, values: Mapping[str, Any]) -> None:
        """Try the recipe's own values first; missing ones are drawn."""
        encoded = {path: _encoded(self._space.dimensions[path], value) for path, value in values.items()}
        is_whole = values.keys() == self._space.dimensions.keys()
        self._study.enqueue_trial(encoded, user_attrs={OWN: is_whole})

    def propose(self) -> tuple[int, dict[str, Any]] | None:
        """The number and the untried settings of a new trial; None if all points of the space were tried."""
        if not self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            values = self._untried()
            if values is None:
                return None
            self._study.enqueue_trial(values)
        self._study.sampler = self._sampler(0)  # draws what is missing in queued settings
        trial = self._study.ask(self._distributions)
        self._open[trial.number] = trial
        return trial.number, self._decoded(trial.params)

    def _untried(self) -> dict[str, Any] | None:
        """Untried settings: a draw of the sampler, repeated if already tried, or else a random untried point."""
        trials = self._study.get_trials(deepcopy=False)
        tried = [trial.params for trial in trials if trial.state == TrialState.RUNNING or "ending" in trial.user_attrs]
        num_points = self._space.num_points
        if num_points is not None and len(tried) >= num_points:
            return None
        draft = optuna.create_study(direction="maximize")  # asking a draft creates no trial
        draft.add_trials([trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)])
        for draw in range(SAMPLER_DRAWS):
            draft.sampler = self._sampler(draw)
            values = draft.ask(self._distributions).params
            if values not in tried:
                return values
        random = np.random.default_rng((self._seed, len(trials)))
        points = {path: dimension.points or () for path, dimension in self._space.dimensions.items()}
        while values in tried:
            values = {path: some[int(random.integers(len(some)))] for path, some in points.items()}
        return values

    def _sampler(self, draw: int) -> optuna.samplers.BaseSampler:
        place = len(self._study.get_trials(deepcopy=False))
        seed = int(np.random.SeedSequence((self._seed, place, draw)).generate_state(1)[0])
        return optuna.samplers.TPESampler(seed=seed, multivariate=True)

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Record the value of an epoch; returns whether the trial should end early."""
        trial = self._open[number]
        trial.report(value, epoch)
        return trial.should_prune()

    def end(self, ending: Ending) -> None:
        """Record the result of a trial."""
        trial = self._open.pop(ending.number)
        about = {
            "best": ending.value,
            "best_epoch": ending.best_epoch,
            "num_epochs": ending.num_epochs,
            "seconds": ending.seconds,
            "message": ending.message,
        }
        trial.set_user_attr("ending", about)
        state = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}[ending.state]
        self._study.tell(trial, ending.value if ending.state == "complete" else None, state=state)

    def give_up(self, number: int) -> None:
        """Discard a trial that was interrupted; its settings are tried again."""
        trial = self._open.pop(number)
        self._try_again(self._study.get_trials(deepcopy=False)[trial.number])

    def endings(self) -> list[Ending]:
        """The trials that ended, in order."""
        trials = self._study.get_trials(deepcopy=False)
        return [self._ending(trial) for trial in trials if "ending" in trial.user_attrs and trial.state.is_finished()]

    def importances(self) -> dict[str, float]:
        """The importance of each setting, as a share of all; empty if there are too few trials."""
        complete = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        is_flat = len({trial.value for trial in complete}) < 2
        if len(complete) < LEAST_FOR_IMPORTANCE or len(self._distributions) < 2 or is_flat:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return dict(optuna.importance.get_param_importances(self._study, evaluator=evaluator))

    def _try_again(self, trial: FrozenTrial) -> None:
        self._study.tell(trial.number, state=TrialState.FAIL)
        own = {name: value for name, value in trial.user_attrs.items() if name == OWN}
        self._study.enqueue_trial(trial.params, user_attrs=own)

    def _ending(self, trial: FrozenTrial) -> Ending:
        about = trial.user_attrs["ending"]
        state = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}.get(trial.state, "failed")
        return Ending(
            number=trial.number,
            state=state,
            values=self._decoded(trial.params),
            is_own=bool(trial.user_attrs.get(OWN)),
            value=about["best"],
            best_epoch=about["best_epoch"],
            num_epochs=about["num_epochs"],
            seconds=about["seconds"],
            message=about["message"],
        )

    def _decoded(self, values: Mapping[str, Any]) -> dict[str, Any]:
        by_path = self._space.dimensions
        return {
            path: values[path] if dimension.choice is None else json.loads(values[path])
            for path, dimension in by_path.items()
            if path in values
        }


def best_first(endings: Iterable[Ending]) -> list[Ending]:
    """The complete trials, best first; of equal ones the earlier first."""
    complete = [ending for ending in endings if ending.state == "complete"]
    return sorted(complete, key=lambda ending: (-(ending.value or 0.0), ending.number))


def _refuse_other(folder: Path, known: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    # Through JSON, as the stored values were.
    asked = json.loads(json.dumps(dict(about)))
    differing = [word for word, value in asked.items() if known.get(word) != value]
    if differing:
        raise RecipeError(
            f"{folder}: holds a search with another {' and another '.join(differing)}, whose trials would not compare; "
            "choose another --name, or remove the folder to start anew"
        )


def _distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.log is not None:
        return FloatDistribution(*dimension.log, log=True)
    if dimension.uniform is not None:
        return FloatDistribution(*dimension.uniform)
    if dimension.int is not None:
        return IntDistribution(*dimension.int)
    return CategoricalDistribution(dimension.choice_texts)


def _encoded(dimension: Dimension, value: Any) -> Any:
    return value if dimension.choice is None else json.dumps(value, default=str)
