"""Verbs that use what was trained: evaluate, score, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from pmmrec.cli.options import (
    HUB,
    BasePlace,
    CacheFolder,
    Checkpoint,
    DomainFolder,
    HubFolder,
    MaxUnreadable,
    Popularity,
    Seen,
    SeenOption,
)
from pmmrec.terminal import errors_for_people, show, warn

app = typer.Typer()


@app.command()
def evaluate(
    checkpoint: Checkpoint,
    domain: DomainFolder,
    out: Annotated[Path | None, Option("--out", help="Folder for metrics.json and ranks.parquet.")] = None,
    name: Annotated[str | None, Option(help="What the row is called; the run that made it otherwise.")] = None,
    seen: SeenOption = Seen.EXCLUDE,
    popularity: Popularity = None,
    max_unreadable: MaxUnreadable = 0.05,
    hub: HubFolder = HUB,
    base: BasePlace = None,
    cache: CacheFolder = None,
) -> None:
    """Rank the test targets of a domain, beside the floors; without any training this is zero-shot."""
    from pmmrec.report.verdict import outcome_tables
    from pmmrec.system import load

    with errors_for_people():
        system = load(
            checkpoint, hub=hub, cache=cache, warn=warn, popularity=popularity, max_unreadable=max_unreadable, base=base
        )
        row = name or str(system.checkpoint.provenance.get("run", checkpoint))
        outcome = system.evaluate(domain, name=row, seen=seen.value, out=out)
        show(*outcome_tables([outcome]))


@app.command()
def score(
    checkpoint: Checkpoint,
    domain: DomainFolder,
    out: Annotated[Path, Option("--out", help="Parquet file: user_id, rank, item_id, score.")],
    top_k: Annotated[int, Option("--top-k", min=1, help="Items for each user.")] = 10,
    seen: SeenOption = Seen.EXCLUDE,
    popularity: Popularity = None,
    max_unreadable: MaxUnreadable = 0.05,
    hub: HubFolder = HUB,
    base: BasePlace = None,
    cache: CacheFolder = None,
) -> None:
    """Recommend to every user of a domain what they may touch next."""
    from pmmrec.system import load

    with errors_for_people():
        system = load(
            checkpoint, hub=hub, cache=cache, warn=warn, popularity=popularity, max_unreadable=max_unreadable, base=base
        )
        num_users, num_rows = system.score(domain, top_k, out, seen=seen.value)
        typer.echo(f"{out}: {num_rows:,} rows for {num_users:,} users")


@app.command()
def compare(
    runs: Annotated[list[Path], Argument(help="Run folders, or folders that `evaluate --out` wrote.")],
) -> None:
    """One table out of several runs on the same domain."""
    from pmmrec.report.verdict import comparison

    with errors_for_people():
        show(*comparison(runs))
