"""Verbs for checkpoints: zoo list, show, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from pmmrec.cli.options import HUB, BasePlace, Checkpoint, HubFolder
from pmmrec.terminal import errors_for_people, say_problems, show

app = typer.Typer(help="Find, read and check checkpoints.", no_args_is_help=True)


@app.command("list")
def zoo_list(hub: HubFolder = HUB) -> None:
    """The checkpoints in a folder hub."""
    from pmmrec.report.checkpoints import hub_table
    from pmmrec.report.tables import to_rich

    with errors_for_people():
        show(to_rich(hub_table(hub)))


@app.command("show")
def zoo_show(checkpoint: Checkpoint, hub: HubFolder = HUB) -> None:
    """The parts of a checkpoint, their sizes, what they were trained on."""
    from pmmrec.report.checkpoints import checkpoint_table
    from pmmrec.report.tables import to_rich

    with errors_for_people():
        show(to_rich(checkpoint_table(checkpoint, hub)))


@app.command("verify")
def zoo_verify(checkpoint: Checkpoint, hub: HubFolder = HUB) -> None:
    """Check every file of a checkpoint against its index, and every tensor against the model."""
    from pmmrec.report.checkpoints import checkpoint_problems

    with errors_for_people():
        folder, problems = checkpoint_problems(checkpoint, hub)
        say_problems(folder, problems)


@app.command("merge")
def zoo_merge(
    checkpoint: Checkpoint,
    out: Annotated[Path, Option("--out", help="Folder to make.")],
    base: BasePlace = None,
    hub: HubFolder = HUB,
) -> None:
    """Merge adapters into the checkpoint they stand on: a whole one that computes the same."""
    from pmmrec.zoo.adapters import merge_adapters, standing_on
    from pmmrec.zoo.checkpoint import Checkpoint as Opened
    from pmmrec.zoo.hub import find_checkpoint

    with errors_for_people():
        merge_adapters(standing_on(Opened.open(find_checkpoint(checkpoint, hub)), base, hub), out)
        typer.echo(f"{out}: a whole checkpoint, without adapters")
