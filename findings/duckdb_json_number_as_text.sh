#!/usr/bin/env bash
# guess: a column of json lines that is declared as VARCHAR holds numbers as they are written in the file.
# seen: numbers with a point or an exponent are parsed and written anew: 7.50 becomes 7.5, and 1e3 becomes 1000.0. Whole numbers
#   stay, those beyond 64 bits too; so do texts.
# version: duckdb 2.0.0, read_json with format = 'newline_delimited'.
# why here: ids are texts to us, whatever they look like: the id 7.50 of a json file is 7.5 to an import, and that of a csv is 7.50.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check duckdb==2.0.0
cat > items.jsonl <<'JSON'
{"id": 7.50}
{"id": 1e3}
{"id": 12345678901234567890123}
{"id": "7.50"}
JSON
env/bin/python - <<'PY'
import duckdb

print(f"duckdb {duckdb.__version__}")
found = duckdb.sql(
    "SELECT id FROM read_json('items.jsonl', format = 'newline_delimited', columns = {'id': 'VARCHAR'})"
).fetchall()
ids = [row[0] for row in found]
print(f"guess: 7.50, 1e3, 12345678901234567890123, 7.50; seen: {', '.join(ids)}")
raise SystemExit(ids != ["7.5", "1000.0", "12345678901234567890123", "7.50"])
PY
