"""Commands that train: pretrain, finetune, tune."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from typer import Argument, Option

from pmmrec.cli.options import HUB, AsJson, BasePlace, Checkpoint, DomainFolder, HubFolder, show_json
from pmmrec.terminal import errors_for_people, named_folders, run_program, show, tell, warn

app = typer.Typer()
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


Launch = Annotated[str | None, Option(metavar="FILE", help="Start several processes: a file, or a name such as zero2.")]
PerNode = Annotated[int | None, Option("--processes-per-node", min=1, metavar="N", help="Overrides that of the file.")]
Nodes = Annotated[int | None, Option(min=1, metavar="N", help="Number of machines; overrides the file.")]
NodeRank = Annotated[int | None, Option(min=0, metavar="R", help="Number of this machine, from 0.")]
Rendezvous = Annotated[str | None, Option(metavar="HOST:PORT", help="Address of machine 0, where machines connect.")]
PrintCommand = Annotated[bool, Option("--print-command", help="Print the command of --launch without running it.")]


@app.command(context_settings=_PASSED_ON, add_help_option=False)
def pretrain(
    context: typer.Context,
    launch: Launch = None,
    processes_per_node: PerNode = None,
    nodes: Nodes = None,
    node_rank: NodeRank = None,
    rendezvous: Rendezvous = None,
    print_command: PrintCommand = False,
) -> None:
    """Pretrain on several domains: RECIPE \\[a.b=c ...] \\[--dry-run] \\[--launch FILE]."""
    machines = _Machines(processes_per_node, nodes, node_rank, rendezvous)
    _start("pretrain/run.py", context.args, launch, machines, print_command=print_command)


@app.command(context_settings=_PASSED_ON, add_help_option=False)
def finetune(
    context: typer.Context,
    launch: Launch = None,
    processes_per_node: PerNode = None,
    nodes: Nodes = None,
    node_rank: NodeRank = None,
    rendezvous: Rendezvous = None,
    print_command: PrintCommand = False,
) -> None:
    """Train on one domain: RECIPE --from CHECKPOINT|none --on DOMAIN \\[a.b=c ...] \\[--dry-run] \\[--launch FILE].

    For adapters in --from, \\[--base CHECKPOINT] names their base checkpoint if it is not found.
    """
    machines = _Machines(processes_per_node, nodes, node_rank, rendezvous)
    _start("finetune/run.py", context.args, launch, machines, print_command=print_command)


@app.command()
def tune(
    recipe: Annotated[str, Argument(metavar="RECIPE", help="A file or a shipped recipe of pretrain or finetune.")],
    space: Annotated[Path, Option(help="YAML file with the values to try for each setting.")],
    trials: Annotated[int, Option(min=1, help="Total number of trials, including those of earlier starts.")],
    overrides: Annotated[list[str] | None, Argument(metavar="A.B=C...", help="Settings shared by all trials.")] = None,
    start_from: Annotated[
        str | None, Option("--from", metavar="CHECKPOINT", help="As in finetune; none: from scratch.")
    ] = None,
    on: Annotated[Path | None, Option(metavar="DOMAIN", help="As in finetune.")] = None,
    name: Annotated[
        str | None, Option(help="Folder of the search below --runs; default: NAME-tune of the recipe.")
    ] = None,
    runs: Annotated[Path | None, Option(help="Folder of the searches; default: that of the recipe.")] = None,
    timeout: Annotated[float | None, Option(metavar="MINUTES", help="Start no trial after this time.")] = None,
    jobs: Annotated[int, Option(min=1, help="Number of parallel trials; they share the machine and its GPU.")] = 1,
    seed: Annotated[int, Option(min=0, help="Seed of the proposals; runs keep the seed of the recipe.")] = 1,
    prune: Annotated[bool, Option(help="End trials early that are below the median of five or more.")] = True,
    prune_after: Annotated[int, Option(min=0, metavar="EPOCHS", help="Epochs that every trial gets.")] = 3,
    keep_checkpoints: Annotated[
        bool, Option("--keep-checkpoints", help="Keep the weights of all trials, not only of the best.")
    ] = False,
    weights: Annotated[list[str] | None, Option(metavar="NAME=FOLDER", help="As in pretrain and finetune.")] = None,
) -> None:
    """Search for settings by validation metrics; run the same command again to resume.

    Each trial is a run below trials/; the first uses the recipe's own values. Trials neither rank test targets nor
    publish; run the resulting best.yaml once for that. Only the best checkpoint is kept.
    """
    from pmmrec.settings import validate
    from pmmrec.tables import PlainTable
    from pmmrec.tuning import require_optuna

    with errors_for_people():
        require_optuna()
        from pmmrec.tuning.search import Search, SearchPlan

        named_folders(weights or ())
        asked = {"recipe": recipe, "overrides": overrides or (), "space": space, "trials": trials, "on": on}
        where = {"start_from": start_from, "name": name, "runs": runs, "weights": weights or ()}
        how = {"jobs": jobs, "seed": seed, "timeout_min": timeout, "keep_checkpoints": keep_checkpoints}
        after = prune_after if prune else None
        plan = validate(SearchPlan, {**asked, **where, **how, "prune_after": after}, "arguments")
        found = Search(plan, typer.echo).run()
        show(PlainTable(f"{found.folder}: the best trials, by validation", found.columns, found.rows))
        for setting, share in found.importances.items():
            typer.echo(f"importance {share:6.1%}  {setting}")
        typer.echo(f"best settings: {found.best}")


@app.command()
def advise(
    checkpoint: Checkpoint,
    domain: DomainFolder,
    overrides: Annotated[list[str] | None, Argument(metavar="A.B=C...", help="Settings of the fine-tunings.")] = None,
    recipe: Annotated[str, Option(metavar="RECIPE", help="Of the fine-tunings, and of the split.")] = "finetune/full",
    minutes: Annotated[float, Option(help="Training time of both fine-tunings together.")] = 10,
    out: Annotated[Path | None, Option(metavar="FOLDER", help="Of its runs; default: advise-... in runs.")] = None,
    hub: HubFolder = HUB,
    base: BasePlace = None,
    as_json: AsJson = False,
) -> None:
    """Measure what a checkpoint could do on a domain, and recommend a plan with its command line.

    Ranks the validation targets by popularity, item-kNN, zero-shot and two short fine-tunings; no test target is read.
    The same command goes on where it was stopped.
    """
    from pmmrec.settings import validate
    from pmmrec.tables import Sentence

    with errors_for_people():
        from pmmrec.advice.advise import AdvicePlan, Adviser

        asked = {"checkpoint": checkpoint, "domain": domain, "recipe": recipe, "overrides": overrides or ()}
        how = {"minutes": minutes, "out": out, "hub": hub, "base": base}
        advice = Adviser(validate(AdvicePlan, {**asked, **how}, "arguments"), tell, warn).advise()
        if as_json:
            show_json(advice.record())
        else:
            show(advice.table(), *map(Sentence, advice.lines()))


class _Machines(NamedTuple):
    """Options of a launch that override its file."""

    per_node: int | None
    num_nodes: int | None
    node_rank: int | None
    rendezvous: str | None


def _start(
    program: str, arguments: list[str], launch: str | None, machines: _Machines, *, print_command: bool = False
) -> None:
    from pmmrec.errors import RecipeError
    from pmmrec.launch import stopped_before_run
    from pmmrec.shipped import shipped_file

    is_plan = "--dry-run" in arguments or {"--help", "-h"} & {*arguments}
    with errors_for_people():
        path = shipped_file(program)
        if launch is None and (print_command or any(option is not None for option in machines)):
            raise RecipeError(
                "--nodes, --node-rank, --rendezvous, --processes-per-node, --print-command: need --launch FILE"
            )
        if is_plan and (print_command or machines.node_rank is not None or machines.rendezvous is not None):
            raise RecipeError(
                "--node-rank, --rendezvous, --print-command: need a launch, but this only plans; leave them out"
            )
        if launch is not None and not is_plan:
            _launch(path, arguments, launch, machines, print_command=print_command)
            return
        if launch is not None:
            arguments = [*arguments, "--launch", launch, *_processes_of(launch, machines)]
    with stopped_before_run():
        story = runpy.run_path(str(path), run_name=f"pmmrec_{path.parent.name}_run")
        sys.argv = [f"pmmrec {path.parent.name}", *arguments]  # the name in its usage text and in the log of its run
        run_program(story["main"])


def _processes_of(launch: str, machines: _Machines) -> list[str]:
    """The option that tells a dry run the number of processes; empty if the launch file says it."""
    from pmmrec.launch import LaunchFile

    if machines.per_node is None and machines.num_nodes is None:
        return []
    file = LaunchFile.read(launch)
    return ["--processes", str((machines.per_node or file.per_node) * (machines.num_nodes or file.num_nodes))]


def _launch(program: Path, arguments: list[str], launch: str, machines: _Machines, *, print_command: bool) -> None:
    """Become the launcher of a program, or show the command that would start it."""
    from pmmrec.launch import LaunchCommand, LaunchFile

    command = LaunchCommand.of(LaunchFile.read(launch), program, arguments, **machines._asdict())
    if print_command:
        typer.echo(command.to_shell(os.environ))
    else:
        command.start("pmmrec.train.start", os.environ)
