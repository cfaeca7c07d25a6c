"""Verbs for checkpoints: zoo list, show, verify."""

from __future__ import annotations

import typer

from pmmrec.cli.options import HUB, Checkpoint, HubFolder
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
