"""Pretrain a recommender on several domains, keep the best weights, publish the parts.

Start it with `pmmrec pretrain RECIPE [a.b=c ...]`, with `accelerate launch pretrain/run.py RECIPE`, or copy it and
change it: it reads top to bottom as the story of a run.
"""

from typing import Annotated

from typer import Argument, Option

from pmmrec.launch import launch_help
from pmmrec.models.build import build
from pmmrec.recipe import PretrainRecipe, read_recipe
from pmmrec.report.outcomes import outcome_tables
from pmmrec.report.publishing import write_card
from pmmrec.shipped import find_recipe
from pmmrec.terminal import named_folders, run_program
from pmmrec.train.callbacks import KeepBest
from pmmrec.train.dry_run import print_plan
from pmmrec.train.example_checks import check_examples, refuse_unasked
from pmmrec.train.finish import CHECKPOINT_FOLDER, publish_best, rank_test_targets, save_best
from pmmrec.train.judge import judge_epochs, judging_domains
from pmmrec.train.loop import Loop
from pmmrec.train.memory import Launched
from pmmrec.train.prepare import Batches, Sources, open_backbones, open_reader
from pmmrec.train.run import Run, is_requeued
from pmmrec.train.stages import freeze_for_good, refuse_frozen_at_random
from pmmrec.train.states import States
from pmmrec.train.targets import check_targets, check_users
from pmmrec.train.task import TrainingTask
from pmmrec.train.thread_trial import settle_threads
from pmmrec.zoo.hub import refuse_taken_name

Recipe = Annotated[str, Argument(metavar="RECIPE", help="A file, or a shipped recipe such as pretrain/pmmrec.")]
Overrides = Annotated[list[str] | None, Argument(metavar="A.B=C...", help="Settings that win over the recipe's.")]
Weights = Annotated[list[str] | None, Option(metavar="NAME=FOLDER", help="Where the pretrained backbone NAME lies.")]
Resume = Annotated[bool, Option("--resume", help="Go on where this run was stopped; begin it if it has not begun.")]
LaunchFile = Annotated[str | None, Option("--launch", metavar="FILE", help=launch_help())]
NumProcesses = Annotated[
    int | None, Option("--processes", min=1, metavar="N", help="With --dry-run: so many processes, whatever FILE says.")
]
DryRun = Annotated[bool, Option("--dry-run", help="Check recipe, data and shapes, print the plan, and exit.")]


def main(
    recipe_name: Recipe,
    overrides: Overrides = None,
    weights: Weights = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    launch: LaunchFile = None,
    processes: NumProcesses = None,
) -> None:
    """Pretrain on the domains of a recipe; publish item encoders, fusion and user encoder as parts."""
    recipe = read_recipe(PretrainRecipe, find_recipe(recipe_name), overrides or ())
    launched = Launched.read(launch, processes, is_plan=dry_run)
    sources = Sources.open(recipe.data.sources, recipe.data)
    judging = judging_domains(recipe, recipe.model, sources)
    check_targets(recipe, sources, judging)
    check_users(recipe, recipe.model, sources)
    if dry_run:
        refuse_taken_name(recipe.hub, recipe.published_name, replace=recipe.replace)
        print_plan(recipe, recipe.model, recipe.data, sources, named_folders(weights or ()), launched=launched)
        return

    with Run.start(recipe, model=recipe.model, resume=resume or is_requeued()) as run:
        if run.is_finished:
            return
        run.limit_time(step_minutes=recipe.train.step_minutes, phase_hours=recipe.train.phase_hours)
        if not run.resumes:
            refuse_taken_name(recipe.hub, recipe.published_name, replace=recipe.replace)
        backbones = open_backbones(recipe.model, run, sources.train_texts, named_folders(weights or ()))
        run.processes.seed(recipe.seed, same=True)
        recommender = build(recipe.model, backbones, sources.catalogues, sources.graphs, recipe.seed)
        task = TrainingTask.of(recommender, recipe.active_objectives, recipe.model.width)
        freeze_for_good(task, recipe.train.stages)
        refuse_frozen_at_random(task, recipe.train.stages, loaded=())
        refuse_unasked(recipe.model, task)
        check_examples(recipe.data, task, run.log)

        reader = open_reader(sources, recommender, recipe, run)
        batches = Batches.of(recipe.data, sources, reader, task, recipe.train, recipe.seed, run)
        judge = judge_epochs(recipe, sources, reader, task, run, batches, judging)
        save = save_best(run, recipe, recipe.model, sources, origin="none", judging=judging)
        keep = KeepBest(recipe.validation, save)

        run.processes.seed(recipe.seed, same=False)
        states = States.of(run, recipe.train.state, sources, started_from="none", judging=judging)
        loop = Loop(recipe.train, task, batches, run.processes, run.log, callbacks=[judge, keep], states=states)
        settle_threads(run, loop, batches)
        loop.fit()
        outcome = rank_test_targets(run, recipe, loop, sources, kind="pretrain")
        if outcome is not None:
            write_card(run.folder / CHECKPOINT_FOLDER, outcome, recipe.licence, recipe.published_name)
            run.log.say(*outcome_tables([outcome]))
            place = publish_best(run, recipe.hub, recipe.published_name, replace=recipe.replace)
            run.log.say(f"published: {place}")
        states.finish()


if __name__ == "__main__":
    run_program(main)
