"""Match the pictures of a store with items: by name, or by the paths in a column of the items."""
# ruff: noqa: S608  statements contain no ids or file names of users
# Tables in DuckDB: items, pictures -> matches (row, file_name, choice, suffix, is_outside: all pictures of each item),
# and item_pictures (row, file_name, is_outside, item_id: the picture that is taken).
# A picture in the nearest folder is taken; where several folders are as near, none of their pictures is.

from __future__ import annotations

from pathlib import Path

import duckdb

from pmmrec.data.importers.selection import Selection
from pmmrec.errors import RecipeError

URL = r"^\s*[A-Za-z][A-Za-z0-9+.-]*://"
WITHOUT_LETTER = "nullif(regexp_replace({}, '^[A-Za-z]', ''), '')"
# By the rules of stores: what is compared of the item, and of the picture.
SIDES = {
    "": ("item_id", "stem"),
    "without the first letter of the id": (WITHOUT_LETTER.format("item_id"), "stem"),
    "without the first letter of the key": ("item_id", WITHOUT_LETTER.format("stem")),
}
# Of several pictures of an item: the fewest folders, then the first suffix of the list, then the name.
NEAREST = """CREATE TABLE nearest AS SELECT row, file_name, is_outside, item_id, choice,
               regexp_replace(file_name, '[^/]*$', '') AS folder FROM matches JOIN items USING (row)
             WHERE choice IS NOT NULL QUALIFY rank() OVER (PARTITION BY row
               ORDER BY length(file_name) - length(replace(file_name, '/', ''))) = 1"""
TAKEN = """CREATE TABLE item_pictures AS SELECT row, file_name, is_outside, item_id FROM nearest
           WHERE row NOT IN (SELECT row FROM nearest GROUP BY row HAVING count(DISTINCT folder) > 1)
           QUALIFY row_number() OVER (PARTITION BY row ORDER BY choice, file_name) = 1"""


def match_names(connection: duckdb.DuckDBPyConnection, rules: tuple[str, ...]) -> str:
    """Match names without their suffixes with ids, by the rule that fits most items. Returns the rule, in words."""
    counts = {}
    for rule in rules:
        of_item, of_picture = SIDES[rule]
        query = f"SELECT count(*) FROM items SEMI JOIN pictures ON {of_item} = {of_picture}"
        counts[rule] = int((connection.execute(query).fetchone() or (0,))[0])
    best = max(counts, key=counts.__getitem__)  # the first of equals
    of_item, of_picture = SIDES[best]
    connection.execute(
        f"""CREATE TABLE matches AS SELECT items.row, file_name, choice, suffix, is_outside
            FROM items JOIN pictures ON {of_item} = {of_picture}"""
    )
    return f"name{' ' if best else ''}{best}"


def match_paths(connection: duckdb.DuckDBPyConnection, selection: Selection) -> str:
    """Match the paths in `items.picture_path` with pictures of the folder. Returns the rule, in words.

    A path may begin with folders that lead to the folder. Paths that lead out of it or to no picture are recorded.
    Raises RecipeError where the column holds addresses.
    """
    found = connection.execute(
        "SELECT row, picture_path FROM items WHERE regexp_matches(picture_path, $url) ORDER BY row LIMIT 1",
        {"url": URL},
    ).fetchone()
    if found is not None:
        told = f"--image-column: row {found[0]} holds an address, {str(found[1])[:80]!r}"
        raise RecipeError(
            f"{told}; pictures are fetched with --fetch-images alone; or download them and name their paths"
        )
    connection.execute(
        """CREATE TABLE paths AS SELECT row, item_id, path, regexp_extract(path, '[^/]*$') AS last FROM (
             SELECT row, item_id, regexp_replace(replace(trim(picture_path), '\\', '/'), '^(\\./)+', '') AS path
             FROM items WHERE trim(coalesce(picture_path, '')) <> '')"""
    )
    outside = "(starts_with(path, '/') OR list_contains(string_split(path, '/'), '..'))"
    connection.execute(
        f"""CREATE TABLE matches AS SELECT row, file_name, choice, suffix, is_outside
            FROM paths JOIN (SELECT *, regexp_extract(file_name, '[^/]*$') AS last FROM pictures) AS named USING (last)
            WHERE NOT {outside} AND ends_with('/' || path, '/' || file_name)
            QUALIFY row_number() OVER (PARTITION BY row ORDER BY length(file_name) DESC) = 1"""
    )
    rejections = selection.rejections
    rejections.add_images(
        f"SELECT item_id, 'path outside the folder', NULL, row FROM paths WHERE {outside} ORDER BY row"
    )
    rejections.add_images(
        f"""SELECT item_id, 'no such picture', NULL, row FROM paths
            WHERE NOT {outside} AND row NOT IN (SELECT row FROM matches) ORDER BY row"""
    )
    return "path"


def take(connection: duckdb.DuckDBPyConnection) -> None:
    """Make `item_pictures` of `matches`: at most one for each item."""
    connection.execute(NEAREST)
    connection.execute(TAKEN)
    connection.execute("CREATE TABLE taken AS SELECT row, file_name FROM item_pictures")  # not changed afterwards
    connection.execute("CREATE TABLE given_items AS SELECT row, item_id FROM items")


def write_matches(connection: duckdb.DuckDBPyConnection, path: Path, rule: str) -> None:
    """Write what became of each picture, and which items have none, as a parquet file: item_id, image, outcome, rule.

    `rule` is that of the import; it is empty where a picture belongs to no item. Pictures that cannot be read have the
    reason of rejected.parquet as their outcome.
    """
    rows = connection.sql(
        """SELECT item_id, image, outcome, CASE WHEN item_id IS NOT NULL AND image IS NOT NULL THEN $rule END AS rule
           FROM (
             SELECT given.item_id, taken.file_name AS image, CASE WHEN rejected.reason IS NOT NULL THEN rejected.reason
                 WHEN catalogue.row IS NULL THEN 'taken, but the item is left out' ELSE 'taken' END AS outcome
             FROM taken JOIN given_items given ON given.row = taken.row
             LEFT JOIN catalogue ON catalogue.row = taken.row
             LEFT JOIN rejected ON kind = 'image' AND item_row = taken.row AND rejected.image = taken.file_name
             UNION ALL SELECT item_id, file_name, reason FROM other_pictures
             UNION ALL SELECT NULL, file_name, 'belongs to no item' FROM pictures
               WHERE file_name NOT IN (SELECT file_name FROM taken UNION ALL SELECT file_name FROM other_pictures)
             UNION ALL SELECT given.item_id, NULL, coalesce(rejected.reason, 'no picture') FROM given_items given
               LEFT JOIN rejected ON kind = 'image' AND item_row = given.row AND image IS NULL
               WHERE given.row NOT IN (SELECT row FROM taken UNION ALL SELECT row FROM other_pictures)
           ) ORDER BY image IS NULL, image, item_id""",
        params={"rule": rule},
    )
    rows.write_parquet(str(path))
