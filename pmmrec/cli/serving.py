"""Commands that use a checkpoint on a platform: score, index."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from pmmrec.cli.options import (
    HUB,
    BasePlace,
    BlendOption,
    CacheFolder,
    Checkpoint,
    DomainFolder,
    HubFolder,
    MaxUnreadable,
    Popularity,
    blend_of,
)
from pmmrec.terminal import errors_for_people, tell, warn

app = typer.Typer()

ListsOut = Annotated[
    Path,
    Option(
        "--out",
        metavar="FILE|FOLDER",
        help="user_id, rank, item_id, score as .csv, .jsonl or .parquet; several processes: a folder of .parquet.",
    ),
]


@app.command()
def score(
    checkpoint: Checkpoint,
    domain: DomainFolder,
    out: ListsOut,
    top_k: Annotated[int, Option("--top-k", min=1, help="Items for each user.")] = 10,
    exclude_seen: Annotated[
        bool, Option("--exclude-seen/--include-seen", help="Whether items of the history may be in the list.")
    ] = True,
    users: Annotated[
        Path | None,
        Option(metavar="FILE", help="Users to score: csv, tsv or parquet with user_id, or a txt; default: all."),
    ] = None,
    skip_unknown: Annotated[bool, Option("--skip-unknown", help="Skip users that the domain lacks.")] = False,
    new_items: Annotated[
        Path | None, Option(metavar="FILE", help="Items without interactions: csv, tsv or parquet with item_id, text.")
    ] = None,
    new_images: Annotated[Path | None, Option(metavar="FOLDER", help="Pictures of new items: ITEM_ID.jpg, ...")] = None,
    escape_formulas: Annotated[
        bool, Option("--escape-formulas", help="csv: put a ' before ids that a spreadsheet would compute.")
    ] = False,
    popularity: Popularity = None,
    blend: BlendOption = None,
    max_unreadable: MaxUnreadable = 0.05,
    hub: HubFolder = HUB,
    base: BasePlace = None,
    cache: CacheFolder = None,
) -> None:
    """Write the top-k items of every user of a domain.

    Processes started by torchrun or accelerate launch share the work through the cache and the --out folder.
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
            tell=tell if share.index == 0 else _silent,
            popularity=popularity,
            blend=blend_of(blend),
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
            escape_formulas=escape_formulas,
            say=_line_sayer(),
        )
        typer.echo(scored.line())


class IndexKind(str, Enum):
    """The kind of a FAISS index."""

    AUTO = "auto"
    FLAT = "flat"
    HNSW = "hnsw"
    IVF = "ivf"


@app.command()
def index(
    checkpoint: Checkpoint,
    domain: DomainFolder,
    out: Annotated[Path, Option("--out", help="Folder to make; pmmrec.serving.load_index opens it.")],
    kind: Annotated[
        IndexKind,
        Option(help="flat: exact. hnsw: a graph. ivf: lists. auto: flat up to 200,000 items, ivf from 2 million."),
    ] = IndexKind.AUTO,
    k: Annotated[int, Option("--k", min=1, help="Length of the lists on which recall is measured.")] = 10,
    users: Annotated[int, Option("--users", min=1, help="Number of users on which recall is measured.")] = 1000,
    seed: Annotated[int, Option(min=0, help="Seed of the draw of these users.")] = 0,
    popularity: Popularity = None,
    max_unreadable: MaxUnreadable = 0.05,
    hub: HubFolder = HUB,
    base: BasePlace = None,
    cache: CacheFolder = None,
) -> None:
    """Export item vectors, their FAISS index and the user encoder; print recall against exact search."""
    from pmmrec.system import load

    with errors_for_people():
        system = load(
            checkpoint,
            hub=hub,
            cache=cache,
            warn=warn,
            popularity=popularity,
            max_unreadable=max_unreadable,
            base=base,
            tell=tell,
        )
        wanted = None if kind is IndexKind.AUTO else kind.value
        exported = system.index(domain, out, kind=wanted, k=k, num_users=users, seed=seed, say=_line_sayer())
        for line in exported.lines():
            typer.echo(line)
        if exported.is_poor:
            warn("the index misses more than 1 in 100 of the best items; --kind flat is exact")


def _line_sayer() -> Callable[[str], None] | None:
    """A function that prints progress lines if no bar can be drawn."""
    return None if sys.stderr.isatty() else tell


def _silent(_line: str) -> None:
    """Print nothing: process 0 prints it."""
