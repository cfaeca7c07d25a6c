"""What verbs print for machines: one valid JSON object on stdout, with numbers as numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import Pmmrec, working_in

from pmmrec.report.records import to_json


@pytest.fixture
def at_run(small_run: Path) -> Iterator[Path]:
    with working_in(small_run):
        yield small_run


def told(pmmrec: Pmmrec, *words: object) -> dict[str, Any]:
    """The object that a verb prints; nothing else may stand on stdout."""
    result = pmmrec(*words, "--json")
    assert result.code == 0, result.output

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    tree = json.loads(result.stdout, parse_constant=refuse)
    assert isinstance(tree, dict)
    assert not [text for text in texts_of(tree) if text.rstrip(" %").replace(",", "").replace(".", "").isdigit()]
    return tree


def texts_of(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for entry in value.values() for text in texts_of(entry)]
    if isinstance(value, list):
        return [text for entry in value for text in texts_of(entry)]
    return [value] if isinstance(value, str) else []


def test_stats_of_several_domains(world: Path, pmmrec: Pmmrec) -> None:
    tree = told(pmmrec, "data", "stats", world / "bazaar", world / "boutique")
    assert list(tree) == ["domains"]
    bazaar, boutique = tree["domains"]
    assert (bazaar["name"], bazaar["num_users"], boutique["num_users"]) == ("bazaar", 60, 40)
    assert set(bazaar) == {
        *("name", "num_users", "num_items", "num_interactions", "mean_length", "median_length", "density"),
        *("share_repeated", "num_with_text", "num_with_image", "num_cold_items", "num_with_column"),
        *("longest", "sparsity", "mean_words", "mean_characters", "mean_tokens"),
    }
    assert bazaar["mean_length"] == bazaar["num_interactions"] / 60
    assert 0 < bazaar["density"] < 1


def test_an_evaluation_is_told_as_metrics_json_keeps_it(
    at_run: Path, world: Path, tmp_path: Path, pmmrec: Pmmrec
) -> None:
    asked = ("small", world / "boutique", "--scenario", "cold", "--out", tmp_path / "out", "--cache", tmp_path / "c")
    tree = told(pmmrec, "evaluate", *asked)  # warnings of this scenario go to stderr
    assert tree == json.loads((tmp_path / "out" / "metrics.json").read_text())
    (found,) = tree["domains"]
    ranks = pq.read_table(tmp_path / "out" / "ranks.parquet")["rank"].to_numpy()
    assert found["metrics"]["hr@10"]["mean"] == pytest.approx(np.isin(ranks, range(1, 11)).mean(), abs=1e-12)
    assert set(found["metrics"]["hr@10"]) == {"mean", "low", "high", "level"}


def test_a_comparison(at_run: Path, pmmrec: Pmmrec) -> None:
    tree = told(pmmrec, "compare", "runs/small")
    assert list(tree) == ["domains", "differences", "notes", "warnings"]
    assert [found["domain"] for found in tree["domains"]] == ["bazaar", "gallery"]
    metrics = json.loads(Path("runs/small/metrics.json").read_text())
    for found, measured in zip(tree["domains"], metrics["domains"], strict=True):
        (system,) = found["systems"]
        assert (system["system"], system["num_seeds"]) == ("small", 1)
        assert system["best_epoch"] == metrics["best_epoch"]
        assert system["metrics"] == measured["metrics"]
        assert {row["system"]: row["metrics"] for row in found["baselines"]} == measured["baselines"]
        assert (found["num_users"], found["num_targets"]) == (measured["num_users"], measured["num_users"])
        assert found["is_held_out_only"] is False
    assert len(tree["differences"]) == 2 * 3 * 2
    one = tree["differences"][0]
    tests = {"p", "p_holm", "t_test", "wilcoxon"}
    assert set(one) == {"first", "second", "metric", "domain", "interval", "is_shown"} | tests
    assert all(0 < one[name]["p"] <= one[name]["p_holm"] <= 1 for name in ("t_test", "wilcoxon"))
    assert (one["first"], one["second"], one["metric"], one["domain"]) == ("small", "popularity", "hr@10", "bazaar")
    assert 0 < one["p"] <= one["p_holm"] <= 1
    assert isinstance(one["is_shown"], bool)
    ours, theirs = tree["domains"][0]["systems"][0], tree["domains"][0]["baselines"][1]
    mean = ours["metrics"]["hr@10"]["mean"] - theirs["metrics"]["hr@10"]["mean"]
    assert one["interval"]["mean"] == pytest.approx(mean, abs=1e-12)


def test_a_checkpoint(at_run: Path, pmmrec: Pmmrec) -> None:
    tree = told(pmmrec, "zoo", "show", "small")
    assert list(tree) == ["place", "system", "width", "learned_from", "started_from", "base", "parts"]
    assert (tree["place"], tree["system"], tree["width"]) == ("hub/small", "pmmrec", 16)
    assert (tree["learned_from"], tree["started_from"], tree["base"]) == (["bazaar", "gallery"], "none", None)
    parts = {part["name"]: part for part in tree["parts"]}
    assert list(parts) == ["text_encoder", "vision_encoder", "fusion", "user_encoder", "objectives/nid"]
    assert parts["fusion"]["family"] == "fusion"
    assert parts["fusion"]["type"] == "merge_attention"
    assert parts["fusion"]["num_parameters"] > parts["fusion"]["num_tensors"] > 0


@pytest.mark.parametrize(
    "words", [("data", "stats", "nowhere"), ("evaluate", "nobody", "nowhere"), ("compare", "no"), ("zoo", "show", "no")]
)
def test_errors_leave_stdout_empty(home: Path, pmmrec: Pmmrec, words: tuple[str, ...]) -> None:
    result = pmmrec(*words, "--json")
    assert result.code in (2, 3)
    assert result.stdout == ""
    assert result.output.startswith("error: ")


def test_what_is_no_number_is_null_and_what_is_no_ascii_is_escaped() -> None:
    @dataclass
    class Record:
        values: tuple[float, ...]
        names: dict[str, Path]

    text = to_json(Record((1.0, math.nan, -math.inf), {"名": Path("a/b")}))
    assert text.isascii()
    assert json.loads(text) == {"values": [1.0, None, None], "names": {"名": "a/b"}}
