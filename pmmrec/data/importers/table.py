"""Import two tables, of items and of interactions, and a folder of pictures as a domain."""
# ruff: noqa: S608  statements contain no values of users

from __future__ import annotations

import contextlib
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import duckdb
import pyarrow as pa
from PIL import Image
from pydantic import Field, StringConstraints, model_validator
from typing_extensions import Self

from pmmrec.data.domain import Domain
from pmmrec.data.importers.filters import apply_filters
from pmmrec.data.importers.loading import USED, LoadedTables, Loader
from pmmrec.data.importers.picture_column import COLUMN
from pmmrec.data.importers.pictures import SECOND, Pictures
from pmmrec.data.importers.selection import Selection
from pmmrec.data.importers.source import is_of_machine, stream
from pmmrec.data.importers.text_format import SEPARATORS, TextFormat
from pmmrec.data.importers.times import TimeUnit
from pmmrec.data.importers.user_sequences import UserSequences
from pmmrec.data.importers.work_database import MEMORY_GB, NUM_THREADS, work_database
from pmmrec.data.info import MATCHES_FILE, NAME_PATTERN, REJECTED_FILE, Filters, ImportSummary, SourceFile
from pmmrec.data.parallel import num_cores
from pmmrec.data.write import DomainFolder, new_folder
from pmmrec.errors import DataError, MachineError, RecipeError
from pmmrec.modality import Modality
from pmmrec.progress import Progress
from pmmrec.settings import Config, Place

FILES = "csv, tsv, psv, json lines, parquet, Arrow, xlsx, or the address of a database"
Database = Annotated[str, StringConstraints(pattern="^[a-z]+://")]
MAX_MESSAGE, CUT_WORD = 1_900, 100  # characters
LONG_WORD = re.compile(r"\S{1000,}")  # longer than paths are in practice
NO_EFFECT = "image_side has no effect without images; leave it out or give images"


class TableImport(Config):
    """Settings of one import."""

    items: Database | Place = Field(description=f"{FILES}: item_id, text, and any further columns as attributes.")
    interactions: Database | Place = Field(description="Likewise: user_id, item_id, and timestamp if there is one.")
    images: Place | None = Field(
        None, description="Folder, zip, tar or LMDB of <item_id>.jpg, .png, .webp, .gif or .bmp."
    )
    image_column: str | None = Field(None, description="Column of items with paths within `images`, or with bytes.")
    fetch_images: bool = Field(False, description="Fetch the http addresses in `image_column` of public hosts.")
    name: str = Field(pattern=NAME_PATTERN, description="What reports call the domain.")
    out: Place = Field(description="Folder of the new domain; must not exist.")
    k_core: int | None = Field(5, ge=1, lt=2**31, description="Least interactions of each user and item. None: any.")
    min_user: int | None = Field(None, ge=1, lt=2**31, description="Least interactions of a user, in place of k_core.")
    min_item: int | None = Field(None, ge=1, lt=2**31, description="Least interactions of an item, in place of k_core.")
    min_rating: float | None = Field(None, description="Leave out interactions whose column `rating` is lower.")
    since: str | None = Field(
        None, description="Leave out earlier interactions: a date, or a number of the times' unit."
    )
    until: str | None = Field(None, description="Leave out interactions of this time and later ones.")
    repeats: Literal["keep", "first", "last"] = Field(
        "keep", description="Which of a user's repeats of an item to keep."
    )
    sample_users: int | None = Field(None, ge=1, description="Draw so many users, before the core.")
    seed: int | None = Field(None, ge=0, description="Of the draw; 0 if none is given.")
    columns: dict[str, str] = Field({}, description="Columns of other names: {item_id: sku, text: '{title}. {brand}'}.")
    repeated_items: Literal["refuse", "first"] = Field("refuse", description="What to do with several rows of an item.")
    items_format: TextFormat = Field(TextFormat(), description="How the items are read, where they are a text.")
    interactions_format: TextFormat = Field(TextFormat(), description="How the interactions are read, likewise.")
    time_format: str | None = Field(None, description="How timestamps are written, as strptime: '%d/%m/%Y'.")
    max_rejects: float = Field(1.0, ge=0, le=1, description="Share of rows of each file that may be rejected.")
    image_side: int = Field(256, ge=16, le=4096, description="Shortest side of a stored image in pixels, at most.")
    memory_gb: float = Field(
        MEMORY_GB, ge=0.25, description="Memory of the database; the rest goes to disk beside `out`."
    )
    num_threads: int = Field(
        default_factory=num_cores, ge=1, le=64, description="Threads that decode images; of the database, at most 4."
    )
    cache: Place | None = Field(None, description="Folder that keeps decoded images for the next import. None: none.")

    @model_validator(mode="after")
    def _has_an_effect(self) -> Self:
        given = self.model_fields_set
        may_hold_images = isinstance(self.items, str) or self.items.suffix.lower() not in SEPARATORS
        if self.images is None and "image_side" in given and not may_hold_images:
            raise ValueError(NO_EFFECT)
        if self.fetch_images and (self.image_column is None or self.images is not None):
            raise ValueError(
                "fetch_images needs image_column, with addresses, and no images; give or leave out the other"
            )
        if self.sample_users is None and self.seed is not None:
            raise ValueError("seed has no effect without sample_users; leave it out")
        if "k_core" in given and self.k_core is not None and (self.min_user or self.min_item):
            raise ValueError("k_core, or min_user and min_item; give one of the two")
        return self

    @property
    def filters(self) -> Filters:
        """Which interactions to leave out on purpose."""
        least = {"min_user": self.min_user, "min_item": self.min_item}
        core = {"k_core": None, **least} if any(least.values()) else {"k_core": self.k_core}
        names = ("min_rating", "since", "until", "repeats", "sample_users")
        seed = None if self.sample_users is None else self.seed or 0
        return Filters(**core, seed=seed, **{name: getattr(self, name) for name in names})


def import_table(settings: TableImport, progress: Progress | None = None) -> Domain:
    """Write the domain and open it. After an error nothing is left.

    Raises RecipeError when `out` exists, DataError for files that break a rule, MachineError when memory or disk are
    full.
    """
    return import_prepared(settings.out, lambda _: settings, progress)


def import_prepared(out: Path, prepare: Callable[[Path], TableImport], progress: Progress | None = None) -> Domain:
    """`import_table` with settings that are made once the folder of the work is there, for files that it must hold.

    `prepare` gets that folder, which lies in that of the domain, and is removed with all that is in it.
    """
    try:
        return _imported(out, prepare, progress)
    except (DataError, RecipeError) as error:
        told = _in_brief(error)
        if told == str(error):
            raise
        raise type(error)(told) from error


def _in_brief(error: DataError | RecipeError) -> str:
    """Its message without values of megabytes, such as the name of a column of a broken file; of data in one line."""
    told = LONG_WORD.sub(lambda word: f"{word[0][:CUT_WORD]}...", str(error))
    told = told if len(told) <= MAX_MESSAGE else f"{told[:MAX_MESSAGE]}..."
    return " ".join(told.splitlines()) if isinstance(error, DataError) else told


def _imported(out: Path, prepare: Callable[[Path], TableImport], progress: Progress | None) -> Domain:
    with new_folder(out) as (folder, was_stale):
        work = folder / "work"
        work.mkdir()
        settings = prepare(work)
        with _database(work, settings) as connection, warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", category=UserWarning, module="PIL"
            )  # broken metadata, which is dropped anyway
            warnings.simplefilter(
                "error", Image.DecompressionBombWarning
            )  # the limit in images.py is lower and has a better message
            _Import(settings, folder, work, connection, progress).run(was_stale=was_stale)
        shutil.rmtree(work)
    return Domain.open(out)


class _Import:
    """The steps of one import."""

    def __init__(
        self,
        settings: TableImport,
        folder: Path,
        work: Path,
        connection: duckdb.DuckDBPyConnection,
        progress: Progress | None,
    ) -> None:
        self._settings, self._connection, self._progress = settings, connection, progress
        self._work = work
        self._used = USED if settings.min_rating is None else (*USED, "rating")
        self._domain = DomainFolder(folder)
        self._selection = Selection(connection)
        side, num_threads = settings.image_side, settings.num_threads
        self._pictures = Pictures(
            settings.images,
            work,
            connection,
            side=side,
            num_threads=num_threads,
            cache=settings.cache,
            fetch=settings.image_column if settings.fetch_images else None,
        )

    def run(self, *, was_stale: bool) -> None:
        settings, selection, pictures = self._settings, self._selection, self._pictures
        loader = Loader(
            *(self._connection, self._work, settings.columns, settings.time_format, settings.image_column),
            reads_rating=settings.min_rating is not None,
        )
        interactions = settings.interactions, settings.interactions_format
        sources = loader.load((settings.items, settings.items_format), interactions)
        if sources.pictures is not None and settings.images is not None:
            found = f"{sources.items.path}: column {COLUMN!r} holds pictures, and a folder of pictures is given too"
            raise RecipeError(f"{found}; leave one of them out")
        self._say("rows read", 1)
        selection.take_items(sources.items.path, may_repeat=settings.repeated_items == "first")
        if sources.has_paths and settings.images is None and not settings.fetch_images:
            raise RecipeError(
                "image_column: holds paths, so name the folder that they are in: --images; or --fetch-images"
            )
        pictures.match(selection, sources.pictures, has_paths=sources.has_paths)
        if "image_side" in settings.model_fields_set and not pictures.is_given:
            raise RecipeError(NO_EFFECT)
        pictures.decode_of_textless(selection, self._progress)
        selection.reject_bare_items()
        path = sources.interactions.path
        selection.take_interactions(
            path, sources.items.path, has_lists=sources.has_lists, is_rated=settings.min_rating is not None
        )
        apply_filters(settings.filters, selection, self._connection, sources.times, path)
        self._check_rejects(sources)
        num_items = selection.number_items()
        self._say("rows chosen", 2)
        self._domain.write_items(self._item_batches(sources), list(sources.attributes))
        if pictures.is_given:
            self._domain.write_images(pictures.batches(selection, num_items, self._progress))
            pictures.close()
            self._check_rejected_pictures(sources)
            pictures.write_matches(self._domain.folder / MATCHES_FILE)
        sequences = UserSequences(self._connection, has_times=sources.times is not None)
        self._domain.write_sequences(sequences.batches(), has_times=sources.times is not None)
        selection.rejections.write(self._domain.folder / REJECTED_FILE, sources, self._settings.images)
        self._seal(sources, self._notes(sources, sequences.num_ties, was_stale=was_stale))

    def _item_batches(self, sources: LoadedTables) -> Iterator[pa.RecordBatch]:
        columns = ", ".join(["item_id", "text", *sources.attributes.values()])
        return stream(self._connection, f"SELECT {columns} FROM catalogue ORDER BY item_index")

    def _notes(self, sources: LoadedTables, num_ties: int, *, was_stale: bool) -> tuple[str, ...]:
        notes = [*sources.notes, *self._pictures.notes]
        if num_ties:
            notes.append(
                f"times: {num_ties:,} interactions have the same time as the one before; the order of rows is kept"
            )
        named = [column.name for column in sources.interactions.columns if column.name.strip()]
        unused = [name for name in named if name not in self._used]
        if unused:
            notes.append(f"interactions: columns not used: {', '.join(unused)}")
        if "rating" in unused:
            notes.append("interactions: low ratings count as high ones do; --min-rating 4, or another, leaves them out")
        if was_stale:
            notes.append("removed what an unfinished import had left behind")
        return tuple(notes)

    def _seal(self, sources: LoadedTables, notes: tuple[str, ...]) -> None:
        settings, domain = self._settings, self._domain
        kept = {
            "items": domain.num_items,
            "users": domain.num_users,
            "interactions": domain.num_interactions,
            "texts": domain.num_with[Modality.TEXT],
            "images": domain.num_with[Modality.IMAGE],
        }
        unit: TimeUnit | None = sources.times.unit if sources.times else None
        records: dict[str, SourceFile] = {"items": sources.items.record, "interactions": sources.interactions.record}
        domain.seal(
            settings.name,
            filters=settings.filters,
            image_side=settings.image_side if self._pictures.is_given else None,
            time_unit=unit,
            sources=records,
            summary=ImportSummary(
                num_items_read=sources.num_items,
                num_interactions_read=sources.num_interactions,
                kept=kept,
                rejected=self._selection.rejections.counts(),
                filtered=self._selection.rejections.counts(on_purpose=True),
                num_pictures_ignored=self._pictures.num_ignored,
                notes=notes,
            ),
        )

    def _check_rejects(self, sources: LoadedTables) -> None:
        """DataError where more rows of a file are rejected than `max_rejects` allows."""
        limit, rejections = self._settings.max_rejects, self._selection.rejections
        rejected = rejections.counts()
        for kind, source, num_read in (
            ("item", sources.items, sources.num_items),
            ("interaction", sources.interactions, sources.num_interactions),
        ):
            reasons = rejected.get(kind, {})
            if sum(reasons.values()) > limit * num_read:
                listed = rejections.listed(sources, kind, reasons)
                found = f"{sum(reasons.values()):,} of {num_read:,} rows are rejected, more than {100 * limit:g} %"
                raise DataError(f"{source.path}: {found}: {listed}; mend them, or raise --max-rejects")

    def _check_rejected_pictures(self, sources: LoadedTables) -> None:
        """DataError where more pictures cannot be used than `max_rejects` allows. Second pictures are no loss."""
        limit, rejections = self._settings.max_rejects, self._selection.rejections
        reasons = {reason: count for reason, count in rejections.counts().get("image", {}).items() if reason != SECOND}
        num_rejected, num_kept = sum(reasons.values()), self._domain.num_with[Modality.IMAGE]
        if num_rejected > limit * (num_rejected + num_kept):
            where = self._settings.images or sources.items.path
            listed = rejections.listed(sources, "image", reasons)
            found = (
                f"{num_rejected:,} of {num_rejected + num_kept:,} pictures are rejected, more than {100 * limit:g} %"
            )
            raise DataError(f"{where}: {found}: {listed}; mend them, or raise --max-rejects")

    def _say(self, stage: str, done: int) -> None:
        if self._progress is not None:
            self._progress(stage, done, 2)


@contextlib.contextmanager
def _database(work: Path, settings: TableImport) -> Iterator[duckdb.DuckDBPyConnection]:
    """The database of the import. Raises MachineError where it runs out of memory or disk."""
    try:
        num_threads = min(settings.num_threads, NUM_THREADS)
        with work_database(work, settings.memory_gb, num_threads) as connection:
            yield connection
    except duckdb.Error as error:
        if not is_of_machine(error):
            raise
        reason = str(error).splitlines()[0]
        raise MachineError(f"{settings.out}: out of room: {reason}; raise memory_gb or free some disk") from error
