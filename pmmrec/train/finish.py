"""Write the results of a run: the best checkpoint during training, then test metrics and the publication."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from pmmrec.data.batches import DataConfig
from pmmrec.data.domain import Domain
from pmmrec.data.prefix import PrefixConfig
from pmmrec.evaluation.baselines import left_out
from pmmrec.evaluation.catalogue import Evaluation, evaluate_model
from pmmrec.evaluation.domain_paths import write_domain_paths
from pmmrec.evaluation.encoded import encoder_name
from pmmrec.evaluation.outcome import (
    DomainOutcome,
    Outcome,
    baseline_columns,
    domain_outcome,
    rank_baselines,
    write_outcome,
)
from pmmrec.evaluation.ranking import write_ranks
from pmmrec.evaluation.share import WorkerGroup
from pmmrec.homes import expanded
from pmmrec.models.build import ModelConfig
from pmmrec.progress import bars
from pmmrec.train.callbacks import ValidationConfig
from pmmrec.train.frozen_items import kept_in_run
from pmmrec.train.loop import Loop
from pmmrec.train.prepare import Sources, open_reader
from pmmrec.train.run import Run, Runnable
from pmmrec.train.run_folder import CHECKPOINT_FOLDER, package_version
from pmmrec.zoo import files
from pmmrec.zoo.adapters import AdapterSetup
from pmmrec.zoo.checkpoint import AdapterCheckpoint, Checkpoint, load_recommender
from pmmrec.zoo.hub import publish
from pmmrec.zoo.save import save_checkpoint

__all__ = ["CHECKPOINT_FOLDER", "publish_best", "rank_test_targets", "save_best"]


class Finishable(Runnable, Protocol):
    """The fields of a recipe that the end of a run needs."""

    @property
    def system(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def hub(self) -> Path: ...
    @property
    def cache(self) -> Path: ...
    @property
    def data(self) -> DataConfig: ...
    @property
    def prefix(self) -> PrefixConfig: ...
    @property
    def validation(self) -> ValidationConfig: ...
    @property
    def rank_test(self) -> bool: ...
    def to_public_yaml(self) -> str: ...


def _read_of(domain: Domain, model: ModelConfig) -> list[str]:
    """Whether a domain has texts and images, and which of its further columns the model reads."""
    modalities = [modality.value for modality, has_N in domain.has.items() if has_N.any()]
    columns = (model.item_encoder.fields - {modality.value for modality in domain.has}) & set(domain.attributes)
    return modalities + sorted(columns)


def _fingerprints(sources: Sources) -> dict[str, str]:
    return {domain.name: domain.fingerprint for domain in sources.domains}


def save_best(
    run: Run,
    recipe: Finishable,
    model: ModelConfig,
    sources: Sources,
    origin: str,
    setup: AdapterSetup | None = None,
    before: Mapping[str, Mapping[str, Any]] | None = None,
    judging: Sources | None = None,
) -> Callable[[Loop], None]:
    """A function for `KeepBest` that writes `checkpoint/` of the run; for a model with adapters, these only.

    `origin`: the checkpoint that training started from, or "none"; `before`: the domains that were learned from there;
    `judging`: the domains whose validation targets choose the epoch, where these are not the sources.
    """
    provenance: dict[str, Any] = {
        "run": recipe.name,
        "seed": recipe.seed,
        "started_from": origin,
        **({"before": dict(before)} if before else {}),
        **({"weights": run.weights} if run.weights else {}),
        **({"judged_by": _fingerprints(judging)} if judging is not None and judging is not sources else {}),
        "pmmrec": package_version("pmmrec"),
        "domains": {
            domain.name: {
                "fingerprint": domain.fingerprint,
                "users": domain.num_users,
                "items": domain.num_items,
                "interactions": domain.num_interactions,
                "modalities": _read_of(domain, model),
            }
            for domain in sources.domains
        },
    }

    def write_best(loop: Loop, state: Mapping[str, Tensor]) -> None:
        epoch = max(loop.validation)
        save_checkpoint(
            run.folder / CHECKPOINT_FOLDER,
            system=recipe.system,
            model_config=model,
            recommender=loop.task.recommender,
            objectives=loop.task.heads,
            state=state,
            recipe=recipe.to_public_yaml(),
            metrics={"epoch": epoch, "validation": dict(loop.validation[epoch])},
            card="",
            provenance=provenance,
            replace=True,
            setup=setup,
        )

    def save(loop: Loop) -> None:
        state = loop.state_dict()
        run.by_main(lambda: write_best(loop, state))

    return save


def rank_test_targets(
    run: Run, recipe: Finishable, loop: Loop, sources: Sources, kind: str, base: str | None = None
) -> Outcome | None:
    """Rank the test targets once with the best weights; write metrics.json and the ranks.

    Returns None outside the main process, and if the recipe does not rank them (`rank_test: false`): metrics.json then
    holds only validation metrics, as it does where the domains keep no test target (`data.holdout`). `base`: another
    place to look for the base checkpoint of adapters.
    """
    best = run.folder / CHECKPOINT_FOLDER
    with loop.watched(), loop.stoppable():
        is_ranked = recipe.rank_test and recipe.data.has_test
        evaluations = _test(run, recipe, best, sources, base, loop.group) if is_ranked else ()
    outcome = run.by_main(lambda: _written_outcome(run, recipe, loop, sources, kind, evaluations))
    if not recipe.rank_test:
        run.log.say("test targets left alone (rank_test: false); nothing is published")
        return None
    if not recipe.data.has_test:
        run.log.say("data.holdout: the sources keep no test target; metrics.json holds the figures of validation")
    return outcome


def publish_best(run: Run, hub: Path, name: str, *, replace: bool) -> Path:
    """Publish the best checkpoint of a run; publish it again if a run is resumed that had already published it.

    Raises as `publish`.
    """
    best, place = run.folder / CHECKPOINT_FOLDER, hub / name
    is_there = run.resumes and (files.current(place) / files.INDEX_NAME).is_file()
    is_ours = is_there and Checkpoint.open(place).index.parts == Checkpoint.open(best).index.parts
    return publish(best, hub, name, replace=replace or is_ours)


def _test(
    run: Run, recipe: Finishable, folder: Path, sources: Sources, base: str | None, group: WorkerGroup
) -> tuple[Evaluation, ...]:
    """Rank the test targets of every domain, shared by all processes.

    The item vectors are read from the cache or kept there, where `evaluate` and `score` find them; but not those that
    come from states of frozen blocks in bfloat16, which are rounded, nor those of a table of ids.
    """
    checkpoint = Checkpoint.open(folder)
    if isinstance(checkpoint, AdapterCheckpoint):
        checkpoint.look_for_base(base, recipe.hub)
    recommender = load_recommender(checkpoint, sources.catalogues, sources.graphs).to(run.processes.device)
    reader = open_reader(sources, recommender, recipe, run, makes_states=False)
    device, judge = run.processes.device, recipe.validation
    holdouts = [split.holdout("test", judge.users) for split in sources.splits]
    for split, holdout in zip(sources.splits, holdouts, strict=True):
        if warning := split.left_out(holdout):
            run.log.warn(warning)
    vectors_ND: list[Tensor | None] = [None] * len(sources.domains)
    encoder = recommender.item_encoder
    reads_states = recipe.prefix.use != "off" and any(tensor.requires_grad for tensor in encoder.parameters())
    if encoder.fields and not (reads_states and recipe.prefix.precision == "bfloat16"):
        name, cache = (
            encoder_name(recommender, checkpoint.model_config, checkpoint.index.adapters),
            expanded(recipe.cache),
        )
        vectors_ND = [
            kept_in_run(recommender, reader, place, domain, name, cache, run)
            for place, domain in enumerate(sources.names)
        ]
    with bars(is_shown=run.processes.is_main) as progress:
        return tuple(
            evaluate_model(
                *(recommender, reader, index, split, holdout, device, judge.seen),
                measured=judge.measured,
                vectors_ND=vectors_ND[index],
                group=group,
                progress=progress,
            )
            for index, (split, holdout) in enumerate(zip(sources.splits, holdouts, strict=True))
        )


def _written_outcome(
    run: Run, recipe: Finishable, loop: Loop, sources: Sources, kind: str, evaluations: Sequence[Evaluation]
) -> Outcome:
    """Write the outcome of a run to its folder, and return it."""
    best_epoch, _ = loop.best or (0, 0.0)
    outcome = Outcome(
        name=recipe.name,
        kind=kind,
        seen=recipe.validation.seen,
        split=sources.splits[0].told,
        domains=_written(run, recipe, sources, evaluations) if evaluations else (),
        best_epoch=best_epoch,
        num_epochs=max(loop.validation),
        training_s=round(loop.training_s, 1),
        seconds_per_epoch=loop.cost.seconds_per_epoch,
        trainable_parameters=loop.cost.trainable_parameters,
        total_parameters=loop.cost.total_parameters,
        peak_memory_bytes=loop.cost.peak_memory_bytes,
        validation=dict(loop.validation[best_epoch]),
        judged_by=None if recipe.validation.domain is None else Domain.open(recipe.validation.domain).name,
    )
    write_domain_paths(run.folder, sources.domains)
    write_outcome(run.folder, outcome)
    return outcome


def _written(
    run: Run, recipe: Finishable, sources: Sources, evaluations: Sequence[Evaluation]
) -> tuple[DomainOutcome, ...]:
    """Write the ranks of every domain, and return their metrics beside those of the baselines."""
    outcomes, judge = [], recipe.validation
    for domain, split, evaluation in zip(sources.domains, sources.splits, evaluations, strict=True):
        ranks_file = "ranks.parquet" if len(sources.domains) == 1 else f"ranks-{domain.name}.parquet"
        if warning := left_out(split):
            run.log.warn(warning)
        baselines = rank_baselines(split, judge.seen, split.holdout("test", judge.users), judge.measured)
        more = baseline_columns(baselines)
        write_ranks(run.folder / ranks_file, evaluation.ranks, domain.user_ids, domain.item_ids, more)
        outcomes.append(domain_outcome(split, evaluation, baselines))
    return tuple(outcomes)
