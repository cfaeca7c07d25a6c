"""Runs with frozen blocks keep their states, say so, and find what runs without the cache find."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import SMALL, Pmmrec, Result, sources, working_in

FROZEN = tuple(f"model.item_encoder.{encoder}.trainable_blocks=0" for encoder in ("text", "vision"))
ALBERT = ("model.item_encoder.text.architecture.model_type=albert", "model.item_encoder.text.trainable_blocks=1")


def pretrain(pmmrec: Pmmrec, world: Path, name: str, *settings: str) -> Result:
    run = (f"name={name}", "train.epochs=1", f"cache={name}-cache", *settings)
    return pmmrec("pretrain", "pretrain/tiny", *SMALL, *sources(world), *run)


def events(name: str, kind: str) -> list[dict[str, Any]]:
    lines = (Path("runs") / name / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, world: Path, pmmrec: Pmmrec) -> tuple[Path, Result]:
    """A folder with the runs `kept` and `plain` of one recipe, and what the first said."""
    home = tmp_path_factory.mktemp("both")
    with working_in(home):
        kept = pretrain(pmmrec, world, "kept", *FROZEN)
        plain = pretrain(pmmrec, world, "plain", *FROZEN, "prefix_cache=off")
    assert kept.code == plain.code == 0, kept.output + plain.output
    return home, kept


def test_a_run_says_what_it_keeps(both: tuple[Path, Result]) -> None:
    said = both[1].output
    for modality in ("text", "image"):
        assert f"{modality}: frozen states are kept in float32, 0." in said


def test_a_run_with_kept_states_finds_what_one_without_finds(both: tuple[Path, Result]) -> None:
    with working_in(both[0]):
        steps = [[event["loss"] for event in events(name, "train")] for name in ("kept", "plain")]
        found = [[event["domains"] for event in events(name, "validation")] for name in ("kept", "plain")]
        tested = [
            json.loads((Path("runs") / name / "metrics.json").read_text())["domains"] for name in ("kept", "plain")
        ]
    assert steps[0] == pytest.approx(steps[1], rel=1e-6)  # measured equal
    assert found[0] == found[1]
    assert tested[0] == tested[1]


def test_the_test_ranking_reads_the_tables_of_the_training(both: tuple[Path, Result]) -> None:
    tables = list((both[0] / "kept-cache").glob("*prefix-*"))
    assert len(tables) == 4  # texts and images of two platforms, of one frozen part each
    assert not list((both[0] / "plain-cache").glob("*prefix-*"))


@pytest.mark.parametrize("start", ["kept", "small"])  # with and without frozen blocks of its own
@pytest.mark.parametrize("use", ["on", "auto"])
def test_ranking_after_a_frozen_plan_makes_no_states_and_asks_for_none(
    both: tuple[Path, Result], small_run: Path, world: Path, pmmrec: Pmmrec, start: str, use: str
) -> None:
    checkpoint = (both[0] if start == "kept" else small_run) / "hub" / start
    name = f"frozen-{start}-{use}"
    with working_in(both[0]):
        run = (f"name={name}", f"prefix_cache={use}", f"cache={name}-cache", "train.epochs=1", "train.batch_users=16")
        result = pmmrec("finetune", "finetune/frozen", "--from", checkpoint, "--on", world / "boutique", *run)
        assert result.code == 0, result.output
        assert "vectors were computed once" in result.output
        assert json.loads((Path("runs") / name / "metrics.json").read_text())["domains"]
        assert not list(Path(f"{name}-cache").glob("*prefix-*"))


def test_states_of_encoders_that_a_plan_freezes_are_kept_up_to_their_top(
    home: Path, small_run: Path, world: Path, pmmrec: Pmmrec
) -> None:
    plan = "transfer={load: ['*'], train: [fusion, user_encoder]}"
    start = ("finetune", "finetune/full", plan, "--from", small_run / "hub" / "small", "--on", world / "boutique")
    steps = []
    for name, use in (("kept", "on"), ("plain", "off")):
        run = (f"name={name}", f"prefix_cache={use}", f"cache={name}-cache", "train.epochs=1", "train.batch_users=16")
        if use == "on":
            assert pmmrec(*start, *run, "--dry-run").code == 0
        result = pmmrec(*start, *run, "train.log_every=1")
        assert result.code == 0, result.output
        for modality in ("text", "image"):
            assert result.output.count(f"{modality}: frozen states are kept in float32") == (use == "on")
        steps.append([event["loss"] for event in events(name, "train")])
    assert len(list((home / "kept-cache").glob("prefix-*"))) == 2
    assert steps[0] == pytest.approx(steps[1], rel=1e-6)


def test_on_is_refused_where_nothing_is_frozen(home: Path, world: Path, pmmrec: Pmmrec) -> None:
    for more in ((), ("--dry-run",)):
        result = pretrain(pmmrec, world, "all", "prefix_cache=on", *more)
        assert result.code == 2
        assert "prefix_cache: on, but no encoder has frozen blocks" in result.output
    assert not (home / "runs" / "all").exists()


def test_on_is_refused_where_no_cut_is_known_and_auto_says_why(home: Path, world: Path, pmmrec: Pmmrec) -> None:
    refused = pretrain(pmmrec, world, "refused", *ALBERT, "prefix_cache=on", "--dry-run")
    assert refused.code == 2
    assert "AlbertModel cannot be entered between its blocks here; these can: bert, camembert" in refused.output
    said = pretrain(pmmrec, world, "auto", *ALBERT)
    assert said.code == 0, said.output
    assert said.output.count("text: frozen states are not kept: prefix_cache: AlbertModel") == 1
    assert not list(home.glob("auto-cache/prefix-*"))


def test_too_small_a_budget_is_refused_under_on_and_said_under_auto(home: Path, world: Path, pmmrec: Pmmrec) -> None:
    small = (*FROZEN, "prefix_budget_gb=1e-8")
    refused = pretrain(pmmrec, world, "refused", *small, "prefix_cache=on")
    assert refused.code == 4
    assert "prefix_budget_gb allows 10: raise it, or say prefix_cache=off" in refused.output
    said = pretrain(pmmrec, world, "auto", *small)
    assert said.code == 0, said.output
    for modality in ("text", "image"):
        assert said.output.count(f"{modality}: frozen states are not kept: ") == 1
