#!/usr/bin/env bash
# guess: a parquet column of times in nanoseconds with a zone can be cast to TIMESTAMP, as one in microseconds can.
# seen: DuckDB reads timestamp[ns, UTC] (what pandas 2 writes for utc=True) as TIMESTAMPTZ_NS, which has no cast to TIMESTAMP:
#   TRY_CAST gives NULL in every row. A cast to TIMESTAMP_NS works.
# version: duckdb 2.0.0 with pyarrow 26.0.1; duckdb 1.2 and 1.4 read TIMESTAMP WITH TIME ZONE, to the microsecond.
# why here: an import that casts times to TIMESTAMP finds none of a valid and usual file readable.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check duckdb==2.0.0 pyarrow==26.0.1
env/bin/python - <<'PY'
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

print(f"duckdb {duckdb.__version__}, pyarrow {pa.__version__}")
print("guess: both columns can be cast to TIMESTAMP")
times = pa.array([1_700_000_000_123_456_789, 1_700_000_001_000_000_000], pa.timestamp("ns", "UTC"))
pq.write_table(pa.table({"us": times.cast(pa.timestamp("us", "UTC"), safe=False), "ns": times}), "times.parquet")
kinds = {name: kind for name, kind, *_ in duckdb.sql("DESCRIBE SELECT * FROM 'times.parquet'").fetchall()}
read = {}
for name in ("us", "ns"):
    query = f"SELECT count(TRY_CAST({name} AS TIMESTAMP)), count(TRY_CAST({name} AS TIMESTAMP_NS)) FROM 'times.parquet'"
    read[name] = duckdb.sql(query).fetchall()[0]
    print(f"seen: {name} is {kinds[name]}; of 2 times {read[name][0]} are read as TIMESTAMP, {read[name][1]} as TIMESTAMP_NS")
raise SystemExit(not (read == {"us": (2, 2), "ns": (0, 2)} and kinds["ns"] == "TIMESTAMPTZ_NS"))
PY
