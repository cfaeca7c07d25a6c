"""Commands for checkpoints and systems: zoo list, systems, show, verify, diff, push, pull, merge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from pmmrec.cli.options import HUB, AsJson, BasePlace, Checkpoint, HubFolder, show_json
from pmmrec.terminal import errors_for_people, say_problems, show, warn

app = typer.Typer(help="Find, read, check and publish checkpoints.", no_args_is_help=True)
MB = 1_000_000


@app.command("list")
def zoo_list(
    place: Annotated[
        str | None, Argument(metavar="PLACE", help="A folder, a URL prefix, or hf://user; default: --hub.")
    ] = None,
    hub: HubFolder = HUB,
) -> None:
    """List the checkpoints of a folder hub, below a URL, or of a user of the Hugging Face Hub."""
    from pmmrec.report.checkpoints import hub_table

    with errors_for_people():
        show(hub_table(place or hub))


@app.command("systems")
def zoo_systems(
    of: Annotated[
        str | None, Option("--of", metavar="TEXT", help="Only those with TEXT in their name, paper or table: NineRec.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the systems of papers that come as recipes: what each reads, trains, transfers and scores by."""
    from pmmrec.report.systems import system_facts, systems_table

    with errors_for_people():
        facts = system_facts(of)
        show_json({"systems": facts}) if as_json else show(systems_table(facts))


@app.command("show")
def zoo_show(checkpoint: Checkpoint, hub: HubFolder = HUB, as_json: AsJson = False) -> None:
    """Show the parts of a checkpoint, their sizes and training domains; no weights are downloaded."""
    from pmmrec.report.checkpoints import CheckpointFacts

    with errors_for_people():
        facts = CheckpointFacts.read(checkpoint, hub, warn)
        show_json(facts) if as_json else show(facts.table())


@app.command("verify")
def zoo_verify(checkpoint: Checkpoint, hub: HubFolder = HUB) -> None:
    """Check every file of a checkpoint against its index, and every tensor against the model."""
    from pmmrec.report.checkpoints import checkpoint_problems

    with errors_for_people():
        folder, problems = checkpoint_problems(checkpoint, hub, warn)
        say_problems({folder: problems})


@app.command("diff")
def zoo_diff(
    first: Annotated[str, Argument(metavar="FIRST", help="A local or remote checkpoint.")],
    second: Annotated[str, Argument(metavar="SECOND", help="Another.")],
    hub: HubFolder = HUB,
) -> None:
    """Show the differences of two checkpoints: parts, tensors, settings, provenance."""
    from pmmrec.report.differences import differences
    from pmmrec.zoo.checkpoint import open_checkpoint

    with errors_for_people():
        opened = [open_checkpoint(place, hub, parts=(), warn=warn) for place in (first, second)]
        show(*differences(opened[0], opened[1]))


@app.command("push")
def zoo_push(
    checkpoint: Checkpoint,
    place: Annotated[
        str, Argument(metavar="PLACE", help="A name in the hub, a folder, s3://bucket/name, or hf://user/name.")
    ],
    private: Annotated[bool, Option("--private", help="On the Hugging Face Hub: create a private repository.")] = False,
    replace: Annotated[bool, Option("--replace", help="Replace a checkpoint that exists there.")] = False,
    message: Annotated[str | None, Option(help="On the Hugging Face Hub: the commit message.")] = None,
    hub: HubFolder = HUB,
) -> None:
    """Publish a checkpoint, whole or not at all, with a card that says how to load it."""
    from pmmrec.report.publishing import push
    from pmmrec.zoo.hub import PushOptions, find_checkpoint

    with errors_for_people():
        folder = find_checkpoint(checkpoint, hub, warn=warn)
        origin = push(folder, place, hub, PushOptions(replace=replace, private=private, message=message))
        typer.echo(f"published: {origin.place}, commit {origin.commit}")
        if origin.is_remote:
            typer.echo(f"pinned to this commit: {origin.pinned}")


@app.command("pull")
def zoo_pull(
    place: Annotated[str, Argument(metavar="PLACE", help="s3://bucket/name, hf://user/name@revision, any URL.")],
    parts: Annotated[
        str | None,
        Option(metavar="PART,PART", help="Only these parts, such as text_encoder,user_encoder; default: all."),
    ] = None,
    out: Annotated[Path | None, Option("--out", help="Folder to make; default: the cache.")] = None,
    hub: HubFolder = HUB,
) -> None:
    """Download a checkpoint, or only some of its parts; each file is checked against the index."""
    from pmmrec.zoo.hub import pull_checkpoint

    with errors_for_people():
        names = None if parts is None else [name.strip() for name in parts.split(",") if name.strip()]
        pulled = pull_checkpoint(place, hub, names, out=out, warn=warn)
        what = "all parts" if names is None else ", ".join(names) or "the index"
        typer.echo(
            f"{pulled.folder}: {what} of {pulled.origin.place}, commit {pulled.origin.commit}; fetched "
            f"{pulled.num_files} files, {pulled.num_bytes / MB:,.1f} MB"
        )


@app.command("merge")
def zoo_merge(
    checkpoint: Checkpoint,
    out: Annotated[Path, Option("--out", help="Folder to make.")],
    base: BasePlace = None,
    hub: HubFolder = HUB,
) -> None:
    """Merge adapters into their base checkpoint: a full checkpoint that computes the same."""
    from pmmrec.zoo.checkpoint import open_checkpoint, with_base
    from pmmrec.zoo.merge import merge_adapters

    with errors_for_people():
        merge_adapters(with_base(open_checkpoint(checkpoint, hub, warn=warn), base, hub), out)
        typer.echo(f"{out}: a full checkpoint, without adapters")
