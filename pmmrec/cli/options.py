"""Arguments and options shared by several commands."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

if TYPE_CHECKING:
    from pmmrec.serving.blending import AskedBlend
    from pmmrec.settings import PartConfig

Checkpoint = Annotated[
    str, Argument(help="A folder, a name in the hub, s3://bucket/name or another URL, hf://user/name@revision.")
]
DomainFolder = Annotated[Path, Argument(metavar="DOMAIN", help="A domain folder.")]
HubFolder = Annotated[Path, Option("--hub", help="The folder hub in which names are looked up.")]
CacheFolder = Annotated[Path | None, Option("--cache", help="Folder that caches tokens and pixels between runs.")]
BasePlace = Annotated[
    str | None,
    Option("--base", metavar="CHECKPOINT", help="For adapters: their base checkpoint, if it is not found."),
]
HUB = Path("hub")


class Seen(str, Enum):
    """Whether items of the history may be recommended."""

    EXCLUDE = "exclude"
    INCLUDE = "include"


AsJson = Annotated[
    bool,
    Option("--json", help="Print one JSON object and nothing else: shares in 0..1, null for missing values."),
]
Popularity = Annotated[
    float | None, Option(min=0, help="Weight of popularity in the score; default: that of the checkpoint; 0: none.")
]
BlendOption = Annotated[
    str | None,
    Option(
        "--blend",
        metavar="auto|SETTINGS",
        help="Add co-occurrence (item-kNN) and popularity to the score, such as '{cooccurrence: 40, popularity: 8}'; "
        "auto, where there are targets: weights by those of validation.",
    ),
]
MaxUnreadable = Annotated[
    float,
    Option(min=0, max=1, help="Share of items that may be unreadable for the model; they are never recommended."),
]
SeenOption = Annotated[Seen, Option(help="exclude: seen items are not candidates; include: all items are.")]


def blend_of(given: str | None) -> AskedBlend:
    """The settings of a blend, or `auto`. RecipeError for anything else."""
    from pmmrec.evaluation.blend import BlendConfig
    from pmmrec.settings import parse_yaml, validate

    if given is None:
        return None
    return "auto" if given == "auto" else validate(BlendConfig, parse_yaml(given, "--blend"), "--blend")


def show_json(record: Any) -> None:
    """Print a record as JSON."""
    from pmmrec.report.records import to_json

    typer.echo(to_json(record))


def split_rule(given: str, option: str) -> PartConfig:
    """The settings of a split: its name, or YAML with its settings. Raises RecipeError for anything else."""
    from pmmrec.data.batches import DataConfig
    from pmmrec.settings import parse_yaml, validate

    tree = parse_yaml(given, option)
    return validate(DataConfig, {"split": {"type": tree} if isinstance(tree, str) else tree}, option).split
