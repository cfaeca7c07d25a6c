"""Verbs and frozen runs share one store of item vectors: what one has encoded, no other encodes again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Pmmrec, Result, working_in

from pmmrec.data.domain import Domain
from pmmrec.evaluation.outcome import read_outcome
from pmmrec.report.html.encoded_domain import EncodedDomain
from pmmrec.zoo.checkpoint import open_checkpoint


def counts(result: Result) -> list[tuple[int, int]]:
    """Each pair of items encoded and items kept that a command reported."""
    assert result.code == 0, result.output
    found = re.findall(r"boutique: ([\d,]+) of [\d,]+ items encoded, ([\d,]+) kept", result.output)
    return [(int(encoded), int(kept)) for encoded, kept in found]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, small_run: Path, world: Path, pmmrec: Pmmrec) -> Path:
    """A folder whose cache `c` holds what `score` encoded."""
    home = tmp_path_factory.mktemp("shared")
    with working_in(home):
        where = (small_run / "hub" / "small", world / "boutique", "--cache", "c")
        (encoded, kept), *_ = counts(pmmrec("score", *where, "--out", "first.parquet"))
    assert encoded > 10
    assert kept == 0
    return home


def num_items(shared: Path) -> int:
    """Distinct items of the platform, as the store holds them."""
    return sum(len(np.load(path, allow_pickle=False)) for path in (shared / "c").glob("vectors-*/*/vectors.npy"))


def test_evaluate_and_score_after_score_encode_nothing(
    shared: Path, small_run: Path, world: Path, pmmrec: Pmmrec
) -> None:
    with working_in(shared):
        where = (small_run / "hub" / "small", world / "boutique")
        total = num_items(shared)
        assert counts(pmmrec("score", *where, "--cache", "c", "--out", "second.parquet")) == [(0, total)]
        assert counts(pmmrec("evaluate", *where, "--cache", "c", "--out", "kept")) == [(0, total)]
        assert counts(pmmrec("evaluate", *where, "--cache", "fresh", "--out", "fresh-out")) == [(total, 0)]
        assert read_outcome(Path("kept")) == read_outcome(Path("fresh-out"))
        assert Path("first.parquet").read_bytes() == Path("second.parquet").read_bytes()


def test_json_stays_alone_on_stdout(shared: Path, small_run: Path, world: Path, pmmrec: Pmmrec) -> None:
    with working_in(shared):
        result = pmmrec("evaluate", small_run / "hub" / "small", world / "boutique", "--cache", "c", "--json")
        assert json.loads(result.stdout)["domains"]


def test_a_report_reads_the_store(shared: Path, small_run: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, domain = open_checkpoint("small", small_run / "hub"), Domain.open(world / "boutique")
    monkeypatch.setattr("pmmrec.evaluation.encoded._encode", lambda *_: pytest.fail("an item was encoded"))
    encoded = EncodedDomain.open(checkpoint, domain, shared / "c", torch.device("cpu"))
    assert len(encoded.vectors_ND) == domain.num_items


def test_a_second_start_of_a_frozen_plan_encodes_nothing_and_finds_the_same(
    shared: Path, small_run: Path, world: Path, pmmrec: Pmmrec
) -> None:
    with working_in(shared):
        start = ("finetune", "finetune/frozen", "--from", small_run / "hub" / "small", "--on", world / "boutique")
        settings = ("train.epochs=1", "train.batch_users=16", "machine.device=cpu")
        total = num_items(shared)
        after_score = pmmrec(*start, *settings, "name=a", "cache=c")
        assert counts(after_score) == [(0, total), (0, total)]  # for training, and for the test targets
        first = pmmrec(*start, *settings, "name=b", "cache=c2")
        assert counts(first) == [(total, 0), (0, total)]
        second = pmmrec(*start, *settings, "name=c", "cache=c2")
        assert counts(second) == [(0, total), (0, total)]
        found = [read_outcome(Path("runs") / name).domains for name in "abc"]
        assert found[0] == found[1] == found[2]
        evaluated = pmmrec("evaluate", "runs/b/checkpoint", world / "boutique", "--cache", "c2")
        assert counts(evaluated) == [(0, total)]


@pytest.mark.parametrize("recipe", ["finetune/full", "finetune/adapter"])
def test_what_the_test_ranking_of_a_fine_tuning_encoded_is_not_encoded_again(
    shared: Path, small_run: Path, world: Path, pmmrec: Pmmrec, recipe: str
) -> None:
    with working_in(shared):
        name, total = Path(recipe).name, num_items(shared)
        start = ("finetune", recipe, "--from", small_run / "hub" / "small", "--on", world / "boutique")
        settings = ("train.epochs=1", "train.batch_users=16", "machine.device=cpu", f"cache=c-{name}", f"name={name}")
        assert counts(pmmrec(*start, *settings)) == [(total, 0)]
        where = (f"runs/{name}/checkpoint", world / "boutique", "--cache", f"c-{name}")
        assert counts(pmmrec("evaluate", *where, "--out", f"out-{name}")) == [(0, total)]
        assert counts(pmmrec("score", *where, "--out", f"{name}.parquet")) == [(0, total)]
        assert (
            read_outcome(Path(f"out-{name}")).domains[0].metrics == read_outcome(Path("runs") / name).domains[0].metrics
        )


def test_a_damaged_store_is_made_again_and_said_in_one_line(
    shared: Path, small_run: Path, world: Path, pmmrec: Pmmrec
) -> None:
    with working_in(shared):
        (piece,) = Path("c").glob("vectors-*/*/vectors.npy")
        whole = piece.read_bytes()
        piece.write_bytes(whole[: len(whole) // 2])
        result = pmmrec("evaluate", small_run / "hub" / "small", world / "boutique", "--cache", "c")
        assert [encoded > 0 for encoded, _ in counts(result)] == [True]
        assert result.output.count("was damaged; item vectors are made again") == 1
        assert piece.read_bytes() == whole
