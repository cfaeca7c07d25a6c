"""Commands that measure and compare rankings: evaluate, compare, report."""

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
    BlendOption,
    CacheFolder,
    Checkpoint,
    DomainFolder,
    HubFolder,
    MaxUnreadable,
    Popularity,
    Seen,
    SeenOption,
    blend_of,
    show_json,
    split_rule,
)
from pmmrec.terminal import errors_for_people, show, tell, warn

app = typer.Typer()
SCENARIO_HELP = (
    "regular: the last item of each user. validation: the validation targets, to choose by. cold: all sub-sequences "
    "that end in an item with fewer than 10 occurrences in training. new: all that end in an item that never occurs "
    "in training. latest: all that end in an item that occurs in the test part alone."
)


class Scenario(str, Enum):
    """Which targets are ranked."""

    REGULAR = "regular"
    VALIDATION = "validation"
    COLD = "cold"
    NEW = "new"
    LATEST = "latest"


@app.command()
def evaluate(
    checkpoint: Checkpoint,
    domain: DomainFolder,
    out: Annotated[Path | None, Option("--out", help="Folder for metrics.json and ranks.parquet.")] = None,
    name: Annotated[str | None, Option(help="Name of the row; default: the run that made the checkpoint.")] = None,
    scenario: Annotated[Scenario, Option(help=SCENARIO_HELP)] = Scenario.REGULAR,
    split: Annotated[
        str | None,
        Option(
            metavar="SETTINGS",
            help="In place of the checkpoint's split, such as '{type: global_time, test: 0.1}'; not where it learned.",
        ),
    ] = None,
    seen: SeenOption = Seen.EXCLUDE,
    tuned_baselines: Annotated[
        bool, Option("--tuned-baselines", help="Also EASE and item-kNN with settings chosen on the validation targets.")
    ] = False,
    popularity: Popularity = None,
    blend: BlendOption = None,
    max_unreadable: MaxUnreadable = 0.05,
    hub: HubFolder = HUB,
    base: BasePlace = None,
    cache: CacheFolder = None,
    as_json: AsJson = False,
) -> None:
    """Rank the targets of a domain and compare with baselines; without training this is zero-shot."""
    from pmmrec.report.outcomes import blend_lines, held_out_tables, outcome_tables, popularity_tables, stratum_notes
    from pmmrec.system import load

    with errors_for_people():
        other = None if split is None else split_rule(split, "--split")
        system = load(
            checkpoint,
            hub=hub,
            cache=cache,
            warn=warn,
            popularity=popularity,
            blend=blend_of(blend),
            max_unreadable=max_unreadable,
            base=base,
            tell=tell,
        )
        row = name or str(system.checkpoint.provenance.get("run", checkpoint))
        outcome = system.evaluate(
            domain,
            name=row,
            scenario=scenario.value,
            seen=seen.value,
            out=out,
            tuned_baselines=tuned_baselines,
            split=other,
        )
        if as_json:
            show_json(outcome)
        else:
            show(*outcome_tables([outcome]), *held_out_tables(outcome), *popularity_tables([outcome]))
            show(*blend_lines(outcome))
        for note in stratum_notes(outcome):
            warn(note)


@app.command()
def compare(
    runs: Annotated[
        list[str], Argument(metavar="RUN...", help="Folders of runs or of `evaluate --out`; NAME=RUN,RUN joins seeds.")
    ],
    against: Annotated[str | None, Option(metavar="NAME", help="Compare with this system or baseline only.")] = None,
    at: Annotated[int | None, Option(metavar="K", help="Cut-off of the metrics; default: 10, or the smallest.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare systems on the same targets in a table, with a sentence for each pair."""
    from pmmrec.report.comparison import compare as compared
    from pmmrec.report.comparison import read_systems
    from pmmrec.tables import Sentence

    with errors_for_people():
        found = compared(read_systems(runs), against, at)
        if as_json:
            show_json(found.record())
        else:
            show(*found.tables, *found.tests, *map(Sentence, found.lines()))


@app.command()
def report(
    runs: Annotated[
        list[str], Argument(metavar="RUN...", help="As in compare: folders of runs, NAME=RUN,RUN joins seeds.")
    ],
    out: Annotated[
        Path,
        Option("--out", metavar="FOLDER|FILE.html", help="Where to write the page; a folder gets the pictures too."),
    ],
    domain: Annotated[
        list[Path] | None,
        Option(
            "--domain",
            metavar="DOMAIN",
            help="Domain for maps and lists, repeatable; default: those that the runs read; none: no maps or lists.",
        ),
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        Option(
            metavar="[NAME=]PLACE",
            help="Checkpoint for maps and lists, repeatable; default: one of each system that kept one.",
        ),
    ] = None,
    metric: Annotated[
        str | None, Option(help="Metric of the curves, such as hr@10; default: the validation metric of the first run.")
    ] = None,
    attribute: Annotated[str | None, Option(help="Item attribute that colours the map.")] = None,
    users: Annotated[int, Option(min=0, max=100, help="Number of users with lists.")] = 6,
    seed: Annotated[int, Option(min=0, help="Seed of random draws and of the maps.")] = 0,
    base: Annotated[str | None, Option(help="For adapters: their base checkpoint.")] = None,
    hub: HubFolder = HUB,
    cache: CacheFolder = None,
) -> None:
    """Write a self-contained page: tables, learning curves, maps of items and users, and lists of sample users."""
    from pmmrec.report.html.page import ReportPlan, write_report
    from pmmrec.settings import validate

    with errors_for_people():
        shown = {"out": out, "domains": domain or (), "checkpoints": checkpoint or (), "metric": metric}
        how = {"attribute": attribute, "num_users": users, "seed": seed, "hub": hub, "base": base}
        where = {} if cache is None else {"cache": cache}
        for path in write_report(runs, validate(ReportPlan, {**shown, **how, **where}, "arguments"), warn):
            typer.echo(str(path))
