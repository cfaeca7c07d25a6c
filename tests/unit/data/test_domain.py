import copy
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pmmrec.contracts import Modality
from pmmrec.data import write
from pmmrec.data.domain import Domain
from pmmrec.data.info import IMAGES_SCHEMA, Filters, ImportSummary
from pmmrec.data.verify import verify_domain
from pmmrec.data.write import DomainFolder, new_folder
from pmmrec.errors import DataError

TEXTS = ["red shirt", None, "blue shirt", "hat"]
JPEGS = [b"zero", b"one", None, b"three"]
SEQUENCES = [[0, 1, 0], [3], [2, 3, 1]]
TIMES = [[5, 6, 6], [1], [-2, 0, 9]]
SUMMARY = ImportSummary(num_items_read=4, num_interactions_read=7, kept={}, rejected={}, num_pictures_ignored=0)


def written(
    out: Path, name: str = "shop", sequences: list[list[int]] = SEQUENCES, times: list | None = TIMES
) -> Domain:
    with new_folder(out) as (folder, _):
        domain = DomainFolder(folder)
        ids = [f"i{row}" for row in range(len(TEXTS))]
        domain.write_items([pa.record_batch([ids, TEXTS, ["S", "M", "L", None]], names=["a", "b", "c"])], ["size"])
        domain.write_images([pa.record_batch([JPEGS, [None] * 4], schema=IMAGES_SCHEMA)])
        rows = {
            "user_id": pa.array([f"u{user}" for user in range(len(sequences))], pa.large_string()),
            "items": pa.array(sequences, pa.large_list(pa.int32())),
        }
        if times is not None:
            rows["times"] = pa.array(times, pa.large_list(pa.int64()))
        domain.write_sequences([pa.record_batch(rows)], has_times=times is not None)
        unit = "as given" if times is not None else None
        domain.seal(name, filters=Filters(), image_side=256, time_unit=unit, sources={}, summary=SUMMARY)
    return Domain.open(out)


@pytest.fixture
def domain(tmp_path: Path) -> Domain:
    return written(tmp_path / "shop")


def test_a_domain_reads_back_what_was_written(domain: Domain) -> None:
    assert (domain.name, domain.num_items, domain.num_users, domain.num_interactions) == ("shop", 4, 3, 7)
    assert domain.texts(np.array([3, 1, 0, 3])) == ["hat", None, "red shirt", "hat"]
    assert domain.jpegs(np.array([2, 3])) == [None, b"three"]
    assert [domain.sequence(user).tolist() for user in range(3)] == SEQUENCES
    assert [domain.times(user).tolist() for user in range(3)] == TIMES
    assert domain.sequence_offsets.tolist() == [0, 3, 4, 7]
    assert domain.user_ids.to_pylist() == ["u0", "u1", "u2"]
    assert domain.has[Modality.TEXT].tolist() == [True, False, True, True]
    assert domain.has[Modality.IMAGE].tolist() == [True, True, False, True]


def test_rows_of_ids_are_minus_one_where_unknown(domain: Domain) -> None:
    rows = domain.rows_of(["i3", "nobody", "i0", "I0"])
    assert rows.tolist() == [3, -1, 0, -1]
    assert rows.dtype == np.int64
    assert domain.rows_of([]).tolist() == []


def test_types_are_those_that_other_rooms_count_on(domain: Domain) -> None:
    assert (domain.sequence_offsets.dtype, domain.sequence_items.dtype) == (np.int64, np.int32)
    assert (domain.item_ids.type, domain.user_ids.type) == (pa.large_string(), pa.large_string())


def test_sequences_are_read_only(domain: Domain) -> None:
    assert not domain.sequence(0).flags.writeable


def test_many_small_batches_read_like_one(tmp_path: Path, domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "MAX_BATCH_BYTES", 40)
    pieces = written(tmp_path / "pieces")
    assert pieces.item_ids.num_chunks > 1
    assert pieces.user_ids.num_chunks > 1
    rows = np.array([2, 0, 3, 1, 1])
    assert pieces.texts(rows) == domain.texts(rows)
    assert pieces.jpegs(rows) == domain.jpegs(rows)
    assert [pieces.sequence(user).tolist() for user in range(3)] == SEQUENCES
    assert [pieces.times(user).tolist() for user in range(3)] == TIMES


def test_several_files_read_like_one(tmp_path: Path, domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "MAX_BATCH_BYTES", 40)
    monkeypatch.setattr(write, "MAX_FILE_BYTES", 50)
    parts = written(tmp_path / "parts")
    assert {"items.arrow", "items-2.arrow", "images-2.arrow", "sequences-2.arrow"} <= set(parts.info.files)
    assert parts.item_ids.to_pylist() == domain.item_ids.to_pylist()
    rows = np.array([2, 0, 3, 1, 1])
    assert (parts.texts(rows), parts.jpegs(rows)) == (domain.texts(rows), domain.jpegs(rows))
    assert [parts.sequence(user).tolist() for user in range(3)] == SEQUENCES
    assert [parts.times(user).tolist() for user in range(3)] == TIMES
    assert parts.sequence_items.tolist() == domain.sequence_items.tolist()
    assert parts.item_ids_fingerprint == domain.item_ids_fingerprint
    assert all("image of item row" in problem for problem in verify_domain(parts.folder))  # bytes that are none


def test_a_part_that_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "MAX_BATCH_BYTES", 40)
    monkeypatch.setattr(write, "MAX_FILE_BYTES", 50)
    parts = written(tmp_path / "parts")
    (parts.folder / "sequences-2.arrow").unlink()
    with pytest.raises(DataError, match=r"sequences-2\.arrow: missing, though domain\.json names it"):
        Domain.open(parts.folder)


def test_a_description_that_leaves_a_part_out_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "MAX_BATCH_BYTES", 40)
    monkeypatch.setattr(write, "MAX_FILE_BYTES", 50)
    parts = written(tmp_path / "parts")
    files = {name: record.model_dump() for name, record in parts.info.files.items() if name != "sequences-2.arrow"}
    _edit(parts, files=files)
    with pytest.raises(DataError, match=r"rows where domain\.json says 3"):
        Domain.open(parts.folder)


def test_a_compressed_file_is_refused(tmp_path: Path) -> None:
    domain = written(tmp_path / "shop", sequences=[[0] * 900, [1], [2]], times=[[0] * 900, [1], [2]])
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    _rewrite(domain.folder / "sequences.arrow", "user_id", ["u0", "u1", "u2"], options)
    with pytest.raises(DataError, match=r"sequences\.arrow: is compressed"):
        Domain.open(domain.folder)


def test_attributes_are_kept_beside_the_text(domain: Domain) -> None:
    with pa.memory_map(str(domain.folder / "items.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
        assert table.column_names == ["item_id", "text", "size"]
        assert table["size"].to_pylist() == ["S", "M", "L", None]


def test_a_domain_without_times_has_none(tmp_path: Path) -> None:
    assert written(tmp_path / "untimed", times=None).times(0) is None


@pytest.mark.parametrize("row", [-1, 4])
def test_rows_that_do_not_exist_are_an_error(domain: Domain, row: int) -> None:
    with pytest.raises(IndexError, match=r"0\.\.3"):
        domain.texts(np.array([0, row]))


def test_users_that_do_not_exist_are_an_error(domain: Domain) -> None:
    with pytest.raises(IndexError, match="no row 3; there are 3"):
        domain.sequence(3)


def test_a_copy_sent_to_a_worker_maps_the_files_again(domain: Domain) -> None:
    twin = copy.deepcopy(domain)
    assert twin is not domain
    assert twin.sequence(2).tolist() == SEQUENCES[2]


def test_the_fingerprint_follows_the_content_not_the_name(tmp_path: Path, domain: Domain) -> None:
    assert written(tmp_path / "twin", name="twin").fingerprint == domain.fingerprint
    other = written(tmp_path / "other", sequences=[[0, 1, 0], [3], [2, 3, 0]])
    assert other.fingerprint != domain.fingerprint
    assert other.item_ids_fingerprint == domain.item_ids_fingerprint


def test_no_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        Domain.open(tmp_path / "nowhere")


def test_a_folder_that_is_not_a_domain_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a domain"):
        Domain.open(tmp_path)


@pytest.mark.parametrize("asked", ["shop", "shop.incomplete"])
def test_a_half_written_domain_is_said(tmp_path: Path, asked: str) -> None:
    (tmp_path / "shop.incomplete").mkdir()
    with pytest.raises(DataError, match="half-written"):
        Domain.open(tmp_path / asked)


def test_another_format_version_is_said(domain: Domain) -> None:
    _edit(domain, format_version=2)
    with pytest.raises(DataError, match="format version 2, this program reads 1"):
        Domain.open(domain.folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "zip"}', "[" * 100_000])
def test_a_broken_description_is_said(domain: Domain, text: str) -> None:
    (domain.folder / "domain.json").write_text(text)
    with pytest.raises(DataError, match=r"domain\.json"):
        Domain.open(domain.folder)


def test_a_wrong_field_of_the_description_is_named(domain: Domain) -> None:
    _edit(domain, num_items=-3)
    with pytest.raises(DataError, match="num_items"):
        Domain.open(domain.folder)


def test_file_names_that_lead_out_of_the_domain_are_refused(domain: Domain) -> None:
    _edit(domain, files={"../../etc/passwd": {"sha256": "0" * 64, "num_bytes": 1}})
    with pytest.raises(DataError, match="files"):
        Domain.open(domain.folder)


def test_a_missing_file_is_named(domain: Domain) -> None:
    (domain.folder / "sequences.arrow").unlink()
    with pytest.raises(DataError, match=r"sequences\.arrow: missing"):
        Domain.open(domain.folder)


def test_a_truncated_file_is_named(domain: Domain) -> None:
    path = domain.folder / "items.arrow"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"items\.arrow: [0-9,]+ bytes where"):
        Domain.open(domain.folder)


def test_a_file_of_another_kind_is_named(domain: Domain) -> None:
    path = domain.folder / "items.arrow"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(DataError, match="cannot be read as an Arrow file"):
        Domain.open(domain.folder)


@pytest.mark.parametrize("name", ["items.arrow", "sequences.arrow"])
def test_damage_that_would_end_the_process_later_is_found_at_once(domain: Domain, name: str) -> None:
    path = domain.folder / name
    with pa.memory_map(str(path)) as source:
        offsets = pa.ipc.open_file(source).read_all().columns[1].chunks[0].buffers()[1].to_pybytes()
    path.write_bytes(path.read_bytes().replace(offsets, (2**60).to_bytes(8, "little") * (len(offsets) // 8)))
    with pytest.raises(DataError, match=f"{name}: cannot be read as an Arrow file"):
        Domain.open(domain.folder)


@pytest.mark.parametrize("row", [4, -1])
def test_sequences_with_unknown_item_rows_are_refused(tmp_path: Path, row: int) -> None:
    with pytest.raises(DataError, match=rf"1 item rows outside 0\.\.3, such as \[{row}\]"):
        written(tmp_path / "shop", sequences=[[0, row]], times=[[1, 2]])


def test_a_user_without_an_id_is_refused(domain: Domain) -> None:
    _rewrite(domain.folder / "sequences.arrow", "user_id", ["u0", None, "u2"])
    with pytest.raises(DataError, match=r"sequences\.arrow: a user_id is missing"):
        Domain.open(domain.folder)


def test_a_file_that_lies_elsewhere_is_refused(domain: Domain) -> None:
    path = domain.folder / "items.arrow"
    path.rename(domain.folder.parent / "items.arrow")
    path.symlink_to(domain.folder.parent / "items.arrow")
    with pytest.raises(DataError, match="a link to a file outside the domain"):
        Domain.open(domain.folder)


def _rewrite(path: Path, name: str, values: list, options: pa.ipc.IpcWriteOptions | None = None) -> None:
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
        column = pa.array(values, table.schema.field(name).type)
        table = table.set_column(table.column_names.index(name), name, column)
        with pa.ipc.new_file(path.with_name("new"), table.schema, options=options) as writer:
            writer.write_table(table)
    path.with_name("new").replace(path)
    tree = json.loads((path.parent / "domain.json").read_text())
    tree["files"][path.name]["num_bytes"] = path.stat().st_size
    (path.parent / "domain.json").write_text(json.dumps(tree))


def _edit(domain: Domain, **changes: object) -> None:
    path = domain.folder / "domain.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what a process has read")
def test_opening_a_domain_reads_no_picture(tmp_path: Path) -> None:
    with new_folder(tmp_path / "shop") as (folder, _):
        domain = DomainFolder(folder)
        domain.write_items([pa.record_batch({"item_id": list("ab"), "text": list("AB")})], [])
        large = pa.array([b"x" * 10_000_000, None], pa.large_binary())
        domain.write_images([pa.record_batch([large, pa.nulls(2, pa.large_binary())], schema=IMAGES_SCHEMA)])
        lists = pa.array([[0, 1, 0]], pa.large_list(pa.int32()))
        users = pa.array(["u"], pa.large_string())
        domain.write_sequences([pa.record_batch({"user_id": users, "items": lists})], has_times=False)
        domain.seal("shop", filters=Filters(), image_side=256, time_unit=None, sources={}, summary=SUMMARY)
    before = _bytes_read()
    opened = Domain.open(tmp_path / "shop")
    assert _bytes_read() - before < 1_000_000
    assert opened.has[Modality.IMAGE].tolist() == [True, False]
    assert [jpeg and len(jpeg) for jpeg in opened.jpegs(np.array([0, 1]))] == [10_000_000, None]


def _bytes_read() -> int:
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["rchar"])


def test_facts_of_later_versions_in_the_summary_are_passed_over(domain: Domain) -> None:
    path = domain.folder / "domain.json"
    tree = json.loads(path.read_text())
    assert "filtered" not in tree["summary"]  # versions that refuse unknown keys can open it
    tree["summary"]["read_by"] = {"moon": 1}
    path.write_text(json.dumps(tree))
    assert Domain.open(domain.folder).info.summary == domain.info.summary
