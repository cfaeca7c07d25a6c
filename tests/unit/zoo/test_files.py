"""Folders are written completely or not at all, and untrusted files are read safely."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pmmrec.errors import CheckpointError, MachineError, RecipeError
from pmmrec.zoo import files


class Bomb:
    """Creates a file when unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.canary,)


def fill(folder: Path, text: str, *, replace: bool = False) -> None:
    with files.writing(folder, replace=replace) as place:
        (place / files.INDEX_NAME).write_text(text)


def content(folder: Path) -> str:
    return (files.current(folder) / files.INDEX_NAME).read_text()


def test_a_folder_appears_when_its_block_ends_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    fill(tmp_path / "deep" / "a", "new")
    assert content(tmp_path / "deep" / "a") == "new"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a"]


def test_a_folder_that_exists_is_refused_and_kept(tmp_path: Path) -> None:
    fill(tmp_path / "a", "old")
    with pytest.raises(RecipeError, match="exists already; choose another name"):
        fill(tmp_path / "a", "new")
    assert content(tmp_path / "a") == "old"


def test_a_folder_that_is_not_a_checkpoint_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(RecipeError, match="not a checkpoint and is not replaced"):
        fill(tmp_path / "home", "new", replace=True)
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


def test_a_replaced_folder_holds_only_the_new(tmp_path: Path) -> None:
    fill(tmp_path / "a", "old")
    (tmp_path / "a" / "stale.txt").write_text("old")
    fill(tmp_path / "a", "new", replace=True)
    assert files.files_below(tmp_path / "a") == [files.INDEX_NAME]
    assert content(tmp_path / "a") == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_error_keeps_the_old_folder_and_leaves_nothing_else(tmp_path: Path) -> None:
    fill(tmp_path / "a", "old")

    def interrupted() -> None:
        with files.writing(tmp_path / "a", replace=True) as place:
            (place / files.INDEX_NAME).write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert content(tmp_path / "a") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_of_two_writers_the_second_is_refused_and_the_first_completes(tmp_path: Path) -> None:
    for replace in (False, True):
        with files.writing(tmp_path / "a", replace=replace) as first:
            (first / files.INDEX_NAME).write_text("first")
            with pytest.raises(RecipeError, match="a: being written by another process"):
                fill(tmp_path / "a", "second", replace=replace)
            with pytest.raises(RecipeError, match="a: being written by another process"):
                fill(tmp_path / "a", "second", replace=True)
        assert content(tmp_path / "a") == "first"
        assert files.files_below(tmp_path) == [f"a/{files.INDEX_NAME}"]


def test_a_folder_that_appeared_before_the_lock_was_acquired_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder, is_late = files.make_folder, [True]

    def late(folder: Path) -> None:
        if is_late.pop() if is_late else False:
            fill(tmp_path / "a", "first")
        make_folder(folder)

    monkeypatch.setattr(files, "make_folder", late)
    with pytest.raises(RecipeError, match="exists already"):
        fill(tmp_path / "a", "second")
    assert content(tmp_path / "a") == "first"


def test_what_a_kill_left_half_written_is_ignored_and_cleaned_by_the_next_save(tmp_path: Path) -> None:
    fill(tmp_path / "a", "old")
    (tmp_path / "a.incomplete").mkdir()
    (tmp_path / "a.incomplete" / "junk").write_text("half")
    assert content(tmp_path / "a") == "old"
    fill(tmp_path / "a", "new", replace=True)
    assert files.files_below(tmp_path) == [f"a/{files.INDEX_NAME}"]


def test_a_kill_between_the_two_renames_leaves_the_old_to_be_read(tmp_path: Path) -> None:
    fill(tmp_path / "a", "old")
    fill(tmp_path / "a.incomplete", "new")
    (tmp_path / "a").rename(tmp_path / "a.previous")
    assert content(tmp_path / "a") == "old"
    with pytest.raises(RecipeError, match="exists already"):
        fill(tmp_path / "a", "newer")
    fill(tmp_path / "a", "newer", replace=True)
    assert files.files_below(tmp_path) == [f"a/{files.INDEX_NAME}"]
    assert content(tmp_path / "a") == "newer"


def test_a_kill_before_the_old_was_removed_leaves_the_new_to_be_read(tmp_path: Path) -> None:
    fill(tmp_path / "a", "new")
    fill(tmp_path / "a.previous", "old")
    assert content(tmp_path / "a") == "new"
    fill(tmp_path / "a", "newer", replace=True)
    assert files.files_below(tmp_path) == [f"a/{files.INDEX_NAME}"]


def test_a_disk_that_cannot_be_written_is_a_machine_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(MachineError, match="cannot be written: Not a directory"):
        fill(tmp_path / "file" / "a", "new")


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd", "", ".", "a//b", "./a", "C:\\a", "a\\b", "a\0b"])
def test_paths_that_leave_their_folder_are_detected(name: str) -> None:
    assert not files.is_inside(name)


@pytest.mark.parametrize("name", ["a", "a/b.json", "..a", "1_Pooling/config.json"])
def test_paths_inside_their_folder_are_accepted(name: str) -> None:
    assert files.is_inside(name)


def test_figures_that_are_not_finite_become_null(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"hr": float("nan"), "by_k": [1.0, float("inf")]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"hr": None, "by_k": [1.0, None]}


def test_deeply_nested_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 200_000)
    with pytest.raises(CheckpointError, match=r"a\.json: not valid JSON"):
        files.read_json(tmp_path / "a.json")


def test_only_the_elements_of_a_view_are_written(tmp_path: Path) -> None:
    whole = torch.arange(6.0).view(2, 3)
    tensors = {"first": files.standalone(whole[0]), "second": files.standalone(whole[1]), "turned": whole.T}
    tensors["turned"] = files.standalone(tensors["turned"])
    files.write_tensors(tmp_path / "a.safetensors", tensors)
    read = files.read_tensors(tmp_path / "a.safetensors")
    assert torch.equal(read["first"], whole[0])
    assert torch.equal(read["second"], whole[1])
    assert torch.equal(read["turned"], whole.T)


def test_a_file_without_tensors_can_be_written(tmp_path: Path) -> None:
    files.write_tensors(tmp_path / "a.safetensors", {})
    assert files.read_tensors(tmp_path / "a.safetensors") == {}


def test_a_pickle_named_safetensors_is_refused_and_not_executed(tmp_path: Path) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "canary"))
    (tmp_path / "a.safetensors").write_bytes(bomb)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        files.read_tensors(tmp_path / "a.safetensors")
    assert not (tmp_path / "canary").exists()
    pickle.loads(bomb)  # noqa: S301  the bomb is live, so the line above means something
    assert (tmp_path / "canary").exists()


def with_header(path: Path, header: dict[str, object], num_bytes: int) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(num_bytes))
    return path


def test_a_header_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes((99_000_000).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="its header does not fit 10 bytes"):
        files.shapes_in(tmp_path / "a.safetensors")


def test_a_header_of_more_than_100_mb_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes((files.MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
    with path.open("r+b") as file:
        file.truncate(files.MAX_HEADER_BYTES + 100)
    with pytest.raises(CheckpointError, match="its header does not fit"):
        files.shapes_in(path)


@pytest.mark.parametrize(
    ("entry", "num_bytes"),
    [
        ({"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 4]}, 4),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}, 4),
        ({"dtype": "F64", "shape": [1], "data_offsets": [0, 4]}, 4),
        ({"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}, 8),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, 4),
    ],
    ids=["huge shape", "negative shape", "another dtype", "hole", "cut short"],
)
def test_a_false_header_is_refused(tmp_path: Path, entry: dict[str, object], num_bytes: int) -> None:
    path = with_header(tmp_path / "a.safetensors", {"a": entry}, num_bytes)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        files.shapes_in(path)


@pytest.mark.parametrize(
    "config",
    [
        {"auto_map": {"AutoModel": "modeling.Evil"}},
        {"text_config": {"auto_map": {"AutoModel": "modeling.Evil"}}},
        {"attn_implementation": "stranger/kernel"},
        {"vision_config": {"_attn_implementation": {"": "stranger/kernel"}}},
    ],
)
def test_a_configuration_that_runs_code_is_refused(tmp_path: Path, config: dict[str, object]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json: '.*' runs code from elsewhere"):
        files.refuse_code(tmp_path, ["config.json"])


def test_an_ordinary_configuration_is_accepted(tmp_path: Path) -> None:
    config = {"model_type": "bert", "_attn_implementation": "sdpa", "architectures": ["BertModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    files.refuse_code(tmp_path, ["config.json"])
