"""Measure popularity, item-kNN, zero-shot, their blend and short fine-tunings on validation targets."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from pmmrec.advice.plans import METRIC, SECOND_METRIC, Advice, MeasuredPlan
from pmmrec.atomic import whole_file
from pmmrec.data.domain import Domain
from pmmrec.data.items import ItemReader
from pmmrec.data.splits import Holdout, Split
from pmmrec.errors import DataError, RecipeError
from pmmrec.evaluation.baselines import baselines_for, num_scored_at_once, popularity_baseline
from pmmrec.evaluation.blend import BlendConfig
from pmmrec.evaluation.catalogue import Evaluation, encode_catalogue, evaluate_model
from pmmrec.evaluation.learned_blend import COOCCURRENCES, POPULARITIES
from pmmrec.evaluation.outcome import Outcome, read_outcome
from pmmrec.evaluation.ranking import ScoreRows, rank_targets
from pmmrec.evaluation.tuned_baselines import KNN_GRID, tuned_item_knn
from pmmrec.homes import expanded
from pmmrec.models.build import scorer_with
from pmmrec.processes import ChildProcess, end_all, folder_lock, signals_as_interrupts
from pmmrec.progress import bars
from pmmrec.recipe import FinetuneRecipe, read_recipe
from pmmrec.report.records import to_json
from pmmrec.serving.blending import Blending
from pmmrec.settings import Config, Place
from pmmrec.shipped import find_recipe, shipped_file
from pmmrec.train.run_folder import CHECKPOINT_FOLDER
from pmmrec.train.threads import threads_for
from pmmrec.zoo.base import index_hash
from pmmrec.zoo.checkpoint import Checkpoint, load_recommender, open_checkpoint, with_base

ADVICE_FILE, CPU_FILE, QUESTION_FILE = "advice.json", "cpu_s.json", "question.json"
ITEMS_AT_ONCE = 256
POLL_S = 0.2
BLENDED = "zero-shot with popularity and item-kNN"
NUM_WEIGHTS = len(POPULARITIES) * len(COOCCURRENCES)
Way: TypeAlias = float | Literal["auto"] | None  # to score: a weight of popularity, a blend, as the checkpoint does
TRAININGS = {"frozen": "frozen", "full": "full"}  # plan -> transfer; both are named in recipes


class AdvicePlan(Config):
    """The arguments of `pmmrec advise`."""

    checkpoint: str
    domain: Place
    recipe: str = Field("finetune/full", description="Of the fine-tunings, and of the split.")
    overrides: tuple[str, ...] = ()
    minutes: float = Field(10, gt=0, description="Of training, for both fine-tunings together.")
    out: Place | None = None
    hub: Path = Path("hub")
    base: str | None = None


class Adviser:
    """Measures the plans of a domain. Creating one checks checkpoint, recipe and domain.

    Every plan is ranked on the same validation targets, which alone decide; no test target is read. What was trained is
    kept in a folder: the same question goes on where it was stopped.
    """

    def __init__(self, plan: AdvicePlan, say: Callable[[str], None], warn: Callable[[str], None]) -> None:
        self._plan, self._say, self._warn = plan, say, warn
        self._recipe = read_recipe(FinetuneRecipe, find_recipe(plan.recipe), plan.overrides)
        if self._recipe.validation.judge == "loss":
            raise RecipeError(f"{plan.recipe}: validation.judge: loss ranks nothing, and advice compares rankings")
        opened = open_checkpoint(plan.checkpoint, plan.hub, parts=(), warn=warn)
        self._checkpoint = with_base(opened, plan.base, plan.hub)
        self._domain = Domain.open(plan.domain)
        if self._checkpoint.model_config.knows_ids:
            raise RecipeError(
                f"advise: {self._checkpoint.folder} knows items or users by id, and carries nothing to "
                f"{self._domain.name}; name a checkpoint that reads texts or images"
            )
        if self._checkpoint.was_trained_on(self._domain.name, self._domain.fingerprint):
            raise RecipeError(
                f"advise: {self._checkpoint.folder} learned from {self._domain.name}; name a domain that is new to it"
            )
        self._checkpoint.refuse_learned_targets(self._domain, self._recipe.data.split)
        self._split: Split = self._recipe.data.split_of(self._domain)
        self._holdout: Holdout = self._split.holdout("validation", self._recipe.validation.users)
        if not self._holdout.num_queries:
            raise DataError(f"{self._domain.folder}: {self._split.no_query}, so there is no validation target to rank")
        self._question = self._key()
        self.folder = plan.out or self._recipe.runs / f"advise-{self._domain.name}-{self._question}"
        self._refuse_taken()

    def advise(self) -> Advice:
        """Measure all plans; write advice.json into the folder."""
        with folder_lock(self.folder, "another `pmmrec advise`") as lock:
            with whole_file(self.folder / QUESTION_FILE) as draft:
                draft.write_text(to_json({"question": self._question}) + "\n", encoding="utf-8")
            plans = [*self._baselines(), *self._zero_shot(), *(self._trained(name, lock) for name in TRAININGS)]
            num_users = len(np.unique(self._holdout.user_index))
            advice = Advice(self._plan.checkpoint, self._domain.name, num_users, tuple(plans))
            with whole_file(self.folder / ADVICE_FILE) as draft:
                draft.write_text(to_json(advice.record()) + "\n", encoding="utf-8")
        return advice

    def _refuse_taken(self) -> None:
        """RecipeError for a folder with something else in it, such as the trainings of another question."""
        place, question = self.folder / QUESTION_FILE, ""
        if place.is_file():
            question = json.loads(place.read_text("utf-8"))["question"]
        elif not self.folder.exists() or (
            self.folder.is_dir() and {one.name for one in self.folder.iterdir()} <= {"lock"}
        ):
            return
        if question != self._question:
            what = "the advice on another question" if question else "something else"
            raise RecipeError(f"--out {self.folder}: holds {what}; name a new folder, or leave --out out")

    def _key(self) -> str:
        """What tells this question from others."""
        asked = [index_hash(self._checkpoint), self._domain.fingerprint, self._recipe.told(), self._plan.minutes]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]

    def _baselines(self) -> list[MeasuredPlan]:
        """Popularity, and item-kNN with the settings that rank these targets best, where it fits in memory."""
        seen, where = self._recipe.validation.seen, f"{self._plan.checkpoint} {self._plan.domain}"
        began_s = time.process_time()
        values = self._ranked(popularity_baseline(self._split, self._holdout))
        shown = f"pmmrec evaluate {where}  # its test figures, beside those of zero-shot"
        plans = [MeasuredPlan("popularity", values, time.process_time() - began_s, shown)]
        if "item-kNN" in baselines_for(self._split):
            began_s = time.process_time()
            tuned = tuned_item_knn(self._split, seen)
            values = self._ranked(tuned.baseline(self._split, self._holdout))
            note = f"best of {len(KNN_GRID)} settings on these targets"
            shown = f"pmmrec evaluate {where} --tuned-baselines  # its test figures"
            plans.append(MeasuredPlan("item-kNN", values, time.process_time() - began_s, shown, note))
        self._say(f"measured: {', '.join(plan.name for plan in plans)}")
        return plans

    def _ranked(self, score: ScoreRows) -> dict[str, NDArray[np.float64]]:
        num_items = self._domain.num_items
        rules: dict[str, Any] = {"seen": self._recipe.validation.seen, "chunk": num_scored_at_once(num_items)}
        return _shown(Evaluation(rank_targets(self._holdout, num_items, score, **rules)))

    def _zero_shot(self) -> list[MeasuredPlan]:
        """The checkpoint as it is: by content alone, with popularity where its scorer can, and with item-kNN too."""
        config = self._checkpoint.model_config.scorer
        can_add = "popularity" in type(config).model_fields
        weight = (getattr(config, "popularity", 0.0) or 1.0) if can_add else 0.0
        ways: dict[str, Way] = {"zero-shot, content alone": 0.0 if can_add else None}
        ways |= {"zero-shot with popularity": weight} if can_add else {}
        ways |= {BLENDED: "auto"} if "item-kNN" in baselines_for(self._split) else {}
        plans = []
        for name, (values, cpu_s, blend) in zip(ways, self._evaluated(self._checkpoint, [*ways.values()]), strict=True):
            option = f" --popularity {ways[name]:g}" if can_add and blend is None else ""
            option = option if blend is None else f" --blend {shlex.quote(blend.written())}"
            command = f"pmmrec score {self._plan.checkpoint} {self._plan.domain} --top-k 10{option} --out lists.parquet"
            note = "" if blend is None else f"best of {NUM_WEIGHTS} pairs of weights on these targets"
            plans.append(MeasuredPlan(name, values, cpu_s, command, note))
        self._say(f"measured: {', '.join(plan.name for plan in plans)}")
        return plans

    def _evaluated(
        self, checkpoint: Checkpoint, ways: Sequence[Way]
    ) -> list[tuple[dict[str, NDArray[np.float64]], float, BlendConfig | None]]:
        """The values of each user, CPU seconds, and the settings of a blend, of each way to score."""
        began_s, device = time.process_time(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
        found = []
        with threads_for(checkpoint.model_config), bars() as progress:
            model = load_recommender(checkpoint, [self._domain.catalogue], [self._split.graph]).to(device)
            reads, cache = model.item_encoder.reads, expanded(self._recipe.cache)
            limit = self._recipe.data.max_unreadable
            reader = ItemReader([self._domain], reads, cache, progress, limit, self._warn)
            rules: dict[str, Any] = {"chunk": ITEMS_AT_ONCE, "device": device, "progress": progress}
            vectors_ND = encode_catalogue(model, reader, 0, self._domain.num_items, **rules)
            encoding_s = time.process_time() - began_s
            for way in ways:
                began_s, blending = time.process_time(), Blending("auto" if way == "auto" else None)
                popularity = blending.popularity(checkpoint.model_config, None if way == "auto" else way)
                if popularity is not None:
                    model.scorer = scorer_with(checkpoint.model_config, popularity).to(device)
                blend = blending.of_split(model, reader, self._split, vectors_ND, self._recipe.validation.seen)
                asked = (model, reader, 0, self._split, self._holdout, device, self._recipe.validation.seen)
                values = _shown(evaluate_model(*asked, vectors_ND=vectors_ND, blend=blend, progress=progress))
                seconds = encoding_s + time.process_time() - began_s
                found.append((values, seconds, None if blend is None else blend.config))
        return found

    def _trained(self, name: str, lock: int) -> MeasuredPlan:
        """A fine-tuning of half of the minutes, in a process of its own; a finished one is not repeated."""
        run = self.folder / name
        settings = [f"transfer={TRAININGS[name]}", "adapters=null"]
        short = [f"name={name}", f"runs={self.folder}", "rank_test=false", f"train.minutes={self._plan.minutes / 2:g}"]
        outcome = _outcome(run)
        if outcome is None:
            program = str(shipped_file("finetune/run.py"))
            command = [sys.executable, "-u", program, *self._words([*settings, *short]), "--resume"]
            self._run(name, command, lock)
            outcome = read_outcome(run)
        ((values, evaluating_s, _),) = self._evaluated(Checkpoint.open(run / CHECKPOINT_FOLDER), [None])
        self._say(f"measured: {name}")
        note = f"best of {outcome.num_epochs} epochs: {outcome.best_epoch}"
        if outcome.best_epoch == outcome.num_epochs:
            note += ", the last; more may be better"
        command_line = shlex.join(["pmmrec", "finetune", *self._words([*settings, f"name={name}"])])
        return MeasuredPlan(name, values, self._cpu_s().get(name, 0.0) + evaluating_s, command_line, note)

    def _words(self, settings: list[str]) -> list[str]:
        """The arguments of a fine-tuning."""
        plan = self._plan
        base = [] if plan.base is None else ["--base", plan.base]
        start = [plan.recipe, "--from", plan.checkpoint, "--on", str(plan.domain), *base]
        return [*start, *plan.overrides, *([f"hub={plan.hub}"] if plan.hub != Path("hub") else []), *settings]

    def _run(self, name: str, command: list[str], lock: int) -> None:
        """Train; RecipeError with the message of the program where it fails."""
        process = ChildProcess(command, self.folder / f"{name}.log", kept_open=lock)
        try:
            with signals_as_interrupts() as interrupted:
                while process.exit_code() is None:
                    if interrupted.is_set():
                        raise KeyboardInterrupt
                    time.sleep(POLL_S)
        finally:
            end_all([process])
            seconds = self._cpu_s()
            with whole_file(self.folder / CPU_FILE) as draft:
                draft.write_text(json.dumps({**seconds, name: seconds.get(name, 0.0) + process.cpu_s}))
        if process.wait():
            raise RecipeError(f"{self.folder / name}: {process.failure()}")

    def _cpu_s(self) -> Mapping[str, float]:
        """CPU seconds of each fine-tuning so far."""
        path = self.folder / CPU_FILE
        known: Mapping[str, float] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        return known


def _outcome(run: Path) -> Outcome | None:
    """The outcome of a finished run; None where there is none."""
    try:
        return read_outcome(run)
    except DataError:
        return None


def _shown(evaluation: Evaluation) -> dict[str, NDArray[np.float64]]:
    by_user = evaluation.by_user
    return {metric: by_user[metric] for metric in (SECOND_METRIC, METRIC)}
