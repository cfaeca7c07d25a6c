"""Store the impressions of a file beside the sequences of a domain."""
# R rows of the file: one item shown in one impression.

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pmmrec.atomic import whole_file
from pmmrec.data.domain import Domain
from pmmrec.data.importers.named import Named
from pmmrec.data.importers.source import Source, stream
from pmmrec.data.splits import SplitPart, offsets_of
from pmmrec.data.splits.impressions import DOMAIN_KEY, IMPRESSION_FIELDS, KNOWN_FIELD, domain_key, impressions_file
from pmmrec.data.splits.stored import CONTENT_KEY, LACKING, content_hash
from pmmrec.errors import DataError, RecipeError

WORDS = {"train": SplitPart.TRAIN, "validation": SplitPart.VALIDATION, "test": SplitPart.TEST}
KNOWN = KNOWN_FIELD.name
CLICKED = {"1": True, "0": False, "true": True, "false": False}


@dataclass(frozen=True)
class StoredImpressions:
    """What was stored, and what was left out and why."""

    path: Path
    counts: dict[str, int]  # impressions of validation, of the test and, if there are any, of training
    left_out: dict[str, Named]  # by reason

    def lines(self) -> list[str]:
        """The same as text."""
        counted = ", ".join(f"{count:,} of {name}" for name, count in self.counts.items())
        return [
            f"{self.path}: impressions: {counted}",
            *(f"no impression is for {name}: {LACKING[name]}" for name, count in self.counts.items() if not count),
            *(f"left out, {why}: {named}" for why, named in self.left_out.items() if named.count),
        ]


def store_impressions(folder: Path, source: Path, name: str) -> StoredImpressions:
    """Store the impressions of a .csv, .tsv or .parquet file with a row for each item shown.

    Columns: impression_id, user_id, item_id, clicked (1 or 0, true or false; numbers, truth values or text), split
    (train, validation or test) and, if given, known: how many items of the user's sequence came before the impression;
    without it, all did. Rows of items and of users that the domain lacks are left out, and so are impressions without a
    clicked item, without another one, or with nothing known before them, and those of training that know items behind a
    held-out impression of their user. All rows are held in memory.

    Raises DataError for a file that cannot be read, other words, an impression of two users or parts, and an item that
    is shown twice in one; RecipeError where the domain has impressions of that name.
    """
    domain = Domain.open(folder)
    path = impressions_file(domain.folder, name)
    if path.exists():
        raise RecipeError(f"--name {name}: {path} exists; choose another name, or remove it")
    table = _read(source)
    part_R = _coded(source, table["word"], WORDS, "split").astype(np.uint8)
    is_clicked_R = _coded(source, table["clicked"], CLICKED, "clicked").astype(bool)
    user_R = pc.fill_null(pc.index_in(table["user_id"], value_set=domain.user_ids.combine_chunks()), -1).to_numpy()
    item_R = domain.rows_of(table["item_id"].to_pylist())
    encoded = table["impression_id"].combine_chunks().dictionary_encode()
    impression_R, ids = encoded.indices.to_numpy().astype(np.int64), encoded.dictionary
    known_R = _known(source, table, domain, user_R)
    whose_R = (user_R.astype(np.int64) * 4 + part_R) * (known_R.max(initial=0) + 1) + known_R
    _refuse_mixed(source, table, impression_R, whose_R, item_R)
    is_late_R = _is_late(domain, user_R, known_R, part_R)
    is_kept_R = (item_R >= 0) & (user_R >= 0) & (known_R > 0) & ~is_late_R
    num_clicked, num_shown = (np.bincount(impression_R, weights=is_kept_R & which) for which in (is_clicked_R, True))
    is_whole = (num_clicked > 0) & (num_clicked < num_shown)
    left_out = {
        "rows of items that the domain lacks": Named.of(table["item_id"], item_R < 0),
        "rows of users that the domain lacks": Named.of(table["user_id"], user_R < 0),
        "rows of impressions before which nothing is known": Named.of(table["impression_id"], known_R == 0),
        "rows of training that know items behind a held-out impression": Named.of(table["impression_id"], is_late_R),
        "impressions without a clicked item, or without another one": Named.of(ids, ~is_whole & (num_shown > 0)),
    }
    is_kept_R &= is_whole[impression_R]
    order = np.flatnonzero(is_kept_R)[np.lexsort((impression_R[is_kept_R], user_R[is_kept_R]))]
    if not len(order):
        raise DataError(f"{source}: holds no impression of {domain.name} with a clicked item and another one")
    sizes = np.diff(np.flatnonzero(np.diff(impression_R[order], prepend=-1, append=-1) != 0))
    offsets, first = offsets_of(sizes), order[offsets_of(sizes)[:-1]]
    lists = [(item_R[order].astype(np.int32), 0), (is_clicked_R[order], 1)]
    columns = [_lists(offsets, values).cast(IMPRESSION_FIELDS[place].type) for values, place in lists]
    columns += [pa.array(user_R[first], pa.int64()), pa.array(part_R[first], pa.uint8())]
    fields = [*IMPRESSION_FIELDS]
    if KNOWN in table.column_names:
        fields, columns = [*fields, KNOWN_FIELD], [*columns, pa.array(known_R[first], KNOWN_FIELD.type)]
    keys = {DOMAIN_KEY: domain_key(domain), CONTENT_KEY: content_hash(columns)}
    schema = pa.schema(fields, metadata=keys)
    with whole_file(path, replace=False) as draft, pa.ipc.new_file(draft, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
    counts = {word: int((part_R[first] == part).sum()) for word, part in WORDS.items()}
    if not counts["train"]:
        del counts["train"]
    return StoredImpressions(path, counts, left_out)


def _read(source: Path) -> pa.Table:
    with duckdb.connect() as connection:
        shown = Source(source, connection)
        shown.require("impression_id", "user_id", "item_id", "clicked", "split")
        ids = {name: shown.as_id(name) for name in ("impression_id", "user_id", "item_id")}
        texts = {"clicked": shown.as_text("clicked"), "word": shown.as_text("split")}
        if shown.column(KNOWN) is not None:
            texts[KNOWN] = shown.as_text(KNOWN)
        shown.load("shown", {**ids, **texts})
        table = pa.Table.from_batches(stream(connection, "SELECT * FROM shown ORDER BY row"))
    for name in ids:
        if table[name].null_count:
            row = int(np.flatnonzero(table[name].is_null().to_numpy())[0])
            raise DataError(f"{source}: row {row + 1}: has no {name}")
    return pa.table({name: table[name].cast(pa.large_string()) for name in (*ids, *texts)})


def _known(source: Path, table: pa.Table, domain: Domain, user_R: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many items of the user's sequence came before the impression of each row. DataError for another number."""
    lengths = np.concatenate([lengths for _, lengths in domain.sequences.all_lengths()]).astype(np.int64)
    length_R = np.where(user_R >= 0, lengths[user_R], 1)
    if KNOWN not in table.column_names:
        return length_R
    plain = pc.replace_substring_regex(pc.utf8_trim_whitespace(table[KNOWN]), r"\.0+$", "")
    is_number = pc.fill_null(pc.match_substring_regex(plain, r"^[0-9]{1,9}$"), False).to_numpy()
    known_R = pc.if_else(pa.array(is_number), plain.combine_chunks(), "0").cast(pa.int64()).to_numpy()
    wrong = np.flatnonzero(~is_number | ((known_R > length_R) & (user_R >= 0)))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{source}: row {row + 1}: known is {table[KNOWN][row].as_py()!r}; write how many of the {length_R[row]:,} "
            "items of the user's sequence came before the impression"
        )
    known: NDArray[np.int64] = known_R
    return known


def _is_late(
    domain: Domain, user_R: NDArray[np.int64], known_R: NDArray[np.int64], part_R: NDArray[np.uint8]
) -> NDArray[np.bool_]:
    """Which rows are of training, and know more items than a held-out impression of the same user does."""
    is_held_out_R = (part_R != SplitPart.TRAIN) & (user_R >= 0)
    fewest_known = np.full(domain.num_users, np.iinfo(np.int64).max)
    np.minimum.at(fewest_known, user_R[is_held_out_R], known_R[is_held_out_R])
    is_late_R: NDArray[np.bool_] = (part_R == SplitPart.TRAIN) & (user_R >= 0) & (known_R > fewest_known[user_R])
    return is_late_R


def _coded(
    source: Path, words: pa.ChunkedArray, codes: dict[str, bool] | dict[str, SplitPart], column: str
) -> NDArray[np.int64]:
    """The code of each word, in capitals or not. DataError for a word without one."""
    plain = pc.replace_substring_regex(pc.utf8_lower(pc.utf8_trim_whitespace(words)), r"^([01])\.0+$", r"\1")
    place = pc.index_in(plain, value_set=pa.array(list(codes), pa.large_string()))
    unknown = np.flatnonzero(place.is_null().to_numpy())
    if len(unknown):
        row = int(unknown[0])
        told = repr(words[row].as_py()) if plain[row].as_py() else "missing"
        raise DataError(f"{source}: row {row + 1}: {column} is {told}; write {', '.join(codes)}")
    found: NDArray[np.int64] = np.array([int(code) for code in codes.values()])[place.to_numpy()]
    return found


def _refuse_mixed(
    source: Path,
    table: pa.Table,
    impression_R: NDArray[np.int64],
    whose_R: NDArray[np.int64],
    item_R: NDArray[np.int64],
) -> None:
    """DataError for an impression of several users or parts, and for one that shows an item twice."""
    _, first = np.unique(impression_R, return_index=True)
    mixed = np.flatnonzero(whose_R != whose_R[first][impression_R])
    if len(mixed):
        told = table["impression_id"][int(mixed[0])].as_py()
        raise DataError(
            f"{source}: row {mixed[0] + 1}: impression {told!r} has another user or split, or other known items, in an "
            "earlier row"
        )
    is_known_R = item_R >= 0
    pair_R = np.where(is_known_R, impression_R * (item_R.max(initial=0) + 1) + item_R, -1)
    _, first = np.unique(pair_R, return_index=True)
    again = np.setdiff1d(np.flatnonzero(is_known_R), first)
    if len(again):
        shown = table["impression_id"][int(again[0])].as_py(), table["item_id"][int(again[0])].as_py()
        raise DataError(
            f"{source}: row {again[0] + 1}: impression {shown[0]!r} shows item {shown[1]!r} twice; name each item of "
            "an impression once"
        )


def _lists(offsets: NDArray[np.int64], values: NDArray[Any]) -> pa.LargeListArray:
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))
