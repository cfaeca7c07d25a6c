"""Verbs that put a checkpoint to use on a platform: score, index."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from pmmrec.cli.options import (
    HUB,
    BasePlace,
    CacheFolder,
    Checkpoint,
    DomainFolder,
    HubFolder,
    MaxUnreadable,
    Popularity,
)
from pmmrec.terminal import errors_for_people, warn

app = typer.Typer()


@app.command()
def score(
    checkpoint: Checkpoint,
    domain: DomainFolder,
    out: Annotated[
        Path, Option("--out", help="Parquet: user_id, rank, item_id, score; a folder of them with several processes.")
    ],
    top_k: Annotated[int, Option("--top-k", min=1, help="Items for each user.")] = 10,
    exclude_seen: Annotated[
        bool, Option("--exclude-seen/--include-seen", help="Whether items of a user's history may be in the list.")
    ] = True,
    users: Annotated[
        Path | None, Option(metavar="FILE", help="Who gets a list: user_id in csv, tsv or parquet, or lines of a txt.")
    ] = None,
    skip_unknown: Annotated[bool, Option("--skip-unknown", help="Leave out users that the domain lacks.")] = False,
    new_items: Annotated[
        Path | None, Option(metavar="FILE", help="Items nobody has touched: csv, tsv or parquet with item_id, text.")
    ] = None,
    new_images: Annotated[Path | None, Option(metavar="FOLDER", help="Pictures of new items: ITEM_ID.jpg, ...")] = None,
    popularity: Popularity = None,
    max_unreadable: MaxUnreadable = 0.05,
    hub: HubFolder = HUB,
    base: BasePlace = None,
    cache: CacheFolder = None,
) -> None:
    """Recommend to every user of a domain what they may touch next.

    Started by torchrun or accelerate launch, processes share the work through the cache and the folder of --out.
    """
    from pmmrec.evaluation.share import Share
    from pmmrec.system import load

    with errors_for_people():
        share = Share.of(os.environ)
        system = load(
            checkpoint,
            hub=hub,
            cache=cache,
            warn=warn if share.index == 0 else _silent,
            popularity=popularity,
            max_unreadable=max_unreadable,
            base=base,
            device=share.device,
        )
        scored = system.score(
            domain,
            top_k,
            out,
            seen="exclude" if exclude_seen else "include",
            users=users,
            skip_unknown=skip_unknown,
            new_items=new_items,
            new_images=new_images,
            share=share,
            say=None if sys.stderr.isatty() else _say,
        )
        typer.echo(scored.line())


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _silent(_line: str) -> None:
    """Another process says it."""
