"""Histories are read in order, a few users at a time, and checked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pmmrec.data import write
from pmmrec.data.domain import Domain
from pmmrec.data.histories import Histories
from pmmrec.data.info import Filters, ImportSummary
from pmmrec.data.write import DomainFolder
from pmmrec.errors import DataError

SEQUENCES = [[0, 1, 0], [3], [2, 3, 1], [1, 1], [3, 2, 1, 0], [2], [0, 0, 0]]


def written(folder: Path, sequences: list[list[int]] = SEQUENCES, *, has_times: bool = False) -> Path:
    folder.mkdir()
    domain = DomainFolder(folder)
    domain.write_items(iter([pa.record_batch({"item_id": list("abcd"), "text": list("ABCD")})]), [])
    columns = {
        "user_id": pa.array([f"u{user}" for user in range(len(sequences))], pa.large_string()),
        "items": pa.array(sequences, pa.large_list(pa.int32())),
    }
    if has_times:
        columns["times"] = pa.array([list(range(len(one))) for one in sequences], pa.large_list(pa.int64()))
    domain.write_sequences(iter([pa.record_batch(columns)]), has_times=has_times)
    unit = "as given" if has_times else None
    summary = ImportSummary(num_items_read=4, num_interactions_read=0, kept={}, rejected={}, num_pictures_ignored=0)
    domain.seal("shop", filters=Filters(), image_side=None, time_unit=unit, sources={}, summary=summary)
    return folder


def streamed(folder: Path) -> Histories:
    return Histories(Domain.open(folder, streamed=True))


def read(histories: Histories, size: int, users: slice | np.ndarray) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for chunk in histories.chunks(size, users):
        assert len(chunk.user_ids) <= size
        for user_id, start, end in zip(
            chunk.user_ids.to_pylist(), chunk.offset_B[:-1], chunk.offset_B[1:], strict=True
        ):
            found[user_id] = chunk.item_H[start:end].tolist()
    return found


@pytest.fixture(params=[64_000_000, 60], ids=["one batch", "many batches"])
def histories(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Histories:
    monkeypatch.setattr(write, "MAX_BATCH_BYTES", request.param)
    return streamed(written(tmp_path / "shop", has_times=True))


@pytest.mark.parametrize("size", [1, 3, 100])
def test_all_histories_come_in_order(histories: Histories, size: int) -> None:
    found = read(histories, size, slice(0, 7))
    assert list(found.items()) == [(f"u{user}", items) for user, items in enumerate(SEQUENCES)]


@pytest.mark.parametrize("users", [slice(2, 5), slice(0, 0), np.array([0, 2, 3, 6]), np.array([5])])
def test_some_histories_come_alone(histories: Histories, users: slice | np.ndarray) -> None:
    wanted = range(7)[users] if isinstance(users, slice) else users.tolist()
    assert read(histories, 2, users) == {f"u{user}": SEQUENCES[user] for user in wanted}


def test_rows_are_found_by_id_and_the_unknown_named(histories: Histories) -> None:
    rows, unknown = histories.rows_of(pa.array(["u5", "nobody", "u1", "U1"], pa.large_string()))
    assert rows.tolist() == [1, 5]
    assert unknown.to_pylist() == ["nobody", "U1"]


def test_items_are_counted_batch_by_batch(histories: Histories, tmp_path: Path) -> None:
    assert histories.num_users == len(SEQUENCES)
    assert Domain.open(tmp_path / "shop").item_counts.tolist() == [6, 5, 3, 3]


def test_a_streamed_domain_checks_its_sequences_when_they_are_asked_for(tmp_path: Path) -> None:
    folder = written(tmp_path / "shop", [[0], [4]])
    with pytest.raises(DataError, match=r"item rows outside 0\.\.3"):
        Domain.open(folder)
    domain = Domain.open(folder, streamed=True)
    assert domain.texts(np.array([1])) == ["B"]
    with pytest.raises(DataError, match=r"item rows outside 0\.\.3"):
        _ = domain.sequence_items
    with pytest.raises(DataError, match=r"item rows outside 0\.\.3, such as \[4\]"):
        read(Histories(domain), 5, slice(0, 2))


def test_a_user_without_history_is_named(tmp_path: Path) -> None:
    histories = streamed(written(tmp_path / "shop", [[0], [], [1]]))
    with pytest.raises(DataError, match="user 'u1' has no history"):
        read(histories, 5, slice(0, 3))


def test_another_number_of_users_is_said(tmp_path: Path) -> None:
    folder = written(tmp_path / "shop")
    tree = json.loads((folder / "domain.json").read_text())
    (folder / "domain.json").write_text(json.dumps({**tree, "num_users": 8}))
    with pytest.raises(DataError, match=r"7 rows where domain\.json says 8"):
        streamed(folder)


def test_a_broken_batch_is_an_error_and_not_the_end_of_the_process(tmp_path: Path) -> None:
    path = written(tmp_path / "shop") / "sequences.arrow"
    with pa.memory_map(str(path)) as source:
        offsets = pa.ipc.open_file(source).read_all().columns[1].chunks[0].buffers()[1].to_pybytes()
    path.write_bytes(path.read_bytes().replace(offsets, (2**60).to_bytes(8, "little") * (len(offsets) // 8)))
    with pytest.raises(DataError, match=r"sequences\.arrow: cannot be read as an Arrow file"):
        read(streamed(tmp_path / "shop"), 5, slice(0, 7))
