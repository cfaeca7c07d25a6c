"""Write the folder of a domain, complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal

import pyarrow as pa
from typing_extensions import Self

from pmmrec.atomic import make_folder, sole_writer
from pmmrec.data.info import (
    DATA_FILE,
    DOMAIN_FILE,
    IMAGES_FILE,
    IMAGES_SCHEMA,
    INCOMPLETE,
    ITEM_FIELDS,
    ITEMS_FILE,
    REJECTED_FILE,
    SEQUENCE_FIELDS,
    SEQUENCES_FILE,
    TIMES_FIELD,
    DomainInfo,
    FileRecord,
    Filters,
    ImportSummary,
    SourceFile,
    part_name,
)
from pmmrec.errors import MachineError, RecipeError
from pmmrec.modality import Modality

MAX_BATCH_BYTES = 64_000_000
MAX_FILE_BYTES = 4_000_000_000  # a larger table continues in the next file


class ArrowFiles:
    """Writes a table as uncompressed Arrow files, in record batches of up to `MAX_BATCH_BYTES`.

    The first file is at `path`; once a file holds `MAX_FILE_BYTES`, the next begins beside it (`part_name`).
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._schema, self._number = path, schema, 0
        self._next_file()
        self._pending: list[pa.RecordBatch] = []
        self._num_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
                self._writer.close()
        finally:
            self._sink.close()

    def _next_file(self) -> None:
        self._number, self._file_bytes = self._number + 1, 0
        self._sink = pa.OSFile(str(self._path.with_name(part_name(self._path.name, self._number))), "wb")
        self._writer = pa.ipc.new_file(self._sink, self._schema)

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows; they may be written later, together with others."""
        if batch.nbytes > MAX_BATCH_BYTES and batch.num_rows > 1:
            middle = batch.num_rows // 2
            self.write(batch.slice(0, middle))
            self.write(batch.slice(middle))
            return
        if self._num_bytes + batch.nbytes > MAX_BATCH_BYTES:
            self._flush()
        self._pending.append(batch)
        self._num_bytes += batch.nbytes

    def _flush(self) -> None:
        if self._file_bytes and self._file_bytes + self._num_bytes > MAX_FILE_BYTES:
            self._writer.close()
            self._sink.close()
            self._next_file()
        table = pa.Table.from_batches(self._pending, self._schema).combine_chunks()
        for batch in table.to_batches():
            self._writer.write_batch(batch)
        self._file_bytes += self._num_bytes
        self._pending, self._num_bytes = [], 0


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[tuple[Path, bool]]:
    """A temporary folder to fill, renamed to `out` at the end of the block, removed when the block fails.

    Yields the folder and whether it held what a killed import had left.
    Raises RecipeError when `out` exists or is being written by another process, MachineError when the disk is full.
    """
    _refuse_taken(out)
    folder = out.with_name(out.name + INCOMPLETE)
    try:
        make_folder(out.parent)
        with sole_writer(out):
            _refuse_taken(out)  # again: another process may have made it before this one got the lock
            try:
                folder.mkdir(exist_ok=True)
                yield folder, _emptied(folder)
                folder.rename(out)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MachineError(f"{out}: the disk is full; free some space or choose another --out") from error
        raise MachineError(f"{out}: cannot be written: {error}") from error


def _refuse_taken(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise RecipeError(f"{out}: exists already; choose another --out or remove it")
    if out.name.endswith(INCOMPLETE):
        raise RecipeError(f"{out}: a name that ends in {INCOMPLETE} is that of a half-written folder; choose another")


def _emptied(folder: Path) -> bool:
    """Remove everything in `folder`; says whether there was anything."""
    remains = list(folder.iterdir())
    for path in remains:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return bool(remains)


class DomainFolder:
    """Writes the data files of a new domain, in this order: items, images, sequences."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ids = hashlib.sha256()
        self._has_times = False
        self.num_items = self.num_users = self.num_interactions = 0
        self.num_with = {Modality.TEXT: 0, Modality.IMAGE: 0}

    def write_items(self, batches: Iterable[pa.RecordBatch], attributes: list[str]) -> None:
        """Write rows of `item_id`, `text` and the attributes as text; their order numbers the items."""
        extra = [pa.field(name, pa.large_string()) for name in attributes]
        with ArrowFiles(self.folder / ITEMS_FILE, schema := pa.schema([*ITEM_FIELDS, *extra])) as file:
            for batch in batches:
                rows = pa.RecordBatch.from_arrays(batch.columns, names=schema.names).cast(schema)
                self._ids.update(ids_as_bytes(rows.column("item_id")))
                self.num_items += rows.num_rows
                self.num_with[Modality.TEXT] += rows.num_rows - rows.column("text").null_count
                file.write(rows)

    def write_images(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Write rows of `IMAGES_SCHEMA`, one for each item, in item order."""
        with ArrowFiles(self.folder / IMAGES_FILE, IMAGES_SCHEMA) as file:
            for batch in batches:
                self.num_with[Modality.IMAGE] += batch.num_rows - batch.column("jpeg").null_count
                file.write(batch)

    def link_images(self, paths: Iterable[Path], num_with_image: int) -> None:
        """Take the image files of other domains, which hold a row for each item in item order, as they are.

        Files are hard links where the disk allows it, otherwise copies.
        """
        for number, path in enumerate(paths, start=1):
            target = self.folder / part_name(IMAGES_FILE, number)
            try:
                target.hardlink_to(path)
            except OSError:  # another disk, or one without hard links
                shutil.copyfile(path, target)
        self.num_with[Modality.IMAGE] += num_with_image

    def write_sequences(self, batches: Iterable[pa.RecordBatch], *, has_times: bool) -> None:
        """Write rows of `user_id`, `items` and, with `has_times`, `times`; oldest item first."""
        fields = [*SEQUENCE_FIELDS, TIMES_FIELD] if has_times else list(SEQUENCE_FIELDS)
        with ArrowFiles(self.folder / SEQUENCES_FILE, pa.schema(fields)) as file:
            for batch in batches:
                self.num_users += batch.num_rows
                self.num_interactions += len(batch.column("items").flatten())
                file.write(batch)

    def seal(
        self,
        name: str,
        *,
        filters: Filters,
        image_side: int | None,
        time_unit: Literal["as given", "milliseconds"] | None,
        sources: dict[str, SourceFile],
        summary: ImportSummary,
    ) -> DomainInfo:
        """Write `domain.json`, the last file, which holds the hashes of all others."""
        names = sorted(path.name for path in self.folder.iterdir() if DATA_FILE.fullmatch(path.name))
        files = {name: record_of(_synced(self.folder / name)) for name in names}
        info = DomainInfo(
            format="pmmrec-domain",
            format_version=1,
            name=name,
            num_items=self.num_items,
            num_users=self.num_users,
            num_interactions=self.num_interactions,
            num_with=self.num_with,
            time_unit=time_unit,
            filters=filters,
            image_side=image_side,
            sources=sources,
            files=files,
            item_ids_fingerprint=self._ids.hexdigest(),
            fingerprint=fingerprint_of(files),
            summary=summary,
        )
        text = json.dumps(info.model_dump(mode="json"), indent=2, ensure_ascii=False)
        (self.folder / DOMAIN_FILE).write_text(text + "\n", encoding="utf-8")
        _synced(self.folder / DOMAIN_FILE)
        return info


def ids_as_bytes(ids: pa.Array) -> bytes:
    """Encode ids so that different lists give different bytes: the length of each id, then the id."""
    encoded = [str(item_id).encode() for item_id in ids.to_pylist()]
    return b"".join(len(item_id).to_bytes(8, "little") + item_id for item_id in encoded)


def fingerprint_of(files: Mapping[str, FileRecord]) -> str:
    """SHA-256 over the hashes of the data files of a domain."""
    lines = [f"{name} {record.sha256}\n" for name, record in files.items() if name != REJECTED_FILE]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def record_of(path: Path) -> FileRecord:
    """Size and SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return FileRecord(sha256=digest.hexdigest(), num_bytes=path.stat().st_size)


def _synced(path: Path) -> Path:
    """`path`, once its content is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return path
