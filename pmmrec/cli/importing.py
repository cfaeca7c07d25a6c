"""Commands that import what a user has: data import table, data import KIND."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from pmmrec.homes import CACHE
from pmmrec.terminal import errors_for_people, show, warn


class KindGroup(TyperGroup):
    """A group in which every other name than `table` is a kind of data set, known once it is asked for."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # typer's own types, or those of click, by its version
        """The command of a name; that of `auto` for all kinds, which sees the name in its context."""
        found = super().get_command(ctx, cmd_name)
        if found is None and Path(cmd_name).exists():
            _refuse_path(ctx, cmd_name)
        return found or super().get_command(ctx, "auto")


def _refuse_path(context: Any, word: str) -> None:
    """End with what to write where a folder or a file stands in the place of a kind."""
    from pmmrec.data.importers.kinds import importers

    if word in [entry.name for entry in importers]:
        return
    is_folder = Path(word).is_dir()
    what, form = ("folder", f"auto {word}") if is_folder else ("file", f"table --items {word} --interactions FILE")
    context.fail(f"{word} is a {what}, not a kind of data set; write {form}")


app = typer.Typer(
    cls=KindGroup,
    help="Import one platform: `table` from two tables, or KIND from the folder of a public data set "
    "(`pmmrec data kinds`).",
    no_args_is_help=True,
)

HUB_KIND = "hf"  # the kind whose folder may be on the Hugging Face Hub
TABLE = "csv, tsv, psv (also .gz, .bz2, .zst; any separator), json lines, parquet, Arrow, xlsx, duckdb:///DB?query=SQL"


class Repeats(str, Enum):
    """Which of a user's repeats of an item stay."""

    KEEP = "keep"
    FIRST = "first"
    LAST = "last"


class RepeatedItems(str, Enum):
    """What to do with several rows of an item."""

    REFUSE = "refuse"
    FIRST = "first"


class Quote(str, Enum):
    """Whether quote marks enclose values."""

    FOUND = "found"
    NONE = "none"


Name = Annotated[str, Option(help="Name of the platform; runs and reports use it.")]
Out = Annotated[Path, Option(help="Folder to make.")]
Images = Annotated[Path | None, Option(help="Folder (searched in depth), zip, tar or LMDB of ITEM_ID.jpg, .png, ...")]
ImageColumn = Annotated[str | None, Option(help="Column of items with paths within --images, or with bytes.")]
FetchImages = Annotated[
    bool, Option("--fetch-images", help="Fetch the http addresses in --image-column (public hosts).")
]
Mapped = Annotated[
    list[str] | None,
    Option("--map", metavar="NAME=COLUMN", help="item_id=sku, text='{title}. {brand}'; items.NAME: of one file."),
]
KCore = Annotated[
    str | None, Option(help="Keep users and items with at least this many interactions; none: all. Default: 5.")
]
MinUser = Annotated[int | None, Option(help="In place of --k-core: least interactions of a user.")]
MinItem = Annotated[int | None, Option(help="In place of --k-core: least interactions of an item.")]
MinRating = Annotated[float | None, Option(help="Leave out interactions whose column rating is lower.")]
Since = Annotated[str | None, Option("--from", help="Leave out earlier interactions: 2020-12-31, or a number.")]
Until = Annotated[str | None, Option("--to", help="Leave out interactions of this time and later ones.")]
RepeatsOption = Annotated[Repeats, Option(help="Which of a user's repeats of an item to keep.")]
SampleUsers = Annotated[int | None, Option(help="Draw this many users, before the core.")]
Seed = Annotated[int | None, Option(help="Of the draw; default 0.")]
MaxRejects = Annotated[str | None, Option(metavar="SHARE", help="Refuse files of which more is rejected, such as 1%.")]
Cache = Annotated[
    str,
    Option(help="Folder that keeps decoded pictures: an import that was stopped, or comes again, reads them. Or none."),
]
ImageSide = Annotated[int | None, Option(help="Shortest side of stored pictures in pixels; default 256.")]


@app.command("table")
def import_table_command(
    items: Annotated[str, Option(help=f"item_id, text and any other columns. {TABLE}.")],
    interactions: Annotated[str, Option(help="user_id, item_id (or item_ids: lists) and, if known, timestamp.")],
    name: Name,
    out: Out,
    images: Images = None,
    image_column: ImageColumn = None,
    fetch_images: FetchImages = False,
    renamed: Mapped = None,
    delimiter: Annotated[str | None, Option(help="Between values of both texts; default: found.")] = None,
    encoding: Annotated[str | None, Option(help="Of both texts, such as cp1252; default: UTF-8, or UTF-16.")] = None,
    quote: Annotated[Quote, Option(help="none: quote marks are text.")] = Quote.FOUND,
    repeated_items: Annotated[
        RepeatedItems, Option(help="Several rows of an item: refuse them, or keep the first.")
    ] = RepeatedItems.REFUSE,
    time_format: Annotated[str | None, Option(help="How timestamps are written, such as %d/%m/%Y %H:%M.")] = None,
    k_core: KCore = None,
    min_user: MinUser = None,
    min_item: MinItem = None,
    min_rating: MinRating = None,
    since: Since = None,
    until: Until = None,
    repeats: RepeatsOption = Repeats.KEEP,
    sample_users: SampleUsers = None,
    seed: Seed = None,
    max_rejects: MaxRejects = None,
    image_side: ImageSide = None,
    cache: Cache = str(CACHE),
) -> None:
    """Import a platform from two tables and a folder of pictures."""
    with errors_for_people():
        text_format = _given({"delimiter": delimiter, "encoding": encoding, "quote": quote.value})
        tree = {
            "items": items,
            "interactions": interactions,
            "images": images,
            "name": name,
            "out": out,
            "cache": None if cache == "none" else cache,
            "columns": _pairs("--map", renamed or ()),
            "items_format": text_format,
            "interactions_format": text_format,
            **_given(
                {
                    "image_column": image_column,
                    "fetch_images": fetch_images or None,
                    "time_format": time_format,
                    "max_rejects": _share(max_rejects),
                    "image_side": image_side,
                }
            ),
            **_given({"k_core": k_core, "min_user": min_user, "min_item": min_item, "min_rating": min_rating}),
            **_given({"since": since, "until": until, "repeats": repeats.value, "sample_users": sample_users}),
            **_given({"seed": seed, "repeated_items": repeated_items.value}),
        }
        _import(tree)


@app.command("auto")
def import_folder_command(
    context: typer.Context,
    folder: Annotated[
        Path, Argument(metavar="FOLDER", help="The folder of the data set; of hf also OWNER/NAME on the Hub.")
    ],
    name: Name,
    out: Out,
    settings: Annotated[
        list[str] | None, Option("--set", metavar="NAME=VALUE", help="A setting of the kind; `data kinds` lists them.")
    ] = None,
    items: Annotated[str | None, Option(help="Another table of items, with item_id and text.")] = None,
    encoding: Annotated[str | None, Option(help="Of the texts, such as gb18030; default: UTF-8, or UTF-16.")] = None,
    images: Images = None,
    image_column: ImageColumn = None,
    fetch_images: FetchImages = False,
    renamed: Mapped = None,
    k_core: KCore = None,
    min_user: MinUser = None,
    min_item: MinItem = None,
    min_rating: MinRating = None,
    since: Since = None,
    until: Until = None,
    repeats: RepeatsOption = Repeats.KEEP,
    sample_users: SampleUsers = None,
    seed: Seed = None,
    max_rejects: MaxRejects = None,
    image_side: ImageSide = None,
    cache: Cache = str(CACHE),
) -> None:
    """Import a public data set by its folder: `auto` recognises it, or KIND names it (`pmmrec data kinds`)."""
    with errors_for_people():
        tree = {
            "name": name,
            "out": out,
            "cache": None if cache == "none" else cache,
            "columns": _pairs("--map", renamed or ()),
            "repeats": repeats.value,
            **_given(
                {
                    "items": items,
                    "images": images,
                    "image_column": image_column,
                    "fetch_images": fetch_images or None,
                    "image_side": image_side,
                    "max_rejects": _share(max_rejects),
                }
            ),
            **_given({"k_core": k_core, "min_user": min_user, "min_item": min_item, "min_rating": min_rating}),
            **_given({"since": since, "until": until, "sample_users": sample_users, "seed": seed}),
        }
        _import_folder(str(context.info_name), folder, _pairs("--set", settings or ()), tree, encoding)


def _import_folder(
    kind: str, folder: Path, settings: Mapping[str, str], tree: Mapping[str, Any], encoding: str | None
) -> None:
    from pmmrec.data.importers.folder import import_folder
    from pmmrec.progress import bars
    from pmmrec.report.domains import import_lines

    if kind == HUB_KIND and not folder.is_dir():
        from pmmrec.zoo.hub import find_data_set

        folder = find_data_set(str(folder), warn=warn)
    with bars() as progress:
        domain, why = import_folder(kind, folder, settings, _without_core(tree), progress, encoding)
    show(f"kind: {why}", *import_lines(domain))


def _import(tree: Mapping[str, Any]) -> None:
    from pmmrec.data.importers.table import TableImport, import_table
    from pmmrec.progress import bars
    from pmmrec.report.domains import import_lines
    from pmmrec.settings import validate

    task = validate(TableImport, _without_core(tree), "arguments")
    with bars() as progress:
        domain = import_table(task, progress)
    show(*import_lines(domain))


def _without_core(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {**tree, "k_core": None} if tree.get("k_core") == "none" else dict(tree)


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def _pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    """`NAME=VALUE` as a mapping. Raises RecipeError for another form and for a name that is given twice."""
    from pmmrec.errors import RecipeError

    pairs: dict[str, str] = {}
    for one in given:
        name, sign, value = one.partition("=")
        if not (name and sign and value):
            raise RecipeError(f"{option} {one}: write NAME=VALUE, such as --map item_id=product_id")
        if name in pairs:
            raise RecipeError(f"{option} {one}: {name} is given twice; give it once")
        pairs[name] = value
    return pairs


def _share(given: str | None) -> float | None:
    """`1%` or `0.01` as a share. Raises RecipeError for anything else."""
    from pmmrec.errors import RecipeError

    if given is None:
        return None
    try:
        number = float(given.removesuffix("%"))
    except ValueError as error:
        raise RecipeError(f"--max-rejects {given}: not a share; write 1% or 0.01") from error
    return number / 100 if given.endswith("%") else number
