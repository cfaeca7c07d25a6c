"""Fine-tune a published checkpoint on a domain it has never seen, or train the same model there from scratch.

Start it with `pmmrec finetune RECIPE --from CHECKPOINT --on DOMAIN [a.b=c ...]`, with `accelerate launch
finetune/run.py ...`, or copy it and change it: it reads top to bottom as the story of a run.
"""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from pmmrec.context import Backbone
from pmmrec.launch import launch_help
from pmmrec.models.build import ModelConfig, build
from pmmrec.recipe import FinetuneRecipe, read_recipe
from pmmrec.report.against_scratch import against_scratch, fewer_users, scratch_twin, weights_asked
from pmmrec.report.learning_curve import learning_curve
from pmmrec.report.outcomes import outcome_tables
from pmmrec.report.publishing import write_card
from pmmrec.shipped import find_recipe
from pmmrec.tables import Sentence
from pmmrec.terminal import named_folders, run_program, warn
from pmmrec.train.callbacks import KeepBest
from pmmrec.train.dry_run import print_plan
from pmmrec.train.example_checks import check_examples, refuse_unasked
from pmmrec.train.finish import CHECKPOINT_FOLDER, rank_test_targets, save_best
from pmmrec.train.frozen_items import compute_items
from pmmrec.train.judge import judge_epochs
from pmmrec.train.log import RunLog
from pmmrec.train.loop import Loop
from pmmrec.train.memory import Launched
from pmmrec.train.prepare import Batches, Sources, open_backbones, open_reader
from pmmrec.train.run import Run, is_requeued
from pmmrec.train.stages import freeze_for_good, refuse_frozen_at_random
from pmmrec.train.states import States
from pmmrec.train.targets import check_targets, check_users
from pmmrec.train.task import TrainingTask
from pmmrec.train.thread_trial import settle_threads
from pmmrec.zoo.adapters import insert_adapters
from pmmrec.zoo.checkpoint import Checkpoint, starting_point
from pmmrec.zoo.transfer import apply, plan_full

Recipe = Annotated[str, Argument(metavar="RECIPE", help="A file, or a shipped recipe such as finetune/full.")]
Overrides = Annotated[list[str] | None, Argument(metavar="A.B=C...", help="Settings that win over the recipe's.")]
From = Annotated[
    str,
    Option(
        "--from", metavar="CHECKPOINT", help="A folder, name in the hub, URL or hf://user/name; none: from scratch."
    ),
]
Base = Annotated[
    str | None,
    Option("--base", metavar="CHECKPOINT", help="For adapters in --from: their base checkpoint, if it is not found."),
]
On = Annotated[Path, Option("--on", metavar="DOMAIN", help="A folder made by `pmmrec data import`.")]
Weights = Annotated[list[str] | None, Option(metavar="NAME=FOLDER", help="Where the pretrained backbone NAME lies.")]
Resume = Annotated[bool, Option("--resume", help="Go on where this run was stopped; begin it if it has not begun.")]
LaunchFile = Annotated[str | None, Option("--launch", metavar="FILE", help=launch_help())]
NumProcesses = Annotated[
    int | None, Option("--processes", min=1, metavar="N", help="With --dry-run: so many processes, whatever FILE says.")
]
DryRun = Annotated[bool, Option("--dry-run", help="Check recipe, data and shapes, print the plan, and exit.")]
WithScratch = Annotated[
    bool, Option("--with-scratch", help="Then train the same model from scratch and say whether transfer paid.")
]
Users = Annotated[
    str | None,
    Option(
        "--users", metavar="N,N,...", help="With --with-scratch: also both on samples of so many users, as a curve."
    ),
]


def main(
    recipe_name: Recipe,
    start_from: From,
    domain: On,
    overrides: Overrides = None,
    base: Base = None,
    weights: Weights = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    launch: LaunchFile = None,
    processes: NumProcesses = None,
    with_scratch: WithScratch = False,
    users: Users = None,
) -> None:
    """Train on one domain from the parts of a checkpoint, or from scratch, and rank its test targets once."""
    recipe, resume = read_recipe(FinetuneRecipe, find_recipe(recipe_name), overrides or ()), resume or is_requeued()
    checkpoint = starting_point(start_from, base, recipe.hub, warn)
    origin = "none" if checkpoint is None else checkpoint.origin.public_name
    model = recipe.model_from(checkpoint)
    given = recipe.backbones_from(checkpoint)
    folders = named_folders(weights or ())
    twin, twin_folders = None, folders
    if with_scratch:
        twin = scratch_twin(recipe, checkpoint, folders, resume=resume)
        folders = weights_asked(model, given, folders)
    fewer = fewer_users(recipe, twin, users, resume=resume)
    launched = Launched.read(launch, processes, is_plan=dry_run)
    sources = Sources.open([domain], recipe.data)
    if checkpoint is not None:
        checkpoint.refuse_learned_targets(sources.domains[0], recipe.data.split)
    check_targets(recipe, sources)
    sources_of = [Sources.open([domain], ours.data) for ours, _ in fewer]
    for some in (sources, *sources_of):
        check_users(recipe, model, some)
    if dry_run:
        plans = recipe.transfer, recipe.adapters
        print_plan(recipe, model, recipe.data, sources, folders, given, checkpoint, *plans, launched)
        return

    with Run.start(recipe, model=model, resume=resume) as run:
        train(run, recipe, model, given, sources, folders, checkpoint, origin, base)
        if twin is None:
            return
        pairs = [(recipe, twin, sources), *((*pair, some) for pair, some in zip(fewer, sources_of, strict=True))]
        for ours, theirs, some in pairs:
            if ours is not recipe:
                with Run.start(ours, model=model, resume=resume, beside=run) as on_fewer:
                    train(on_fewer, ours, model, given, some, folders, checkpoint, origin, base)
            scratch_model = theirs.model_from(None)
            with Run.start(theirs, model=scratch_model, resume=resume, beside=run) as scratch:
                train(scratch, theirs, scratch_model, {}, some, twin_folders, None, "none")
        run.log.say(*against_scratch(recipe.folder, twin.folder))
        curve = [(some.num_trained_users, ours.folder, theirs.folder) for ours, theirs, some in pairs]
        run.by_main(lambda: say_when_it_stops(run.log, curve))


def say_when_it_stops(log: RunLog, pairs: list[tuple[int, Path, Path]]) -> None:
    """Draw the learning curve of transfer and scratch beside the first run, and say where transfer stops paying."""
    curve = learning_curve(pairs)
    files = curve.write(pairs[0][1], log.warn)
    log.say(Sentence(curve.sentence()), f"learning curve: {', '.join(map(str, files))}")


def train(
    run: Run,
    recipe: FinetuneRecipe,
    model: ModelConfig,
    given: dict[str, Backbone],
    sources: Sources,
    weights: dict[str, Path],
    checkpoint: Checkpoint | None,
    origin: str,
    base: str | None = None,
) -> None:
    """One training from its backbones to its test figures; the run folder holds what came out."""
    if run.is_finished:
        return
    run.limit_time(step_minutes=recipe.train.step_minutes, phase_hours=recipe.train.phase_hours)
    backbones = open_backbones(model, run, sources.train_texts, weights, given)
    run.processes.seed(recipe.seed, same=True)
    recommender = build(model, backbones, sources.catalogues, sources.graphs, recipe.seed)
    task = TrainingTask.of(recommender, recipe.active_objectives, model.width)
    refuse_unasked(recipe.model, task)
    check_examples(recipe.data, task, run.log)
    report, setup = None, None
    if checkpoint is not None:
        report = apply(recipe.transfer or plan_full(checkpoint, recommender), checkpoint, recommender, task.heads)
        task.loaded = report.loaded
        if recipe.adapters is not None:
            setup = insert_adapters(checkpoint, recommender, recipe.adapters, report.loaded)
    freeze_for_good(task, recipe.train.stages)
    refuse_frozen_at_random(task, recipe.train.stages, () if report is None else report.loaded)
    if report is not None:
        run.log.say(report.table(task.sizes), *(setup.lines() if setup is not None else ()))

    reader = open_reader(sources, recommender, recipe, run)
    reader = compute_items(sources, task, reader, recipe, model, run)
    batches = Batches.of(recipe.data, sources, reader, task, recipe.train, recipe.seed, run)
    judge = judge_epochs(recipe, sources, reader, task, run, batches)
    before = None if checkpoint is None else checkpoint.inherited
    keep = KeepBest(recipe.validation, save_best(run, recipe, model, sources, origin, setup, before))

    run.processes.seed(recipe.seed, same=False)
    states = States.of(run, recipe.train.state, sources, started_from=origin)
    loop = Loop(recipe.train, task, batches, run.processes, run.log, callbacks=[judge, keep], states=states)
    settle_threads(run, loop, batches)
    loop.fit()
    outcome = rank_test_targets(run, recipe, loop, sources, "finetune", base)
    if outcome is not None:
        kept = run.folder / CHECKPOINT_FOLDER
        write_card(kept, outcome, recipe.licence, place=str(kept))
        run.log.say(*outcome_tables([outcome]))
    states.finish()


if __name__ == "__main__":
    run_program(main)
