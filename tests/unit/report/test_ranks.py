"""Ranks that cannot be compared are refused by the name of their file."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ranked_runs import MakeRun, ranks

from pmmrec.errors import DataError
from pmmrec.report.comparison import compare, read_systems


@pytest.mark.parametrize(
    "other",
    [{"domain": "elsewhere"}, {"fingerprint": "another"}, {"seen": "include"}, {"scenario": "new"}],
    ids=["domain", "content", "seen", "scenario"],
)
def test_runs_on_other_data_or_by_other_rules_are_refused_by_name(make_run: MakeRun, other: dict[str, str]) -> None:
    runs = [make_run("ours", ranks(1)), make_run("theirs", ranks(2), **other)]
    with pytest.raises(DataError, match=r"theirs: measured on .*only figures on the same users and rules compare"):
        read_systems([str(run) for run in runs])


def test_ranks_of_other_users_or_targets_are_refused_by_name(make_run: MakeRun) -> None:
    ours, others = make_run("ours", [1, 2]), make_run("others", [1, 2], users=["u0", "u7"])
    with pytest.raises(DataError, match=r"others/ranks\.parquet: ranks other users than .*ours"):
        compare(read_systems([str(ours), str(others)]))
    table = pq.read_table(ours / "ranks.parquet").set_column(1, "item_id", pa.array(["x", "y"]))
    pq.write_table(table, others / "ranks.parquet")
    with pytest.raises(DataError, match=r"others/ranks\.parquet: ranks other targets than .*ours"):
        compare(read_systems([str(ours), str(others)]))


@pytest.mark.parametrize(
    ("columns", "words"),
    [({"user_id": ["u0"], "rank": [1]}, "no column 'item_id'"), ({"user_id": [], "item_id": [], "rank": []}, "empty")],
)
def test_files_without_ranks_are_refused(make_run: MakeRun, columns: dict[str, list[object]], words: str) -> None:
    runs = [make_run("ours", [1]), make_run("theirs", [1])]
    pq.write_table(pa.table(columns), runs[1] / "ranks.parquet")
    with pytest.raises(DataError, match=words):
        compare(read_systems([str(run) for run in runs]))
    (runs[1] / "ranks.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot be read as ranks"):
        compare(read_systems([str(run) for run in runs]))


WRONG_COLUMNS = [
    ({"rank": [-1]}, "a rank is -1; the best is 1, a miss 0"),
    ({"rank": [100]}, "a rank is 100, but shop has 99 items"),
    ({"user_id": [["u0"]]}, "user_id is list"),
    ({"place": ["x"]}, "place is string, not whole numbers"),
    ({"held_out": ["x"]}, "held_out is string, not true or false"),
    ({"held_out": [False]}, "all targets lie in the training part"),
    ({"rank": [2]}, r"its mean ndcg@10 is 63\.09%, but .*broken/metrics\.json says 100\.00%"),
]


@pytest.mark.parametrize(("columns", "words"), WRONG_COLUMNS)
def test_ranks_that_cannot_be_those_of_the_run_are_refused(
    make_run: MakeRun, columns: dict[str, list[object]], words: str
) -> None:
    ours, broken = make_run("ours", [1]), make_run("broken", [1])
    whole = {"user_id": ["u0"], "item_id": ["i-u0"], "rank": [1]}
    pq.write_table(pa.table({**whole, **columns}), broken / "ranks.parquet")
    with pytest.raises(DataError, match=rf"broken/ranks\.parquet: .*{words}"):
        compare(read_systems([str(ours), str(broken)]))


def test_a_domain_listed_twice_is_refused(make_run: MakeRun) -> None:
    run = make_run("ours", [1])
    told = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**told, "domains": 2 * told["domains"]}))
    with pytest.raises(DataError, match="one is listed twice"):
        read_systems([str(run)])
