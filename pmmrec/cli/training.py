"""Verbs that train: pretrain, finetune, tune."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from typer import Argument, Option

from pmmrec.terminal import errors_for_people, named_folders, run_program, show

app = typer.Typer()
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


Launch = Annotated[str | None, Option(metavar="FILE", help="Start several processes: a file, or a name such as zero2.")]
PerNode = Annotated[int | None, Option("--processes-per-node", min=1, metavar="N", help="In the place of the file's.")]
Nodes = Annotated[int | None, Option(min=1, metavar="N", help="Machines in all; in the place of the file's.")]
NodeRank = Annotated[int | None, Option(min=0, metavar="R", help="Which of them this is, from 0.")]
Rendezvous = Annotated[str | None, Option(metavar="HOST:PORT", help="Of machine 0, where they meet.")]
PrintCommand = Annotated[bool, Option("--print-command", help="Show what --launch would start, and start nothing.")]


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

    Adapters in --from take \\[--base CHECKPOINT]: what they stand on, where it is not found.
    """
    machines = _Machines(processes_per_node, nodes, node_rank, rendezvous)
    _start("finetune/run.py", context.args, launch, machines, print_command=print_command)


@app.command()
def tune(
    recipe: Annotated[str, Argument(metavar="RECIPE", help="A file or a shipped recipe, of either verb.")],
    space: Annotated[Path, Option(help="YAML file: what is tried for each setting.")],
    trials: Annotated[int, Option(min=1, help="Trials in all, those of earlier starts included.")],
    overrides: Annotated[list[str] | None, Argument(metavar="A.B=C...", help="Settings that all trials share.")] = None,
    start_from: Annotated[
        str | None, Option("--from", metavar="CHECKPOINT", help="For a fine-tuning: as there; none: from scratch.")
    ] = None,
    on: Annotated[Path | None, Option(metavar="DOMAIN", help="For a fine-tuning: as there.")] = None,
    name: Annotated[str | None, Option(help="Folder of the search below --runs; the recipe's name with -tune.")] = None,
    runs: Annotated[Path | None, Option(help="Where it is made; the recipe's runs.")] = None,
    timeout: Annotated[float | None, Option(metavar="MINUTES", help="Start no further trial after so long.")] = None,
    jobs: Annotated[int, Option(min=1, help="Trials at a time; they share the machine and its GPU.")] = 1,
    seed: Annotated[int, Option(min=0, help="Of what is proposed; the runs keep the recipe's seed.")] = 1,
    prune: Annotated[bool, Option(help="End trials early that stay below the median of five or more.")] = True,
    prune_after: Annotated[int, Option(min=0, metavar="EPOCHS", help="Epochs that every trial gets.")] = 3,
    keep_checkpoints: Annotated[
        bool, Option("--keep-checkpoints", help="Keep the weights of all trials, not of the best alone.")
    ] = False,
    weights: Annotated[list[str] | None, Option(metavar="NAME=FOLDER", help="As in pretrain and finetune.")] = None,
) -> None:
    """Search for settings on validation alone; the same command again goes on where it was stopped.

    Each trial is a run of its own, below trials/; the first is the recipe as it stands. No trial ranks test targets or
    is published: run the best.yaml that is left, once, for that. Of all checkpoints the best alone is kept.
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


class _Machines(NamedTuple):
    """What of a launch the command line says, in the place of the file."""

    per_node: int | None
    num_nodes: int | None
    node_rank: int | None
    rendezvous: str | None


def _start(
    program: str, arguments: list[str], launch: str | None, machines: _Machines, *, print_command: bool = False
) -> None:
    from pmmrec.errors import RecipeError
    from pmmrec.launch import asked_before_it_begins
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
                "--node-rank, --rendezvous, --print-command: need a launch, and this is none; leave them out"
            )
        if launch is not None and not is_plan:
            raise typer.Exit(_launch(path, arguments, launch, machines, print_command=print_command))
        if launch is not None:
            arguments = [*arguments, "--launch", launch, *_processes_of(launch, machines)]
    with asked_before_it_begins():
        story = runpy.run_path(str(path), run_name=f"pmmrec_{path.parent.name}_run")
        sys.argv = [f"pmmrec {path.parent.name}", *arguments]  # what its usage and the log of its run call it
        run_program(story["main"])


def _processes_of(launch: str, machines: _Machines) -> list[str]:
    """What a program that plans must be told of how many processes there will be; nothing where the file says it."""
    from pmmrec.launch import LaunchFile

    if machines.per_node is None and machines.num_nodes is None:
        return []
    file = LaunchFile.read(launch)
    return ["--processes", str((machines.per_node or file.per_node) * (machines.num_nodes or file.num_nodes))]


def _launch(program: Path, arguments: list[str], launch: str, machines: _Machines, *, print_command: bool) -> int:
    """Start processes of a program, or show the command that would; the exit code."""
    from pmmrec.launch import LaunchCommand, LaunchFile, ignore_when_stopped

    command = LaunchCommand.of(LaunchFile.read(launch), program, arguments, **machines._asdict())
    if print_command:
        typer.echo(command.to_shell(os.environ))
        return 0
    code = command.run("pmmrec.train.start", os.environ)
    ignore_when_stopped(code)
    return code
