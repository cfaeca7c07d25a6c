"""Arguments and options that several verbs share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

Checkpoint = Annotated[
    str, Argument(help="A folder, a name in the hub, s3://bucket/name or another URL, hf://user/name@revision.")
]
DomainFolder = Annotated[Path, Argument(metavar="DOMAIN", help="A domain folder.")]
HubFolder = Annotated[Path, Option("--hub", help="The folder hub in which names are looked up.")]
CacheFolder = Annotated[Path | None, Option("--cache", help="Where tokens and pixels are kept between runs.")]
BasePlace = Annotated[
    str | None,
    Option("--base", metavar="CHECKPOINT", help="For adapters: the checkpoint they stand on, where it is not found."),
]
HUB = Path("hub")


class Seen(str, Enum):
    """What happens to the items that a user has touched already."""

    EXCLUDE = "exclude"
    INCLUDE = "include"


AsJson = Annotated[
    bool,
    Option("--json", help="Print one JSON object and nothing else: shares in 0..1, null where there is no figure."),
]
Popularity = Annotated[
    float | None, Option(min=0, help="Weight of popularity in the score; the checkpoint's unless given, 0 for none.")
]
MaxUnreadable = Annotated[
    float, Option(min=0, max=1, help="Share of the items that may lack all that the model reads; they are never found.")
]
SeenOption = Annotated[Seen, Option(help="exclude: seen items are no candidates; include: all items are.")]


def show_json(record: Any) -> None:
    """Print a record for machines."""
    from pmmrec.report.records import to_json

    typer.echo(to_json(record))
