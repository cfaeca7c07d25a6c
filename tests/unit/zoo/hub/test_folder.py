"""Checkpoints in a folder hub are found by name and published completely or not at all."""

from pathlib import Path

import pytest

from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.zoo import files
from pmmrec.zoo.checkpoint import Checkpoint
from pmmrec.zoo.hub import PushOptions, find_checkpoint, list_checkpoints, location_of, publish, push_checkpoint
from pmmrec.zoo.origin import Origin


def test_a_published_checkpoint_is_found_by_its_name(saved: Path, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    assert list_checkpoints(hub) == []
    assert publish(saved, hub, "demo-1") == hub / "demo-1"
    assert list_checkpoints(hub) == ["demo-1"]
    assert find_checkpoint("demo-1", hub) == hub / "demo-1"
    assert find_checkpoint(str(saved), hub) == saved
    assert Checkpoint.open(hub / "demo-1").verify() == []


def test_a_checkpoint_is_pushed_to_a_name_or_to_a_folder(saved: Path, tmp_path: Path) -> None:
    hub, commit = tmp_path / "hub", files.sha256_of(saved / files.INDEX_NAME)
    for place, folder in (("demo", hub / "demo"), (str(tmp_path / "other" / "demo"), tmp_path / "other" / "demo")):
        assert push_checkpoint(saved, place, hub, PushOptions()) == Origin(place, commit)
        assert Checkpoint.open(folder).verify() == []
        assert Checkpoint.open(folder).origin == Origin(str(folder), commit)
        with pytest.raises(RecipeError, match="exists already"):
            push_checkpoint(saved, place, hub, PushOptions())


def test_a_folder_is_a_checkpoint_location(saved: Path, tmp_path: Path) -> None:
    place = location_of(str(saved), tmp_path)
    place.fetch(place.commit(), "metrics.json", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == (saved / "metrics.json").read_bytes()
    with pytest.raises(CheckpointError, match="holds no nothing"):
        place.fetch(place.commit(), "nothing", tmp_path / "copy")
    with pytest.raises(CheckpointError, match="is no longer commit 0000"):
        place.fetch("0000", "metrics.json", tmp_path / "copy")


def test_a_part_that_a_folder_lacks_is_named(saved: Path, tmp_path: Path) -> None:
    assert find_checkpoint(str(saved), tmp_path, parts=["fusion"]) == saved
    with pytest.raises(RecipeError, match="holds no part 'fussion'; did you mean 'fusion'"):
        find_checkpoint(str(saved), tmp_path, parts=["fussion"])


def test_an_origin_record_outside_the_cache_is_ignored(saved_copy: Path) -> None:
    record = saved_copy.with_name(saved_copy.name + ".origin.json")
    record.write_text('{"place": "hf://mallory/tiny", "commit": "0"}')
    assert Checkpoint.open(saved_copy).origin.place == str(saved_copy)


def test_publishing_refuses_a_name_that_is_taken(saved: Path, tmp_path: Path) -> None:
    publish(saved, tmp_path, "demo")
    with pytest.raises(RecipeError, match="demo: exists already; choose another name"):
        publish(saved, tmp_path, "demo")
    publish(saved, tmp_path, "demo", replace=True)
    assert list_checkpoints(tmp_path) == ["demo"]


@pytest.mark.parametrize("name", ["../demo", "a/b", "", ".hidden", "a b", "demo.incomplete", "demo.previous"])
def test_publishing_refuses_invalid_names(saved: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="a name in a hub may contain"):
        publish(saved, tmp_path, name)


def test_a_hub_that_is_a_file_is_refused(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "hub").touch()
    with pytest.raises(RecipeError, match="hub: is not a folder, so it cannot be a hub"):
        publish(saved, tmp_path / "hub", "tiny")


def test_a_home_folder_of_an_unknown_user_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nobody's home folder"):
        find_checkpoint("~nobody-of-this-name/tiny", tmp_path)


def test_publishing_copies_only_listed_files(saved_copy: Path, tmp_path: Path) -> None:
    (saved_copy / "notes.txt").write_text("private")
    publish(saved_copy, tmp_path / "hub", "demo")
    assert not (tmp_path / "hub" / "demo" / "notes.txt").exists()


def test_a_changed_checkpoint_is_not_published(saved_copy: Path, tmp_path: Path) -> None:
    (saved_copy / "README.md").write_text("another")
    with pytest.raises(CheckpointError, match=r"cannot be published: README\.md was changed"):
        publish(saved_copy, tmp_path / "hub", "demo")
    assert list((tmp_path / "hub").iterdir()) == []


def test_a_link_out_of_a_checkpoint_is_not_followed(saved_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (saved_copy / "README.md").unlink()
    (saved_copy / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=r"README\.md is a link out of the folder"):
        publish(saved_copy, tmp_path / "hub", "demo")


def test_a_wrong_name_suggests_similar_names(saved: Path, tmp_path: Path) -> None:
    publish(saved, tmp_path, "pmmrec-fashion")
    with pytest.raises(RecipeError, match=r"no checkpoint 'pmmrec-fashon'.*did you mean pmmrec-fashion\?"):
        find_checkpoint("pmmrec-fashon", tmp_path)
    with pytest.raises(RecipeError, match="holds: pmmrec-fashion"):
        find_checkpoint("zzz", tmp_path)


def test_a_folder_without_an_index_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no model_index\.json"):
        find_checkpoint(str(tmp_path), tmp_path / "hub")


def test_a_publication_killed_between_its_renames_is_still_found(saved: Path, tmp_path: Path) -> None:
    publish(saved, tmp_path, "demo")
    (tmp_path / "demo").rename(tmp_path / "demo.previous")
    (tmp_path / "demo.incomplete").mkdir()
    assert list_checkpoints(tmp_path) == ["demo"]
    assert Checkpoint.open(find_checkpoint("demo", tmp_path)).verify() == []


@pytest.mark.parametrize(("folder", "name"), [("hub/small", "small"), ("runs/full/checkpoint", "full")])
def test_the_published_origin_of_a_folder_hides_its_path(folder: str, name: str) -> None:
    assert Origin(f"/home/somebody/{folder}", "0" * 64).public_name == f"{name}@{'0' * 64}"
    assert Origin("hf://alice/tiny", "1" * 40).public_name == f"hf://alice/tiny@{'1' * 40}"


@pytest.mark.parametrize("nothing", ["", " "])
def test_an_empty_name_is_refused(tmp_path: Path, nothing: str) -> None:
    with pytest.raises(RecipeError, match="is empty"):
        location_of(nothing, tmp_path)
