"""Verbs that tell how well something ranks: evaluate, compare, report."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from pmmrec.cli.options import (
    HUB,
    AsJson,
    BasePlace,
    CacheFolder,
    Checkpoint,
    DomainFolder,
    HubFolder,
    MaxUnreadable,
    Popularity,
    Seen,
    SeenOption,
    show_json,
)
from pmmrec.terminal import errors_for_people, show, warn

app = typer.Typer()
SCENARIO_HELP = (
    "regular: everybody's last item. cold: all sub-sequences that end in an item with fewer than 10 occurrences in "
    "training. new: those that end in an item that never occurs there."
)


class Scenario(str, Enum):
    """Which targets are ranked."""

    REGULAR = "regular"
    COLD = "cold"
    NEW = "new"


@app.command()
def evaluate(
    checkpoint: Checkpoint,
    domain: DomainFolder,
    out: Annotated[Path | None, Option("--out", help="Folder for metrics.json and ranks.parquet.")] = None,
    name: Annotated[str | None, Option(help="What the row is called; the run that made it otherwise.")] = None,
    scenario: Annotated[Scenario, Option(help=SCENARIO_HELP)] = Scenario.REGULAR,
    seen: SeenOption = Seen.EXCLUDE,
    popularity: Popularity = None,
    max_unreadable: MaxUnreadable = 0.05,
    hub: HubFolder = HUB,
    base: BasePlace = None,
    cache: CacheFolder = None,
    as_json: AsJson = False,
) -> None:
    """Rank the targets of a domain, beside the baselines; without any training this is zero-shot."""
    from pmmrec.report.outcomes import held_out_tables, outcome_tables, popularity_tables, stratum_notes
    from pmmrec.system import load

    with errors_for_people():
        system = load(
            checkpoint, hub=hub, cache=cache, warn=warn, popularity=popularity, max_unreadable=max_unreadable, base=base
        )
        row = name or str(system.checkpoint.provenance.get("run", checkpoint))
        outcome = system.evaluate(domain, name=row, scenario=scenario.value, seen=seen.value, out=out)
        if as_json:
            show_json(outcome)
        else:
            show(*outcome_tables([outcome]), *held_out_tables(outcome), *popularity_tables([outcome]))
        for note in stratum_notes(outcome):
            warn(note)


@app.command()
def compare(
    runs: Annotated[
        list[str], Argument(metavar="RUN...", help="Folders of runs or of `evaluate --out`; NAME=RUN,RUN joins seeds.")
    ],
    against: Annotated[str | None, Option(metavar="NAME", help="Ask of this system or baseline alone.")] = None,
    as_json: AsJson = False,
) -> None:
    """Several systems on the same targets in one table, and in words who beats whom."""
    from pmmrec.report.comparison import compare as compared
    from pmmrec.report.comparison import read_systems
    from pmmrec.tables import Sentence

    with errors_for_people():
        found = compared(read_systems(runs), against)
        if as_json:
            show_json(found.record())
        else:
            show(*found.tables, *map(Sentence, found.lines()))


@app.command()
def report(
    runs: Annotated[
        list[str], Argument(metavar="RUN...", help="As in compare: folders of runs, NAME=RUN,RUN joins seeds.")
    ],
    out: Annotated[
        Path, Option("--out", metavar="FOLDER|FILE.html", help="Where the page goes; a folder gets the pictures too.")
    ],
    domain: Annotated[
        list[Path] | None,
        Option(
            "--domain",
            metavar="DOMAIN",
            help="For maps and lists of users, may be repeated; where the runs read it unless given. none: neither.",
        ),
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        Option(
            metavar="[NAME=]PLACE",
            help="Whose maps and lists are shown: of system NAME, may be repeated; else of every system that kept one.",
        ),
    ] = None,
    metric: Annotated[
        str | None, Option(help="Of the curves, such as hr@10; what the first run was judged by.")
    ] = None,
    attribute: Annotated[str | None, Option(help="Attribute of items that their map tells apart.")] = None,
    users: Annotated[int, Option(min=0, max=100, help="Users whose lists are shown.")] = 6,
    seed: Annotated[int, Option(min=0, help="Of what is drawn at random, and of the maps.")] = 0,
    base: Annotated[str | None, Option(help="For adapters, the checkpoint they stand on.")] = None,
    hub: HubFolder = HUB,
    cache: CacheFolder = None,
) -> None:
    """One page that stands alone: tables, learning curves, maps of items and users, and what users would be shown."""
    from pmmrec.report.html.page import ReportPlan, write_report
    from pmmrec.settings import validate

    with errors_for_people():
        shown = {"out": out, "domains": domain or (), "checkpoints": checkpoint or (), "metric": metric}
        how = {"attribute": attribute, "num_users": users, "seed": seed, "hub": hub, "base": base}
        where = {} if cache is None else {"cache": cache}
        for path in write_report(runs, validate(ReportPlan, {**shown, **how, **where}, "arguments"), warn):
            typer.echo(str(path))
