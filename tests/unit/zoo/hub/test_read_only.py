"""A complete cached copy can be read from a read-only disk, without a network, by each of its names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from hub_server import HubServer, Repository
from huggingface_hub import constants
from read_only import read_only

from pmmrec.errors import MachineError
from pmmrec.zoo.checkpoint import open_checkpoint
from pmmrec.zoo.hub import (
    PushOptions,
    find_checkpoint,
    find_weights,
    publish,
    pull_checkpoint,
    push_checkpoint,
    weights_origin,
)
from pmmrec.zoo.origin import Origin

HUB = Path("hub")


def quiet(_: str) -> None:
    """Ignores warnings."""


@pytest.fixture
def remote(saved: Path, tmp_path: Path) -> Origin:
    """A checkpoint at a URL."""
    return push_checkpoint(saved, f"file://{tmp_path}/remote/tiny", HUB, PushOptions())


def test_a_whole_copy_is_read_by_each_of_its_names(remote: Origin, fresh_home: Path, tmp_path: Path) -> None:
    folder = pull_checkpoint(remote.place, HUB, warn=quiet).folder
    with read_only(fresh_home):
        for name in (remote.place, f"{remote.place}/", remote.pinned, f"{remote.place}/@{remote.commit}"):
            assert find_checkpoint(name, HUB, warn=quiet) == folder
            assert pull_checkpoint(name, HUB, warn=quiet).num_files == 0
        assert open_checkpoint(remote.pinned, HUB).origin == remote
        copied = pull_checkpoint(remote.pinned, HUB, out=tmp_path / "copy").folder
    assert (copied / "model_index.json").is_file()


def test_a_missing_part_in_a_read_only_cache_is_an_error(remote: Origin, fresh_home: Path) -> None:
    checkpoint = open_checkpoint(remote.pinned, HUB, parts=["fusion"])
    with read_only(fresh_home):
        assert find_checkpoint(remote.pinned, HUB, parts=["fusion"]) == checkpoint.folder
        with pytest.raises(MachineError, match=r"cannot be: Permission denied; set XDG_CACHE_HOME to a folder"):
            find_checkpoint(remote.pinned, HUB, parts=["user_encoder"])
        with pytest.raises(MachineError, match="set XDG_CACHE_HOME"):
            checkpoint.sound_folder(checkpoint.parts["user_encoder"])


def test_an_empty_read_only_cache_is_an_error(remote: Origin, fresh_home: Path) -> None:
    with read_only(fresh_home), pytest.raises(MachineError, match=r"\.cache/.*: Permission denied; set XDG_CACHE_HOME"):
        find_checkpoint(remote.place, HUB, warn=quiet)


def test_a_damaged_copy_on_a_read_only_disk_is_an_error_of_the_machine(remote: Origin, fresh_home: Path) -> None:
    folder = pull_checkpoint(remote.pinned, HUB).folder
    (folder / "fusion" / "part.safetensors").write_bytes(b"x")
    with read_only(fresh_home), pytest.raises(MachineError, match=r"part\.safetensors: cannot be written"):
        pull_checkpoint(remote.pinned, HUB)


def test_a_cache_elsewhere_is_named_by_the_environment(
    remote: Origin, fresh_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    with read_only(fresh_home):
        folder = find_checkpoint(remote.pinned, HUB)
    assert folder.is_relative_to(tmp_path / "caches" / "pmmrec" / "checkpoints")
    assert open_checkpoint(remote.pinned, HUB).origin == remote


def test_a_read_only_folder_hub_can_be_read(saved: Path, tmp_path: Path) -> None:
    publish(saved, tmp_path / "hub", "first")
    with read_only(tmp_path / "hub"):
        assert open_checkpoint("first", tmp_path / "hub").verify() == []
        with pytest.raises(MachineError, match="second: cannot be written: Permission denied"):
            publish(saved, tmp_path / "hub", "second")
    assert [path.name for path in (tmp_path / "hub").iterdir()] == ["first"]


def test_weights_at_a_url_are_read_from_a_read_only_cache(fresh_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "memory://read-only-weights"
    fs, root = fsspec.core.url_to_fs(url)
    for name in ("config.json", "model.safetensors"):
        fs.pipe_file(f"{root}/{name}", b"{}")
    folder = find_weights(url, {}, warn=quiet)
    origin = weights_origin(folder)
    assert origin is not None
    with read_only(fresh_home):
        for name in (url, f"{url}/", origin.pinned):
            assert find_weights(name, {}, warn=quiet) == folder
        fs.pipe_file(f"{root}/config.json", b"{ }")
        with pytest.raises(MachineError, match=f"weights '{url}': .*set XDG_CACHE_HOME.*--weights {url}=FOLDER"):
            find_weights(url, {}, warn=quiet)


@pytest.fixture
def asked_by(published: Origin, monkeypatch: pytest.MonkeyPatch, fresh_home: Path) -> Callable[..., Path]:
    """Pulls by one name, then finds the copy by other names without a network on a read-only disk."""

    def ask(pulled: str, *others: str) -> Path:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        folder = pull_checkpoint(pulled, HUB, warn=quiet).folder
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with read_only(fresh_home):
            assert {find_checkpoint(name, HUB, warn=quiet) for name in (pulled, *others)} == {folder}
        return folder

    return ask


def test_a_copy_from_the_hub_is_found_without_a_network_by_each_of_its_names(
    published: Origin, server: HubServer, asked_by: Callable[..., Path], fresh_home: Path
) -> None:
    name, commit = published.place, published.commit
    server.repositories["alice/tiny"].branches["v1"] = commit
    asked_by(f"{name}@{commit[:9]}", f"{name}@{commit}", f"{name}@{commit[:7]}")
    asked_by(f"{name}@v1", f"{name}@{commit}")
    asked_by(name, f"{name}/", f"{name}@main", f"{name}@{commit}", f"{name}@{commit[:12]}", f"{name}@v1")


def test_weights_from_the_hub_are_read_from_a_read_only_cache(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    repository = server.repositories["org/model"] = Repository(private=False)
    commit = repository.add("main", {"config.json": b"{}", "model.safetensors": b"{}"})
    folder = find_weights("org/model", {}, warn=quiet)
    names = ("org/model", "hf://org/model", "org/model@main", f"org/model@{commit}", f"hf://org/model@{commit}")
    with read_only(tmp_path / "hf-cache"):
        for is_offline in (False, True):
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_offline)
            assert {find_weights(name, {}, warn=quiet) for name in names} == {folder}


def test_a_local_checkpoint_needs_no_home_folder(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "expanduser", _nobody)
    checkpoint = open_checkpoint(str(saved), HUB)
    assert checkpoint.verify() == []
    assert checkpoint.origin.place == str(saved)


def _nobody(path: Path) -> Path:
    if path.parts[:1] == ("~",):
        raise RuntimeError("Could not determine home directory.")
    return path
