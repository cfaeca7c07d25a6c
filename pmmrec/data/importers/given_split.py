"""Store a split, of a file or by a rule, beside the sequences of a domain."""
# ruff: noqa: S608  statements contain no names or values of users

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pmmrec.atomic import whole_file
from pmmrec.data.domain import Domain
from pmmrec.data.importers.named import Named
from pmmrec.data.importers.source import Source
from pmmrec.data.info import SEQUENCES_FILE
from pmmrec.data.sequences import USERS_AT_ONCE
from pmmrec.data.splits import HELD_OUT, Split, SplitPart, split_of
from pmmrec.data.splits.given import PARTS_FIELD, SEQUENCES_KEY, split_file
from pmmrec.data.splits.stored import CONTENT_KEY, LACKING, content_hash
from pmmrec.errors import DataError, RecipeError
from pmmrec.settings import PartConfig

WORDS = {part.name.lower(): part for part in SplitPart}

# The nth row of a user and an item is the nth interaction of the two.
NUMBERED = """
    WITH done_n AS (SELECT *, row_number() OVER (PARTITION BY user_id, item_id ORDER BY place) AS nth FROM done),
    given_n AS (SELECT *, row_number() OVER (PARTITION BY user_id, item_id ORDER BY row) AS nth FROM given)
"""
MATCHED = f"""{NUMBERED}
    SELECT user_id, item_id, part, place
    FROM done_n LEFT JOIN given_n USING (user_id, item_id, nth) ORDER BY place
"""
UNUSED = f"""{NUMBERED}
    SELECT concat(user_id, '/', item_id) AS named FROM given_n ANTI JOIN done_n USING (user_id, item_id, nth)
    ORDER BY row
"""


# Rows of a pair that has fewer interactions than rows, in several parts: which of them is left is unknown.
AMBIGUOUS = """
    WITH known AS (SELECT user_id, item_id, count(*) AS num FROM done GROUP BY ALL)
    SELECT concat(user_id, '/', item_id) AS named FROM given JOIN known USING (user_id, item_id)
    GROUP BY user_id, item_id, num HAVING count(*) > num AND count(DISTINCT part) > 1 ORDER BY min(row)
"""


@dataclass(frozen=True)
class StoredSplit:
    """What was stored, and the rows of the file that are no interaction of the domain."""

    path: Path
    counts: dict[str, int]  # interactions of each part
    unused: Named  # as user/item

    def lines(self) -> list[str]:
        """The same as text."""
        counted = ", ".join(f"{count:,} {name}" for name, count in self.counts.items())
        lines = [f"{self.path}: {counted}"]
        lines += [f"no interaction is for {name}: {LACKING[name]}" for name, count in self.counts.items() if not count]
        if self.unused.count:
            lines.append(f"left out, rows (user/item) of no interaction of the domain: {self.unused}")
        return lines


def store_split(folder: Path, source: Path, name: str) -> StoredSplit:
    """Store the parts that a .csv, .tsv or .parquet file gives to the interactions of a domain.

    The file has columns user_id, item_id and split, which is train, validation or test; the nth row of a user and an
    item is the nth interaction of the two. Every interaction of the domain needs a row. All of them are held in memory.

    Raises DataError for a file that cannot be read, another word, an interaction without a row, rows of several parts
    for fewer interactions, or one part for all interactions; RecipeError where the domain has a split of that name.
    """
    domain = Domain.open(folder)
    path = _free_path(domain, name)
    with duckdb.connect() as connection:
        given = Source(source, connection)
        given.require("user_id", "item_id", "split")
        columns = {"user_id": given.as_id("user_id"), "item_id": given.as_id("item_id"), "word": given.as_text("split")}
        given.load("given_words", columns)
        _refuse_other_words(connection, source)
        words = " ".join(f"WHEN '{word}' THEN {int(part)}" for word, part in WORDS.items())
        connection.execute(f"CREATE VIEW given AS SELECT *, CASE word {words} END AS part FROM given_words")
        connection.register("done", _interactions(domain))
        matched = connection.sql(MATCHED).to_arrow_table()
        rows = connection.sql(UNUSED).to_arrow_table()["named"]
        several = _named(connection.sql(AMBIGUOUS).to_arrow_table()["named"])
    _refuse_lacking(matched, domain, source)
    if several.count:
        raise DataError(
            f"{source}: more rows than interactions, in several parts, so that it is unknown which are left "
            f"(user/item): {several}; keep the rows of the interactions of {domain.name} alone"
        )
    counts = _write(path, matched["part"].to_numpy().astype(np.uint8), domain, str(source))
    return StoredSplit(path, counts, _named(rows))


def store_split_by(folder: Path, config: PartConfig, name: str) -> StoredSplit:
    """Store the parts that a rule gives, such as leave-one-out, to the interactions of a domain.

    Raises what `split_of` raises; DataError where the rule gives one part for all interactions; RecipeError for a rule
    that gives more than parts, and where the domain has a split of that name.
    """
    domain = Domain.open(folder)
    path = _free_path(domain, name)
    split = split_of(config, domain)
    if split.ranks_lists:
        raise RecipeError(f"--by {config.type}: holds lists of items; `pmmrec data impressions` stores such")
    if any(split.knows(held_out) != Split.knows(split, held_out) for held_out in HELD_OUT):
        raise RecipeError(f"--by {config.type}: test_history is no part of a stored split; leave it out")
    part_H = np.concatenate([split.parts(stretch) for stretch in split.stretches()])
    return StoredSplit(path, _write(path, part_H, domain, f"--by {config.type}"), Named())


def _named(rows: pa.ChunkedArray) -> Named:
    return Named.of(rows, np.ones(len(rows), dtype=bool))


def _free_path(domain: Domain, name: str) -> Path:
    """Where a split is stored. RecipeError where there is one."""
    path = split_file(domain.folder, name)
    if path.exists():
        raise RecipeError(f"--name {name}: {path} exists; choose another name, or remove it")
    return path


def _refuse_other_words(connection: duckdb.DuckDBPyConnection, source: Path) -> None:
    known = ", ".join(f"'{word}'" for word in WORDS)
    query = f"SELECT row, word FROM given_words WHERE word IS NULL OR word NOT IN ({known}) ORDER BY row LIMIT 1"
    if found := connection.execute(query).fetchone():
        raise DataError(f"{source}: row {found[0]}: split is {found[1]!r}; write {', '.join(WORDS)}")


def _interactions(domain: Domain) -> pa.Table:
    """Every interaction of the domain in order: its place, user and item."""
    lengths = np.diff(domain.sequence_offsets)
    users = domain.user_ids.take(pa.array(np.repeat(np.arange(domain.num_users), lengths)))
    items = domain.item_ids.take(pa.array(domain.sequence_items))
    return pa.table({"place": np.arange(len(items)), "user_id": users, "item_id": items})


def _refuse_lacking(matched: pa.Table, domain: Domain, source: Path) -> None:
    """DataError where an interaction of the domain has no row in the file."""
    pairs = pc.binary_join_element_wise(matched["user_id"], matched["item_id"], "/")
    lacking = Named.of(pairs, matched["part"].is_null().to_numpy())
    if lacking.count:
        raise DataError(f"{source}: every interaction of {domain.name} needs a row; (user/item) without one: {lacking}")


def _write(path: Path, part_H: NDArray[np.uint8], domain: Domain, source: str) -> dict[str, int]:
    """Write the part of each interaction; returns how many each has. DataError where all have the same."""
    counts = dict(zip(WORDS, np.bincount(part_H, minlength=len(SplitPart)).tolist(), strict=True))
    if max(counts.values()) == len(part_H):
        raise DataError(
            f"{source}: says {max(counts, key=lambda word: counts[word])} of every interaction of {domain.name}; a "
            "split holds some of them out and leaves others to train on"
        )
    lists = pa.LargeListArray.from_arrays(pa.array(domain.sequence_offsets), pa.array(part_H)).cast(PARTS_FIELD.type)
    keys = {SEQUENCES_KEY: domain.info.sha256(SEQUENCES_FILE), CONTENT_KEY: content_hash([lists])}
    schema = pa.schema([PARTS_FIELD], metadata=keys)
    with whole_file(path, replace=False) as draft, pa.ipc.new_file(draft, schema) as writer:
        writer.write_table(pa.table([lists], schema=schema), max_chunksize=USERS_AT_ONCE)
    return counts
