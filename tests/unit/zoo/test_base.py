"""The base of adapters is found at its recorded place and commit, or elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from adapter_runs import train_adapters
from hub_client import point_client_at
from hub_server import HubServer, serving
from torch import Tensor

from pmmrec.errors import CheckpointError
from pmmrec.models.recommender import Recommender
from pmmrec.zoo.base import place_of
from pmmrec.zoo.checkpoint import Checkpoint, load_recommender, open_checkpoint, with_base
from pmmrec.zoo.hub import PushOptions, push_checkpoint
from pmmrec.zoo.merge import merge_adapters
from pmmrec.zoo.origin import Origin
from pmmrec.zoo.results import restate

PLACE = "hf://alice/tiny"
PLAN = {"text_encoder": {"type": "lora", "r": 2}, "user_encoder": {"type": "ia3"}}
REPLACE = PushOptions(replace=True)
Score = Callable[[Recommender], Tensor]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with an empty cache; nothing else is near."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture
def server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The Hub, as far as its client can tell."""
    with serving() as hub:
        point_client_at(hub.url, monkeypatch, home)
        yield hub
        huggingface_hub.close_session()


@pytest.fixture
def origin(saved: Path, server: HubServer) -> Origin:
    """The tiny checkpoint on the hub."""
    return push_checkpoint(saved, PLACE, Path("hub"), PushOptions())


@pytest.fixture
def adapted(origin: Origin, other: Any, tmp_path: Path) -> Path:
    """Adapters that were trained from it."""
    train_adapters(open_checkpoint(PLACE, Path("hub"), parts=(), warn=lambda _: None), other, PLAN, tmp_path / "mine")
    return tmp_path / "mine"


def forget(home: Path, *, all_but_the_index: bool = False) -> None:
    """Empty the cache of checkpoints, or take the parts out of it."""
    cache = home / ".cache/pmmrec/checkpoints"
    if not all_but_the_index:
        shutil.rmtree(cache)
    for part in cache.glob("*/*/*_encoder"):
        shutil.rmtree(part)


def loads(folder: Path, hub: Path = Path("hub")) -> Recommender:
    return load_recommender(with_base(Checkpoint.open(folder), None, hub))


def test_adapters_record_place_and_commit_of_a_remote_base(adapted: Path, origin: Origin) -> None:
    base = Checkpoint.open(adapted).index.base
    assert base is not None
    assert (base.place, base.revision) == (PLACE, origin.commit)
    assert place_of(base) == origin.pinned


def test_a_base_in_a_folder_has_no_commit(saved: Path, other: Any, tmp_path: Path) -> None:
    train_adapters(saved, other, PLAN, tmp_path / "mine")
    base = Checkpoint.open(tmp_path / "mine").index.base
    assert base is not None
    assert (base.place, base.revision, place_of(base)) == (str(saved), None, str(saved))


def test_the_base_is_fetched_by_its_commit_after_its_place_has_changed(
    adapted: Path, other: Any, text_only: Any, home: Path, score: Score, tmp_path: Path
) -> None:
    text_only.save(tmp_path / "another")
    push_checkpoint(tmp_path / "another", PLACE, Path("hub"), REPLACE)
    forget(home)
    torch.testing.assert_close(score(loads(adapted)), score(other.recommender), rtol=0, atol=0)
    merge_adapters(Checkpoint.open(adapted), tmp_path / "merged")
    merged = load_recommender(Checkpoint.open(tmp_path / "merged"))
    torch.testing.assert_close(score(merged), score(other.recommender), rtol=0, atol=1e-5)  # measured 2e-7


def test_a_url_may_hold_the_base_under_a_newer_card(
    saved_copy: Path, other: Any, home: Path, score: Score, tmp_path: Path
) -> None:
    url = f"file://{tmp_path}/bucket/tiny"
    old = push_checkpoint(saved_copy, url, Path("hub"), PushOptions())
    train_adapters(open_checkpoint(old.pinned, Path("hub"), parts=()), other, PLAN, tmp_path / "mine")
    restate(saved_copy, metrics={"hr": 1.0}, card="# better told\n")
    assert push_checkpoint(saved_copy, url, Path("hub"), REPLACE) != old
    forget(home)
    torch.testing.assert_close(score(loads(tmp_path / "mine")), score(other.recommender), rtol=0, atol=0)


def test_a_cached_copy_of_the_base_is_used_when_the_hub_is_unreachable(
    adapted: Path, other: Any, server: HubServer, score: Score
) -> None:
    server.stop()
    torch.testing.assert_close(score(loads(adapted)), score(other.recommender), rtol=0, atol=0)


@pytest.mark.parametrize("all_but_the_index", [False, True])
def test_the_base_is_taken_from_the_folder_hub_when_the_hub_is_unreachable(
    adapted: Path,
    other: Any,
    saved: Path,
    home: Path,
    server: HubServer,
    score: Score,
    tmp_path: Path,
    all_but_the_index: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client would wait for the hub, longer each time
    server.fail("/", times=10_000, status=503, Retry_After="0")
    forget(home, all_but_the_index=all_but_the_index)
    shutil.copytree(saved, tmp_path / "ours" / "tiny")
    torch.testing.assert_close(score(loads(adapted, tmp_path / "ours")), score(other.recommender), rtol=0, atol=0)


def test_a_base_beside_the_adapters_on_the_hub_is_found(
    saved: Path, other: Any, origin: Origin, home: Path, score: Score, tmp_path: Path
) -> None:
    train_adapters(Path(shutil.copytree(saved, tmp_path / "tiny")), other, PLAN, tmp_path / "mine")
    place = push_checkpoint(tmp_path / "mine", "hf://alice/mine", Path("hub"), PushOptions()).pinned
    shutil.rmtree(tmp_path / "tiny")
    far = with_base(open_checkpoint(place, Path("hub")), None, Path("hub"))
    torch.testing.assert_close(score(load_recommender(far)), score(other.recommender), rtol=0, atol=0)


def test_the_error_lists_every_place_and_reason(
    adapted: Path, text_only: Any, origin: Origin, home: Path, server: HubServer, tmp_path: Path
) -> None:
    server.stop()
    forget(home)
    text_only.save(tmp_path / "tiny")
    with pytest.raises(CheckpointError) as told:
        loads(adapted, tmp_path / "none")
    wanted = Checkpoint.open(adapted).index.base
    assert wanted is not None
    words = str(told.value)
    base = f"{origin.pinned} (sha256 of its model_index.json: {wanted.sha256})"
    assert f"{adapted}: the base of its adapters, {base}, was not" in words
    assert f"was not found at {origin.pinned}, {PLACE}, {tmp_path}/tiny, tiny; " in words
    assert "out of reach" in words
    assert f"{tmp_path}/tiny is another (sha256 " in words
    assert words.endswith("; say where it is with --base PLACE")


def test_a_missing_base_is_requested_only_once(adapted: Path, home: Path, server: HubServer) -> None:
    forget(home)
    server.fail("/", times=10_000, status=404)
    checkpoint = Checkpoint.open(adapted)
    for count in range(2):
        with pytest.raises(CheckpointError, match="was not found at"):
            load_recommender(checkpoint)
        if count == 0:
            server.log.clear()
    assert server.log == []
