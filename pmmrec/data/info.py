"""Read and check `domain.json`, the description of a domain."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import pyarrow as pa
from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from typing_extensions import Self

from pmmrec.errors import DataError
from pmmrec.modality import Modality
from pmmrec.settings import Config

FORMAT = "pmmrec-domain"
FORMAT_VERSION = 1
INCOMPLETE = ".incomplete"  # suffix of the folder that an import fills before it is renamed
DOMAIN_FILE = "domain.json"
ITEMS_FILE: Final = "items.arrow"
IMAGES_FILE: Final = "images.arrow"
SEQUENCES_FILE: Final = "sequences.arrow"
REJECTED_FILE: Final = "rejected.parquet"
MATCHES_FILE: Final = "pictures.parquet"  # for people: not among `files`, as earlier versions know none of that name
DATA_FILE = re.compile(r"(items|images|sequences)(-[1-9][0-9]{0,5})?\.arrow|rejected\.parquet")
FEATURE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
NAME_PATTERN = r"^\w[\w.\-]{0,99}$"
MAX_INFO_BYTES = 10_000_000

ITEM_FIELDS = (pa.field("item_id", pa.large_string()), pa.field("text", pa.large_string()))
IMAGES_SCHEMA = pa.schema([("jpeg", pa.large_binary()), ("source_sha256", pa.large_binary())])
SEQUENCE_FIELDS = (pa.field("user_id", pa.large_string()), pa.field("items", pa.large_list(pa.int32())))
TIMES_FIELD = pa.field("times", pa.large_list(pa.int64()))


class FileRecord(Config):
    """Size and checksum of a file when the domain was made."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    num_bytes: int = Field(ge=0)


class SourceFile(FileRecord):
    """A file from which the domain was made, without its folder."""

    file_name: str


class FeatureInfo(FileRecord):
    """What a feature holds for each item, and its file."""

    shape: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1, max_length=2)  # (F,) or (T, F)
    dtype: Literal["float16", "float32"]
    num_with: int = Field(ge=0)  # items that have an entry
    source: str  # file or checkpoint that it was made from, without its folder
    num_values: int | None = Field(None, ge=1)  # entries are codes, whole numbers below it; None: any numbers

    @model_serializer(mode="wrap")
    def _without_null(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Earlier versions do not know `num_values`, so only features of codes name it."""
        tree: dict[str, Any] = written(self)
        return {key: value for key, value in tree.items() if key != "num_values" or value is not None}


class Filters(Config):
    """Which interactions the import left out on purpose."""

    k_core: int | None = Field(None, ge=1, description="Users and items all have this many interactions; None: any.")
    min_user: int | None = Field(None, ge=1, description="Users all have this many interactions; None: any.")
    min_item: int | None = Field(None, ge=1, description="Items all have this many interactions; None: any.")
    min_rating: float | None = Field(None, description="Interactions all have this rating or a higher one.")
    since: str | None = Field(None, description="No interaction is earlier: a date, or a number of the unit of times.")
    until: str | None = Field(None, description="All interactions are earlier.")
    repeats: Literal["keep", "first", "last"] = Field("keep", description="Which of a user's repeats of an item stay.")
    sample_users: int | None = Field(None, ge=1, description="How many users were drawn, before the core.")
    seed: int | None = Field(None, ge=0, description="Of the draw.")

    @model_serializer(mode="wrap")
    def _without_unused(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Earlier versions know `k_core` alone, so other filters are named where they are used."""
        tree: dict[str, Any] = written(self)
        return {key: value for key, value in tree.items() if key == "k_core" or value not in (None, "keep")}


class ImportSummary(Config):
    """What an import read, kept and rejected. Every rejected row is in rejected.parquet with its reason.

    It tells people about an import and changes nothing that is computed, so facts of later versions are passed over.
    """

    model_config = ConfigDict(extra="ignore")

    num_items_read: int = Field(ge=0)
    num_interactions_read: int = Field(ge=0)
    kept: dict[str, int]  # items, users, interactions, texts, images
    rejected: dict[str, dict[str, int]]  # kind (item, interaction, image, user) -> reason -> how many
    filtered: dict[str, dict[str, int]] = {}  # likewise, rows that are valid but left out on purpose
    num_pictures_ignored: int = Field(ge=0)  # files that belong to no item
    notes: tuple[str, ...] = ()  # how times, quotes and the like were read

    @model_serializer(mode="wrap")
    def _without_unused(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Versions that refuse what they do not know have no `filtered`, so it is named where something was."""
        tree: dict[str, Any] = written(self)
        return {key: value for key, value in tree.items() if key != "filtered" or value}

    def lines(self) -> list[str]:
        """The summary as text, one fact a line."""
        kept = ", ".join(f"{count:,} {what}" for what, count in self.kept.items())
        lines = [f"read {self.num_items_read:,} items, {self.num_interactions_read:,} interactions", f"kept {kept}"]
        for verb, by_kind in (("rejected", self.rejected), ("filtered", self.filtered)):
            for kind, reasons in by_kind.items():
                lines += [f"{verb} {count:,} x {kind}: {reason}" for reason, count in reasons.items()]
        lines += self.balances()
        if self.num_pictures_ignored:
            lines.append(f"ignored {self.num_pictures_ignored:,} pictures that belong to no item")
        return lines + list(self.notes)

    def balances(self) -> list[str]:
        """Where the rows of each file went: read = kept + rejected + filtered."""
        lines = []
        for kind, num_read in (("item", self.num_items_read), ("interaction", self.num_interactions_read)):
            rejected, filtered = (sum(found.get(kind, {}).values()) for found in (self.rejected, self.filtered))
            parts = f"{self.kept[f'{kind}s']:,} kept + {rejected:,} rejected + {filtered:,} filtered"
            lines.append(f"{kind}s: {num_read:,} read = {parts}")
        return lines


class DomainInfo(Config):
    """The content of `domain.json`."""

    format: Literal["pmmrec-domain"]
    format_version: Literal[1]
    name: str = Field(pattern=NAME_PATTERN)
    num_items: int = Field(ge=1)
    num_users: int = Field(ge=1)
    num_interactions: int = Field(ge=1)
    num_with: dict[Modality, int]  # items that have a text, items that have an image
    time_unit: Literal["as given", "milliseconds"] | None  # None: the source had no times; the order of its rows counts
    filters: Filters
    image_side: int | None  # upper bound of the shortest side of an image in pixels; None: no images
    sources: dict[str, SourceFile]  # by role; the sha256 of each picture is stored beside its image
    files: dict[Annotated[str, Field(pattern=rf"^({DATA_FILE.pattern})$")], FileRecord]
    features: dict[Annotated[str, Field(pattern=rf"^{FEATURE_NAME.pattern}$")], FeatureInfo] = {}  # by name
    item_ids_fingerprint: str  # of the item ids in their order
    fingerprint: str  # of items, images and sequences
    summary: ImportSummary

    @model_validator(mode="after")
    def _names_its_tables(self) -> Self:
        for name in (ITEMS_FILE, SEQUENCES_FILE):
            if name not in self.files:
                raise ValueError(f"files: no {name}")
        return self

    def parts(self, name: str) -> list[str]:
        """The files of one table, in the order of its rows: `items.arrow`, `items-2.arrow`, and so on.

        Empty where the domain has no such table; only images may be missing.
        """
        numbered = [part_name(name, number) for number in range(1, len(self.files) + 1)]
        return [part for part in numbered if part in self.files]

    def sha256(self, name: str) -> str:
        """A hash that changes with any byte of a table; for a table in one file, the SHA-256 of that file."""
        hashes = [self.files[part].sha256 for part in self.parts(name)]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def part_name(name: str, number: int) -> str:
    """The file that holds part `number`, from 1, of the table whose first part is called `name`."""
    stem, _, ending = name.rpartition(".")
    return name if number == 1 else f"{stem}-{number}.{ending}"


def feature_file(name: str) -> str:
    """The file of a feature, within the folder of its domain."""
    return f"features/{name}.arrow"


def read_info(folder: Path) -> DomainInfo:
    """Read `domain.json`. Raises DataError when `folder` holds no domain that this version can read."""
    path = folder / DOMAIN_FILE
    if folder.name.endswith(INCOMPLETE) or (
        not folder.exists() and folder.with_name(folder.name + INCOMPLETE).exists()
    ):
        raise DataError(f"{folder}: half-written, its import did not finish; import it again")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; `pmmrec data import` makes a domain")
    if not path.is_file():
        raise DataError(f"{folder}: not a domain, it holds no {DOMAIN_FILE}; `pmmrec data import` makes one")
    try:
        if path.stat().st_size > MAX_INFO_BYTES:
            raise DataError(f"{path}: larger than {MAX_INFO_BYTES:,} bytes; not a description of a domain")
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    found = tree.get("format") if isinstance(tree, dict) else None
    if found != FORMAT:
        raise DataError(f"{path}: format is {found!r}, not {FORMAT!r}; not a domain")
    if tree.get("format_version") != FORMAT_VERSION:
        version = tree.get("format_version")
        raise DataError(f"{path}: format version {version!r}, this program reads {FORMAT_VERSION}; import it again")
    try:
        return DomainInfo.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(key) for key in first["loc"])
        raise DataError(f"{path}: {where}: {first['msg']}; import the domain again") from error
