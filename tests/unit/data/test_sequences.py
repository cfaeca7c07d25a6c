"""Sequences are read one user at a time or in order, from one file or several."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pmmrec.data import sequences, write
from pmmrec.data.info import Filters, ImportSummary
from pmmrec.data.splits.leave_one_out import leave_one_out
from pmmrec.data.write import DomainFolder
from pmmrec.errors import DataError

HISTORIES = [[0, 1, 2], [3], [2, 3, 1, 0], [1, 1], [3, 2, 1, 0, 3]]
GROWTH = """
import sys
from pathlib import Path
import numpy as np
from pmmrec.data.domain import Domain

def held():
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024

domain = Domain.open(Path(sys.argv[1]))
domain.sequence(0), domain.sequences.user_id(0), domain.texts(np.array([0]))
before = held()
for user in range(0, domain.num_users, 50):
    domain.sequence(user)
    domain.sequences.user_id(user)
print(held() - before)
"""


@pytest.fixture(params=[64_000_000, 40], ids=["one batch", "many batches"])
def domain(request: pytest.FixtureRequest, make_domain: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(write, "MAX_BATCH_BYTES", request.param)
    monkeypatch.setattr(write, "MAX_FILE_BYTES", 2 * request.param)
    return make_domain(HISTORIES)


def test_one_user_is_read_alone(domain: Any) -> None:
    assert [domain.sequences.items(user).tolist() for user in (4, 0, 3)] == [HISTORIES[user] for user in (4, 0, 3)]
    assert [domain.sequences.user_id(user) for user in range(5)] == domain.user_ids.to_pylist()


@pytest.mark.parametrize(("first", "end"), [(0, 5), (1, 3), (2, 2), (4, 5)])
def test_lengths_of_any_run_of_users_are_known(domain: Any, first: int, end: int) -> None:
    assert domain.sequences.lengths(first, end).tolist() == [len(items) for items in HISTORIES[first:end]]


def test_lengths_of_all_come_some_at_a_time(domain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences, "USERS_AT_ONCE", 2)
    found = list(domain.sequences.all_lengths())
    assert [first for first, _ in found] == [0, 2, 4]
    assert np.concatenate([lengths for _, lengths in found]).tolist() == [3, 1, 4, 2, 5]


def test_all_users_come_in_order(domain: Any) -> None:
    found: dict[int, list[int]] = {}
    for first, offset_B, item_H, _ in domain.sequences.stretches():
        for place in range(len(offset_B) - 1):
            found[first + place] = item_H[offset_B[place] : offset_B[place + 1]].tolist()
    assert found == dict(enumerate(HISTORIES))


def test_what_is_trained_on_is_the_same_in_order_and_alone(domain: Any) -> None:
    split = leave_one_out(domain)
    found = [
        item_H[offset_B[place] : offset_B[place + 1]].tolist()
        for _, offset_B, item_H, _ in split.train_stretches()
        for place in range(len(offset_B) - 1)
    ]
    assert found == [split.train(user).tolist() for user in range(5)] == [[0], [3], [2, 3], [1, 1], [3, 2, 1]]
    assert [split.train_length(user) for user in range(5)] == [1, 1, 2, 2, 3]


def test_a_file_that_is_cut_short_while_it_is_read_is_named(domain: Any) -> None:
    files = sorted(domain.folder.glob("sequences*.arrow"))
    for path in files:
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"sequences[-0-9]*\.arrow: was cut short while it was read"):
        domain.sequence(0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what a process holds")
def test_what_was_read_is_not_held(tmp_path: Path) -> None:
    num_users, length = 100_000, 100
    folder = DomainFolder(tmp_path)
    folder.write_items([pa.record_batch({"item_id": list("abcd"), "text": list("ABCD")})], [])
    items = np.random.default_rng(0).integers(0, 4, num_users * length).astype(np.int32)
    lists = pa.LargeListArray.from_arrays(pa.array(np.arange(num_users + 1) * length), pa.array(items))
    ids = pa.array(np.arange(num_users)).cast(pa.large_string())
    folder.write_sequences([pa.record_batch({"user_id": ids, "items": lists})], has_times=False)
    summary = ImportSummary(num_items_read=4, num_interactions_read=0, kept={}, rejected={}, num_pictures_ignored=0)
    folder.seal("large", filters=Filters(), image_side=None, time_unit=None, sources={}, summary=summary)
    num_bytes = sum(path.stat().st_size for path in tmp_path.glob("sequences*"))
    grown = subprocess.run([sys.executable, "-c", GROWTH, tmp_path], check=True, capture_output=True, text=True)
    assert num_bytes > 40_000_000
    assert int(grown.stdout) < 4_000_000  # a map of the file would have grown by all of it
