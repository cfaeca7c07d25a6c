"""VQRec: pretrained on two domains, published as parts, aligned with the codes of a third, and fine-tuned there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Pmmrec, working_in
from safetensors.torch import load_file

from pmmrec.data.domain import Domain
from pmmrec.data.importers.features import store_vectors
from pmmrec.zoo.checkpoint import Checkpoint

PARTS = 4
USERS = ("model.user_encoder.num_layers=1", "model.user_encoder.feed_forward=16", "model.user_encoder.dropout=0.1")
CODES = (f"model.item_encoder.parts={PARTS}", "model.item_encoder.values=8")
SMALL = ("model.width=16", *USERS, *CODES, "machine.device=cpu", "train.log_every=1", "train.batch_users=32")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, world: Path, pmmrec: Pmmrec) -> Path:
    """Three domains with codes of eight values, and the parts of a pretraining on two of them."""
    folder = tmp_path_factory.mktemp("vqrec")
    for seed, name in enumerate(("bazaar", "gallery", "boutique")):
        domain = Domain.open(Path(shutil.copytree(world / name, folder / name)))
        code_NM = np.random.default_rng(seed).integers(0, 8, (domain.num_items, PARTS)).astype(np.float16)
        store_vectors(domain, code_NM, "codes", "codes", num_values=8)
    with working_in(folder):
        sources = f"data.sources=[{folder}/bazaar, {folder}/gallery]"
        told = pmmrec("pretrain", "pretrain/vqrec", sources, *SMALL, "train.epochs=4")
        assert told.code == 0, told.output
    return folder


def losses(run: Path, name: str) -> list[float]:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event[name] for event in events if event["event"] == "train"]


def part_of(folder: Path, part: str) -> dict[str, torch.Tensor]:
    return load_file(Checkpoint.open(folder).folder / part / "part.safetensors")


def test_pretraining_learns_and_publishes_its_parts(home: Path) -> None:
    found = losses(home / "runs" / "vqrec", "seq_item")
    assert sum(found[-5:]) < sum(found[:5])
    assert set(Checkpoint.open(home / "hub" / "vqrec").parts) == {"code_table", "user_encoder"}


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_permutation_learns_first_and_then_the_rest_under_its_assignment(
    home: Path, pmmrec: Pmmrec, epochs: int
) -> None:
    with working_in(home):
        where = ("--from", "vqrec", "--on", home / "boutique", f"name=aligned_{epochs}")
        stages = (
            "[{epochs: 1, learns: [permutation]}, {frozen: [permutation, user_encoder.position, user_encoder.blocks]}]"
        )
        quick = (f"train.epochs={epochs}", f"train.stages={stages}", "validation.metric=hr@10")
        told = pmmrec("finetune", "finetune/vqrec", *where, *SMALL, *quick, "train.optimizer.learning_rate=0.1")
        assert told.code == 0, told.output
        assert "stage 1 of 2 begins: 1 tensors of permutation learn" in told.output
        run = home / "runs" / f"aligned_{epochs}"
        permutation = part_of(run / "checkpoint", "permutation")["place_MV"]
        assert torch.equal(permutation.sort(dim=1).values, torch.arange(8).repeat(PARTS, 1))
        before, after = (part_of(one, "user_encoder") for one in (home / "hub" / "vqrec", run / "checkpoint"))
        assert {name for name in before if not torch.equal(before[name], after[name])} <= {"norm.weight", "norm.bias"}
        tables = [part_of(one, "code_table")["vector"] for one in (home / "hub" / "vqrec", run / "checkpoint")]
        if epochs == 1:
            assert torch.equal(*tables)
        found = losses(run, "all")
        assert epochs == 1 or sum(found[-3:]) < sum(found[:3])
        told = pmmrec("evaluate", run / "checkpoint", home / "boutique", "--out", f"again_{epochs}", "--cache", "cache")
        assert told.code == 0, told.output
        first, again = (
            json.loads((place / "metrics.json").read_text())["domains"][0]["metrics"]["hr@10"]["mean"]
            for place in (run, home / f"again_{epochs}")
        )
        assert first == again
        out = f"lists_{epochs}.csv"
        told = pmmrec("score", run / "checkpoint", home / "boutique", "--top-k", 5, "--out", out, "--cache", "cache")
        assert told.code == 0, told.output
        told = pmmrec(
            "index", run / "checkpoint", home / "boutique", "--out", f"index_{epochs}", "--kind", "flat", "--cache", "c"
        )
        assert "1.0000 of exact search" in told.output


def test_a_domain_without_codes_is_refused_with_the_command_that_makes_them(
    home: Path, world: Path, pmmrec: Pmmrec, tmp_path: Path
) -> None:
    plain = Path(shutil.copytree(world / "boutique", tmp_path / "plain"))
    vectors_NF = np.ones((Domain.open(plain).num_items, PARTS), np.float32)
    store_vectors(Domain.open(plain), vectors_NF, "codes", "codes")
    with working_in(tmp_path):
        told = pmmrec("finetune", "zoo/vectors/vqrec", "--from", "none", "--on", plain, *SMALL)
        assert told.code == 3, told.output
        assert "'codes' holds vectors, but the model reads codes of 8 values" in told.output
        assert "pmmrec data codes" in told.output


def test_a_missing_feature_is_refused_with_the_command(world: Path, tmp_path: Path, pmmrec: Pmmrec) -> None:
    with working_in(tmp_path):
        told = pmmrec("finetune", "zoo/vectors/vqrec", "--from", "none", "--on", world / "boutique", *SMALL)
    assert told.code == 3, told.output
    assert f"--feature VECTORS --parts {PARTS} --out codes` makes codes" in " ".join(told.output.split())
