"""Checkpoints are pushed to and pulled from the Hub through its client, with only the bytes that are needed."""

from __future__ import annotations

import errno
import shutil
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import STRANGER, TOKEN, HubServer, Repository
from huggingface_hub import constants

from pmmrec.errors import CheckpointError, MachineError, RecipeError
from pmmrec.models.recommender import Recommender
from pmmrec.zoo import files
from pmmrec.zoo.checkpoint import Checkpoint, load_recommender, open_checkpoint
from pmmrec.zoo.hub import OutOfReachError, PushOptions, find_checkpoint, list_places, pull_checkpoint, push_checkpoint
from pmmrec.zoo.origin import Origin
from pmmrec.zoo.results import restate

PLACE = "hf://alice/tiny"
PARTS = ("text_encoder", "vision_encoder", "fusion", "user_encoder")
HUB = Path("hub")


def told(call: Callable[[], object]) -> list[str]:
    """The warnings of a call."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in heard]


def test_a_push_is_one_commit_of_the_listed_files(saved_copy: Path, server: HubServer) -> None:
    (saved_copy / "notes.txt").write_text("private")
    origin = push_checkpoint(saved_copy, PLACE, HUB, PushOptions(message="The first"))
    assert origin == Origin(PLACE, server.repositories["alice/tiny"].branches["main"])
    assert len(server.repositories["alice/tiny"].trees) == 2  # the empty repository and the commit
    listed = {*Checkpoint.open(saved_copy).index.all_files, files.INDEX_NAME}
    assert set(server.files("alice/tiny")) == listed | {".gitattributes"}
    assert (
        server.files("alice/tiny")["fusion/part.safetensors"] == (saved_copy / "fusion/part.safetensors").read_bytes()
    )


def test_what_is_pulled_scores_as_what_was_pushed(
    saved: Path, published: Origin, score: Callable[[Recommender], object]
) -> None:
    pulled = open_checkpoint(published.pinned, HUB)
    assert pulled.verify() == []
    assert pulled.origin == published
    assert score(load_recommender(pulled)).equal(score(load_recommender(Checkpoint.open(saved))))  # type: ignore[attr-defined]


@pytest.mark.parametrize("part", PARTS)
def test_a_pull_of_one_part_transfers_no_byte_of_another(published: Origin, server: HubServer, part: str) -> None:
    folder = find_checkpoint(published.pinned, HUB, parts=[part])
    expected = sum(path.stat().st_size for path in (folder / part).rglob("*") if path.is_file())
    assert server.bytes_below(part) == expected > 0
    others = [other for other in (*PARTS, "objectives") if other != part]
    assert {other: server.bytes_below(other) for other in others} == dict.fromkeys(others, 0)
    assert not any((folder / other).exists() for other in others)


def test_a_part_that_is_asked_for_later_is_fetched_then(published: Origin, server: HubServer, run: object) -> None:
    checkpoint = open_checkpoint(published.pinned, HUB, parts=())
    assert set(files.files_below(checkpoint.folder)) == {files.INDEX_NAME, "README.md", "metrics.json", "recipe.yaml"}
    fusion = run.recommender.parts["fusion"]  # type: ignore[attr-defined]
    state = checkpoint.part_state("fusion", fusion)
    assert all(tensor.equal(fusion.state_dict()[name]) for name, tensor in state.items())
    assert server.bytes_below("text_encoder") == server.bytes_below("user_encoder") == 0


def test_sizes_of_parts_that_were_not_fetched_come_from_the_index(
    saved: Path, published: Origin, server: HubServer
) -> None:
    checkpoint, whole = open_checkpoint(published.pinned, HUB, parts=()), Checkpoint.open(saved)
    for name, entry in checkpoint.parts.items():
        assert checkpoint.sizes(entry) == whole.sizes(whole.parts[name])
    assert sum(server.bytes_below(part) for part in PARTS) == 0


def test_cached_parts_are_not_requested_again(published: Origin, server: HubServer) -> None:
    first = find_checkpoint(published.pinned, HUB)
    server.log.clear()
    assert find_checkpoint(published.pinned, HUB, parts=["fusion"]) == first
    assert server.log == []


def test_a_moving_revision_warns_and_resolves_to_its_commit(published: Origin) -> None:
    for place in (PLACE, f"{PLACE}@main"):
        (heard,) = told(partial(find_checkpoint, place, HUB, parts=()))
        assert f"write {published.pinned}" in heard
    assert told(lambda: find_checkpoint(published.pinned, HUB, parts=())) == []
    short = f"{PLACE}@{published.commit[:9]}"
    assert told(lambda: find_checkpoint(short, HUB, parts=())) == []


def test_a_commit_stays_what_it_was_when_the_branch_moves_on(
    published: Origin, other: object, tmp_path: Path, server: HubServer
) -> None:
    other.save(tmp_path / "other")  # type: ignore[attr-defined]
    newer = push_checkpoint(tmp_path / "other", PLACE, HUB, PushOptions(replace=True))
    assert newer.commit != published.commit
    old, new = (open_checkpoint(origin.pinned, HUB) for origin in (published, newer))
    assert old.verify() == new.verify() == []
    assert old.index != new.index


def test_a_push_deletes_files_of_the_old_checkpoint_and_keeps_others(
    published: Origin, text_only: object, tmp_path: Path, server: HubServer
) -> None:
    server.tamper("alice/tiny", "LICENSE", b"mine")
    text_only.save(tmp_path / "text")  # type: ignore[attr-defined]
    newer = push_checkpoint(tmp_path / "text", PLACE, HUB, PushOptions(replace=True))
    left = set(server.files("alice/tiny"))
    assert "LICENSE" in left
    assert not any(name.startswith(("vision_encoder/", "fusion/")) for name in left)
    assert open_checkpoint(newer.pinned, HUB).verify() == []


def test_an_existing_checkpoint_is_replaced_only_on_request(published: Origin, saved: Path) -> None:
    with pytest.raises(RecipeError, match=r"hf://alice/tiny: holds a checkpoint already; .* replace"):
        push_checkpoint(saved, PLACE, HUB, PushOptions())


def test_an_unknown_part_suggests_a_similar_one(published: Origin) -> None:
    with pytest.raises(RecipeError, match="holds no part 'text_encodr'; did you mean 'text_encoder'"):
        find_checkpoint(published.pinned, HUB, parts=["text_encodr"])


@pytest.mark.parametrize("place", ["hf://alice", "hf://alice/tiny/x", "hf://", "hf:///tiny", "hf://alice/tiny@"])
def test_an_invalid_repository_name_says_what_one_looks_like(place: str) -> None:
    with pytest.raises(RecipeError, match="must look like hf://user/name"):
        find_checkpoint(place, HUB)


def test_a_missing_revision_is_an_error(published: Origin) -> None:
    with pytest.raises(RecipeError, match="hf://alice/tiny@v9: the repository has no such branch"):
        find_checkpoint(f"{PLACE}@v9", HUB)


def test_a_private_repository_needs_its_token(saved: Path, server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = push_checkpoint(saved, PLACE, HUB, PushOptions(private=True))
    assert server.repositories["alice/tiny"].private
    for token in (None, STRANGER):
        monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
        with pytest.raises(RecipeError, match="or it is private and the token") as caught:
            find_checkpoint(PLACE, HUB)
        assert "hf auth login" in str(caught.value)
        assert "hf_stranger" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert find_checkpoint(origin.pinned, HUB, parts=()).name == origin.commit


def test_a_push_without_a_valid_token_says_what_to_do(
    saved: Path, published: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    with pytest.raises(RecipeError, match=r"may not be written.*hf auth login") as caught:
        push_checkpoint(saved, PLACE, HUB, PushOptions(replace=True))
    assert STRANGER not in str(caught.value)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(RecipeError, match="hf auth login"):
        push_checkpoint(saved, "hf://alice/new", HUB, PushOptions())


def test_private_is_refused_where_it_would_have_no_effect(published: Origin, saved: Path) -> None:
    with pytest.raises(RecipeError, match="--private: the repository exists and is public"):
        push_checkpoint(saved, PLACE, HUB, PushOptions(replace=True, private=True))


def test_a_commit_cannot_be_pushed_to(published: Origin, saved: Path) -> None:
    with pytest.raises(RecipeError, match="a commit cannot be pushed to"):
        push_checkpoint(saved, published.pinned, HUB, PushOptions(replace=True))


def test_a_branch_that_moved_during_a_push_is_not_overwritten(
    published: Origin, other: object, tmp_path: Path, server: HubServer
) -> None:
    other.save(tmp_path / "other")  # type: ignore[attr-defined]
    server.fail("/commit/main", times=1, status=412)
    with pytest.raises(MachineError, match="somebody else changed it meanwhile"):
        push_checkpoint(tmp_path / "other", PLACE, HUB, PushOptions(replace=True))
    assert server.repositories["alice/tiny"].branches["main"] == published.commit


def test_a_failed_upload_leaves_the_old_checkpoint(
    published: Origin, other: object, tmp_path: Path, server: HubServer
) -> None:
    other.save(tmp_path / "other")  # type: ignore[attr-defined]
    server.fail("/lfs/", times=1, status=400)
    with pytest.raises(MachineError):
        push_checkpoint(tmp_path / "other", PLACE, HUB, PushOptions(replace=True))
    assert server.repositories["alice/tiny"].branches["main"] == published.commit


@pytest.mark.parametrize("asked", ["/api/models/alice/tiny", "/resolve/.*user_encoder/part.safetensors"])
def test_a_busy_hub_is_retried_after_the_time_it_names(published: Origin, server: HubServer, asked: str) -> None:
    server.fail(asked, times=2, status=429, Retry_After="1")
    started_s = time.monotonic()
    found = find_checkpoint(PLACE, HUB, parts=["user_encoder"], warn=lambda _: None)
    assert time.monotonic() - started_s >= 1
    assert (found / "user_encoder" / "part.safetensors").is_file()
    assert len([entry for entry in server.log if entry.status == 429]) == 2


def test_several_processes_fetch_each_file_once(published: Origin, server: HubServer) -> None:
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: find_checkpoint(published.pinned, HUB), range(4)))
    assert len(folders) == 1
    got = [entry.path for entry in server.log if entry.method == "GET" and "/resolve/" in entry.path]
    assert len(got) == len(set(got)) == len(files.files_below(folders.pop()))


def test_the_next_pull_deletes_what_a_killed_pull_left(published: Origin) -> None:
    folder = find_checkpoint(published.pinned, HUB, parts=())
    leftover = folder.parent / "incomplete" / "0123"
    leftover.parent.mkdir()
    leftover.write_bytes(b"half")
    checkpoint = Checkpoint.open(find_checkpoint(published.pinned, HUB))
    assert not leftover.exists()
    assert checkpoint.verify() == []


def test_an_interrupted_download_resumes_within_the_file(
    published: Origin, server: HubServer, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)  # the client keeps whole chunks; its own are 10 MB
    size = (saved / "text_encoder" / "model.safetensors").stat().st_size
    server.cut("text_encoder/model.safetensors", times=2, after=1000)
    folder = find_checkpoint(published.pinned, HUB, parts=["text_encoder"])
    ranges = [entry.range for entry in server.log if entry.path.endswith("text_encoder/model.safetensors")]
    assert ranges[-2:] == ["bytes=1000-", "bytes=2000-"]
    assert server.bytes_below("text_encoder") == sum(
        path.stat().st_size for path in (folder / "text_encoder").rglob("*") if path.is_file()
    )
    assert (folder / "text_encoder" / "model.safetensors").stat().st_size == size


def test_a_full_disk_is_not_reported_as_an_unreachable_hub(published: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = find_checkpoint(published.pinned, HUB, parts=())
    monkeypatch.setattr(huggingface_hub.HfApi, "hf_hub_download", refuse)
    with pytest.raises(MachineError, match="cannot be written: the disk is full"):
        find_checkpoint(published.pinned, HUB)
    assert not (folder.parent / "incomplete").exists()


def test_a_stopped_pull_continues_with_the_missing_files(published: Origin, server: HubServer) -> None:
    server.fail("/resolve/.*user_encoder/part.json", times=1, status=403)
    with pytest.raises(RecipeError):
        find_checkpoint(published.pinned, HUB)
    fetched = {entry.path for entry in server.log if entry.method == "GET" and entry.status == 200}
    server.log.clear()
    assert Checkpoint.open(find_checkpoint(published.pinned, HUB)).verify() == []
    again = {entry.path for entry in server.log if entry.method == "GET"}
    assert again
    assert not again & fetched


def test_offline_the_cached_copy_is_used_with_a_warning(
    published: Origin, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = find_checkpoint(PLACE, HUB, parts=["fusion"], warn=lambda _: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    server.log.clear()
    (heard,) = told(lambda: find_checkpoint(PLACE, HUB, parts=["fusion"]))
    assert "HF_HUB_OFFLINE is set; the cached copy of hf://alice/tiny is used, commit " + published.commit in heard
    assert find_checkpoint(published.pinned, HUB, parts=["fusion"]) == first
    with pytest.raises(OutOfReachError, match="HF_HUB_OFFLINE is set"):
        find_checkpoint(published.pinned, HUB, parts=["text_encoder"])
    with pytest.raises(OutOfReachError, match="user_encoder: this part of hf://alice/tiny is not cached yet"):
        Checkpoint.open(first).sound_folder(Checkpoint.open(first).parts["user_encoder"])
    with pytest.raises(OutOfReachError, match="no copy of hf://alice/never is cached here"):
        find_checkpoint("hf://alice/never", HUB)
    assert server.log == []


def test_the_cached_copy_is_used_when_the_hub_does_not_answer(
    published: Origin, server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find_checkpoint(PLACE, HUB, parts=(), warn=lambda _: None)
    server.fail("/api/models", times=100, status=503, Retry_After="0")
    (heard,) = told(lambda: find_checkpoint(PLACE, HUB, parts=()))
    assert "out of reach" in heard
    assert "the cached copy of hf://alice/tiny is used" in heard


def test_the_cached_copy_is_used_when_the_hub_is_gone(published: Origin, server: HubServer) -> None:
    first = find_checkpoint(PLACE, HUB, parts=(), warn=lambda _: None)
    server.stop()
    (heard,) = told(lambda: find_checkpoint(PLACE, HUB, parts=()))
    assert f"the cached copy of hf://alice/tiny is used, commit {published.commit}" in heard
    assert find_checkpoint(published.pinned, HUB, parts=()) == first


def test_a_damaged_cached_copy_is_refused_and_repaired_by_a_pull(published: Origin) -> None:
    folder = find_checkpoint(published.pinned, HUB)
    path = folder / "fusion" / "part.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"\1")
    with pytest.raises(CheckpointError, match=r"part\.safetensors was changed after it was written"):
        Checkpoint.open(folder).sound_folder(Checkpoint.open(folder).parts["fusion"])
    pulled = pull_checkpoint(published.pinned, HUB)
    assert (pulled.num_files, pulled.num_bytes) == (1, len(whole))
    assert Checkpoint.open(folder).verify() == []


def test_a_copy_with_some_of_the_parts_names_what_is_missing(
    published: Origin, tmp_path: Path, server: HubServer
) -> None:
    out = tmp_path / "copy"
    pulled = pull_checkpoint(published.pinned, HUB, ["user_encoder"], out=out)
    assert pulled.folder == out
    checkpoint = Checkpoint.open(out)
    assert checkpoint.sound_folder(checkpoint.parts["user_encoder"]) == out / "user_encoder"
    with pytest.raises(CheckpointError, match="fusion is listed and not here"):
        checkpoint.sound_folder(checkpoint.parts["fusion"])
    assert server.bytes_below("fusion") == 0
    shutil.rmtree(out)
    pull_checkpoint(published.pinned, HUB, out=out)
    assert Checkpoint.open(out).verify() == []


def test_the_checkpoints_of_an_owner_are_listed(saved_copy: Path, server: HubServer) -> None:
    restate(saved_copy, metrics={}, card="---\nlibrary_name: pmmrec\n---\n# x\n")
    for name in ("two", "one"):
        push_checkpoint(saved_copy, f"hf://alice/{name}", HUB, PushOptions())
    server.repositories["alice/other"] = Repository(private=False)
    server.repositories["alice/other"].add("main", {"README.md": b""})
    assert list_places("hf://alice") == ["hf://alice/one", "hf://alice/two"]
