"""Malicious or damaged files on a hub are refused by name, and are neither kept nor run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import HubServer, Repository

from pmmrec.errors import CheckpointError
from pmmrec.zoo import files
from pmmrec.zoo.hub import find_checkpoint
from pmmrec.zoo.origin import Origin

PLACE = "hf://alice/tiny"
HUB = Path("hub")


@pytest.mark.parametrize(
    "path", ["fusion/part.safetensors", "text_encoder/model.safetensors", "user_encoder/part.json", "recipe.yaml"]
)
def test_a_tampered_file_is_refused_by_its_name_and_not_kept(
    published: Origin, server: HubServer, fresh_home: Path, path: str
) -> None:
    content = bytearray(server.files("alice/tiny")[path])
    content[-1] ^= 1
    commit = server.tamper("alice/tiny", path, bytes(content))
    with pytest.raises(CheckpointError, match=rf"hf://alice/tiny: {path} is not what model_index\.json promises"):
        find_checkpoint(f"{PLACE}@{commit}", HUB)
    kept = [found for found in fresh_home.rglob("*") if found.is_file() and found.read_bytes() == bytes(content)]
    assert kept == []


def test_a_tampered_part_does_not_stop_the_others(published: Origin, server: HubServer) -> None:
    commit = server.tamper("alice/tiny", "fusion/part.safetensors", b"\0")
    folder = find_checkpoint(f"{PLACE}@{commit}", HUB, parts=["user_encoder"])
    assert (folder / "user_encoder" / "part.safetensors").is_file()
    with pytest.raises(CheckpointError, match=r"fusion/part\.safetensors is not what"):
        find_checkpoint(f"{PLACE}@{commit}", HUB, parts=["fusion"])


def with_index(server: HubServer, change: Callable[[dict[str, dict[str, object]]], object]) -> str:
    tree = json.loads(server.files("alice/tiny")[files.INDEX_NAME])
    change(tree)
    return f"{PLACE}@{server.tamper('alice/tiny', files.INDEX_NAME, json.dumps(tree).encode())}"


def test_an_index_cannot_name_files_outside_its_folder(published: Origin, server: HubServer) -> None:
    place = with_index(server, lambda tree: tree["files"].update({"../../../.bashrc": "0" * 64}))
    with pytest.raises(CheckpointError, match=r"hf://alice/tiny/model_index.json.*\n?.*\.\./\.\./\.\./\.bashrc"):
        find_checkpoint(place, HUB)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.PT", "modeling.py"])
def test_an_index_that_lists_pickles_or_programs_is_refused(published: Origin, server: HubServer, name: str) -> None:
    place = with_index(server, lambda tree: tree["files"].update({name: "0" * 64}))
    with pytest.raises(CheckpointError, match=f"lists {name}, which may run code"):
        find_checkpoint(place, HUB)


def test_a_configuration_that_runs_code_is_refused(published: Origin, server: HubServer) -> None:
    config = json.loads(server.files("alice/tiny")["text_encoder/config.json"])
    content = json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}).encode()
    server.tamper("alice/tiny", "text_encoder/config.json", content)
    digest = hashlib.sha256(content).hexdigest()
    place = with_index(server, lambda tree: tree["parts"]["text_encoder"]["files"].update({"config.json": digest}))  # type: ignore[index, attr-defined]
    with pytest.raises(CheckpointError, match="'auto_map' runs code from elsewhere"):
        find_checkpoint(place, HUB, parts=["text_encoder"])


def test_a_missing_listed_file_is_named(published: Origin, server: HubServer) -> None:
    repository = server.repositories["alice/tiny"]
    tree = dict(repository.trees[published.commit])
    del tree["user_encoder/part.json"]
    commit = repository.add("main", tree)
    with pytest.raises(CheckpointError, match=r"holds no user_encoder/part\.json at commit"):
        find_checkpoint(f"{PLACE}@{commit}", HUB)


def test_a_repository_without_a_checkpoint_is_an_error(server: HubServer) -> None:
    server.repositories["alice/other"] = Repository(private=False)
    server.repositories["alice/other"].add("main", {"README.md": b""})
    with pytest.raises(CheckpointError, match=r"hf://alice/other: holds no model_index\.json"):
        find_checkpoint("hf://alice/other", HUB, warn=lambda _: None)
