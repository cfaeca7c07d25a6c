"""The command that measures a training step: bench."""

from __future__ import annotations

import contextlib
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from pmmrec.cli.options import BasePlace, show_json
from pmmrec.terminal import errors_for_people, named_folders, show, warn

app = typer.Typer()


class Device(str, Enum):
    """Where the steps run."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Other(str, Enum):
    """What steps are compared with."""

    NAIVE = "naive"


@app.command()
def bench(
    recipe: Annotated[str, Argument(metavar="RECIPE", help="A file or a shipped recipe of pretrain or finetune.")],
    overrides: Annotated[
        list[str] | None, Argument(metavar="A.B=C...", help="Settings that win over the recipe's.")
    ] = None,
    steps: Annotated[int, Option(min=1, metavar="N", help="Steps to measure, after two to warm up.")] = 10,
    against: Annotated[
        Other | None,
        Option(help="naive: alternate with a plain model of the same weights that encodes every slot, padded."),
    ] = None,
    json: Annotated[
        str | None, Option("--json", metavar="FILE|-", help="Write the figures as JSON; -: to stdout, and no tables.")
    ] = None,
    device: Annotated[Device, Option(help="auto: a GPU if there is one and the recipe allows it.")] = Device.AUTO,
    start_from: Annotated[
        str, Option("--from", metavar="CHECKPOINT", help="For a fine-tuning, as in finetune; none: from scratch.")
    ] = "none",
    on: Annotated[Path | None, Option(metavar="DOMAIN", help="For a fine-tuning, as in finetune.")] = None,
    base: BasePlace = None,
    weights: Annotated[list[str] | None, Option(metavar="NAME=FOLDER", help="As in pretrain and finetune.")] = None,
) -> None:
    """Measure a training step: the time of each stage beside the least that its useful work could take.

    Nothing is kept but the caches of the recipe. Start with: pmmrec bench pretrain/tiny
    """
    from pmmrec.atomic import whole_file
    from pmmrec.homes import expanded
    from pmmrec.report.records import to_json

    with errors_for_people():
        from pmmrec.bench.against import measure_against_naive
        from pmmrec.bench.measure import measure
        from pmmrec.bench.prepared import BenchPlan, prepared
        from pmmrec.bench.tables import naive_lines, naive_record, record, tables

        folders = named_folders(weights or ())
        plan = BenchPlan(recipe, overrides or (), steps, device.value, start_from, on, base, folders)
        # What a run says goes to stderr; stdout is for the figures.
        with contextlib.redirect_stdout(sys.stderr), prepared(plan, warn) as training:
            if against is None:
                cost, naive = measure(training, plan.steps), None
            else:
                cost, naive = measure_against_naive(training, plan)
        found = {"recipe": recipe, **record(cost)}
        if naive is not None:
            found["naive"] = naive_record(cost, naive)
        if json == "-":
            show_json(found)
            return
        show(*tables(recipe, cost), *(() if naive is None else naive_lines(cost, naive)))
        if json is not None:
            with whole_file(expanded(Path(json))) as draft:
                draft.write_text(to_json(found) + "\n", encoding="utf-8")
