#!/usr/bin/env bash
# guess: TRY_CAST of a VARCHAR column of read_csv gives NULL where the text is no number.
# seen: where nothing else reads the column, the cast moves into the reader, which fails: a ConversionException that names the line.
#   Reading the column as it is beside the cast, or a subquery with OFFSET 0 between, gives NULL.
# version: duckdb 2.0.0; the columns are declared as VARCHAR and nothing is detected.
# why here: ratings of users' files hold words and dashes; such rows are to be counted and named, not to end an import.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check duckdb==2.0.0
printf 'id,rating\n0007,5\n8,none\n' > ratings.csv
env/bin/python - <<'PY'
import duckdb

print(f"duckdb {duckdb.__version__}")
TABLE = "read_csv('ratings.csv', header = true, auto_detect = false, columns = {'id': 'VARCHAR', 'rating': 'VARCHAR'})"


def asked(query: str):
    try:
        return duckdb.sql(query).fetchall()
    except duckdb.Error as error:
        return type(error).__name__


found = [
    asked(f"SELECT id, TRY_CAST(rating AS DOUBLE) FROM {TABLE}"),
    asked(f"SELECT id, TRY_CAST(rating AS DOUBLE) FROM (SELECT * FROM {TABLE} OFFSET 0)"),
    asked(f"SELECT id, rating, TRY_CAST(rating AS DOUBLE) FROM {TABLE}"),
]
print(f"guess: NULL for 'none' in all three; seen: {found}")
values = [[row[-1] for row in rows] if isinstance(rows, list) else rows for rows in found]
raise SystemExit(values != ["ConversionException", [5.0, None], [5.0, None]])
PY
