from pathlib import Path

import pyarrow as pa
import pytest

from pmmrec.data.write import MAX_BATCH_BYTES, ArrowFiles, new_folder
from pmmrec.errors import MachineError, RecipeError

SCHEMA = pa.schema([("blob", pa.large_binary())])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "out") as (folder, was_stale):
        (folder / "file").write_text("content")
        assert not (tmp_path / "deep" / "out").exists()
    assert not was_stale
    assert (tmp_path / "deep" / "out" / "file").read_text() == "content"
    assert names(tmp_path / "deep") == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_stays_behind_when_writing_fails(tmp_path: Path, error: type[BaseException]) -> None:
    def fail_half_way() -> None:
        with new_folder(tmp_path / "out") as (folder, _):
            (folder / "file").write_text("half")
            raise error

    with pytest.raises(error):
        fail_half_way()
    assert names(tmp_path) == []


def test_what_exists_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (
        pytest.raises(RecipeError, match="exists already; choose another --out or remove it"),
        new_folder(tmp_path / "out"),
    ):
        pass


def test_the_remains_of_a_killed_import_are_removed_and_said(tmp_path: Path) -> None:
    (tmp_path / "out.incomplete" / "work").mkdir(parents=True)
    (tmp_path / "out.incomplete" / "old").write_text("half")
    with new_folder(tmp_path / "out") as (folder, was_stale):
        assert names(folder) == []
    assert was_stale


def test_two_imports_never_fill_one_folder(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as (folder, _):
        (folder / "first").write_text("growing")
        with pytest.raises(RecipeError, match="being written by another process"), new_folder(tmp_path / "out"):
            pass
    assert names(tmp_path / "out") == ["first"]


def test_a_full_disk_is_a_fault_of_the_machine(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="the disk is full"), new_folder(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == []


def test_batches_grow_to_the_limit_and_no_further(tmp_path: Path) -> None:
    megabyte = pa.record_batch([[b"x" * 1_000_000]], schema=SCHEMA)
    with ArrowFiles(tmp_path / "file.arrow", SCHEMA) as file:
        for _ in range(70):
            file.write(megabyte)
        file.write(pa.record_batch([[b"y" * 40_000_000] * 2], schema=SCHEMA))
    with pa.memory_map(str(tmp_path / "file.arrow")) as source:
        reader = pa.ipc.open_file(source)
        sizes = [reader.get_batch(place).nbytes for place in range(reader.num_record_batches)]
        assert reader.read_all().num_rows == 72
    assert max(sizes) <= MAX_BATCH_BYTES
    assert len(sizes) == 3


def test_the_name_of_a_half_written_folder_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "shop.incomplete"
    with pytest.raises(RecipeError, match=r"ends in \.incomplete is that of a half-written folder"), new_folder(out):
        pytest.fail("filled")
    assert not out.exists()
