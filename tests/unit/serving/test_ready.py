"""Lists are made without the item encoder where the vectors of a catalogue are kept."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pmmrec as api
from pmmrec import system as system_file
from pmmrec.errors import CheckpointError
from pmmrec.fusion.attentive import MergeAttentionConfig
from pmmrec.serving import ready
from pmmrec.serving.ready import is_own
from pmmrec.system import System

K = 4
RUN = """
import json, sys
from pmmrec.cli import app
try:
    app(json.loads(sys.argv[1]))
except SystemExit as ended:
    print(json.dumps([ended.code, sorted(sys.modules)]), file=sys.stderr)
"""
MODELS = ("transformers", "timm", "accelerate", "peft", "scipy", "torch._dynamo", "torch.distributed.tensor")


@pytest.fixture
def domain(world: Path) -> Path:
    return world / "boutique"


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def load(small_run: Path, tmp_path: Path, lines: list[str]):
    def loaded(**options) -> System:
        return api.load(
            "small", hub=small_run / "hub", cache=tmp_path / "cache", device="cpu", tell=lines.append, **options
        )

    return loaded


def refuse_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a whole model is loaded."""

    def fail(*_arguments, **_options) -> None:
        raise AssertionError("a whole model was loaded")

    monkeypatch.setattr(system_file, "load_recommender", fail)


def test_a_second_score_builds_no_item_encoder_and_gives_the_same_lists(
    load, domain: Path, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load().score(domain, K, tmp_path / "first.csv")
    refuse_to_build(monkeypatch)
    load().score(domain, K, tmp_path / "second.csv")
    assert (tmp_path / "first.csv").read_bytes() == (tmp_path / "second.csv").read_bytes()
    assert lines == ["boutique: 36 of 36 items encoded, 0 kept", "boutique: 0 of 36 items encoded, 36 kept"]


def test_score_after_evaluate_builds_no_item_encoder(
    load, domain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load().evaluate(domain, name="zero-shot")
    refuse_to_build(monkeypatch)
    load().score(domain, K, tmp_path / "lists.csv")


class PluginFusion(MergeAttentionConfig):
    """The settings of a fusion of another package."""


def test_items_that_a_plugin_encodes_are_not_ready_without_it(
    load, domain: Path, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load().checkpoint.model_config.item_encoder
    assert is_own(config)
    assert not is_own(config.model_copy(update={"fusion": PluginFusion()}))
    monkeypatch.setattr(ready, "is_own", lambda _: False)
    for name in ("first.csv", "second.csv"):
        load().score(domain, K, tmp_path / name)
    assert not list((tmp_path / "cache").glob("vectors-*/ready-*"))
    assert lines == ["boutique: 36 of 36 items encoded, 0 kept", "boutique: 0 of 36 items encoded, 36 kept"]


def test_another_weight_of_popularity_counts(load, domain: Path, tmp_path: Path) -> None:
    load(popularity=5.0).score(domain, K, tmp_path / "built.csv")
    load(popularity=5.0).score(domain, K, tmp_path / "ready.csv")
    load(popularity=0.0).score(domain, K, tmp_path / "other.csv")
    assert (tmp_path / "built.csv").read_bytes() == (tmp_path / "ready.csv").read_bytes()
    assert (tmp_path / "built.csv").read_bytes() != (tmp_path / "other.csv").read_bytes()


@pytest.mark.parametrize("file", ["ready-*/facts.json", "ready-*/rows.npy", "000000/vectors.npy"])
def test_what_is_damaged_is_made_again(load, domain: Path, tmp_path: Path, file: str) -> None:
    load().score(domain, K, tmp_path / "first.csv")
    (damaged,) = (tmp_path / "cache").glob(f"vectors-*/{file}")
    damaged.write_bytes(b"broken")
    load().score(domain, K, tmp_path / "second.csv")
    assert (tmp_path / "first.csv").read_bytes() == (tmp_path / "second.csv").read_bytes()


def test_a_checkpoint_that_was_changed_is_refused(load, domain: Path, tmp_path: Path, small_run: Path) -> None:
    load().score(domain, K, tmp_path / "first.csv")
    copy = tmp_path / "copy"
    shutil.copytree(small_run / "hub" / "small", copy)
    weights = min((copy / "text_encoder").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError):
        api.load(copy, cache=tmp_path / "cache", device="cpu").score(domain, K, tmp_path / "second.csv")


def test_a_warm_score_imports_no_library_of_models(small_run: Path, domain: Path, tmp_path: Path) -> None:
    hub, cache = (["--hub", str(small_run / "hub")], ["--cache", str(tmp_path / "cache")])
    asked = ["score", "small", str(domain), *hub, *cache, "--out"]
    for name in ("first.csv", "second.csv"):
        words = json.dumps([*asked, str(tmp_path / name)])
        told = subprocess.run([sys.executable, "-c", RUN, words], capture_output=True, text=True, check=True).stderr
    code, modules = json.loads(told.splitlines()[-1])
    assert code == 0
    assert not set(MODELS) & set(modules)
