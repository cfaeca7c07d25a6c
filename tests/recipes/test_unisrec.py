"""UniSRec: pretrained on two domains, published as parts, and fine-tuned on a third, with ids and without."""

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

LENGTH = 12
USERS = ("model.user_encoder.num_layers=1", "model.user_encoder.feed_forward=16", "model.user_encoder.dropout=0.1")
SMALL = ("model.width=16", *USERS, "machine.device=cpu", "train.log_every=1", "train.batch_users=32")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, world: Path, pmmrec: Pmmrec) -> Path:
    """Three domains with stored features, and the parts of a pretraining on two of them."""
    folder = tmp_path_factory.mktemp("unisrec")
    for seed, name in enumerate(("bazaar", "gallery", "boutique")):
        domain = Domain.open(Path(shutil.copytree(world / name, folder / name)))
        draw = np.random.default_rng(seed)
        vectors_NF = draw.normal(size=(domain.num_items, LENGTH)).astype(np.float32)
        store_vectors(domain, vectors_NF, "content", "content")
        if name != "boutique":  # nothing but pretraining reads second texts
            noise_NF = draw.normal(size=vectors_NF.shape, scale=0.1).astype(np.float32)
            store_vectors(domain, vectors_NF + noise_NF, "content_dropped", "dropped")
    with working_in(folder):
        sources = f"data.sources=[{folder}/bazaar, {folder}/gallery]"
        sizes = (f"model.item_encoder.length={LENGTH}", "model.item_encoder.experts=3", "train.epochs=4")
        told = pmmrec(
            "pretrain", "pretrain/unisrec", sources, *sizes, *SMALL, "objectives.seq_seq.dropped.reworded=0.5"
        )
        assert told.code == 0, told.output
    return folder


def losses(run: Path, name: str) -> list[float]:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event[name] for event in events if event["event"] == "train"]


def test_pretraining_learns_and_publishes_its_parts(home: Path) -> None:
    found = losses(home / "runs" / "unisrec", "seq_item")
    assert sum(found[-5:]) < sum(found[:5])
    checkpoint = Checkpoint.open(home / "hub" / "unisrec")
    assert set(checkpoint.parts) == {"mixture", "user_encoder"}


@pytest.mark.parametrize(
    ("recipe", "content"), [("unisrec", "model.item_encoder"), ("unisrec_transductive", "model.item_encoder.content")]
)
def test_it_is_fine_tuned_with_blocks_and_positions_as_they_were(
    home: Path, pmmrec: Pmmrec, recipe: str, content: str
) -> None:
    with working_in(home):
        where = ("--from", "unisrec", "--on", home / "boutique", f"name=to_{recipe}")
        sizes = (f"{content}.length={LENGTH}", f"{content}.experts=3", "train.epochs=3")
        told = pmmrec("finetune", f"finetune/{recipe}", *where, *sizes, *SMALL)
        assert told.code == 0, told.output
        run = home / "runs" / f"to_{recipe}"
        found = losses(run, "all")
        assert sum(found[-3:]) < sum(found[:3])
        after = Checkpoint.open(run / "checkpoint")
        opened = Checkpoint.open(home / "hub" / "unisrec"), after
        theirs, ours = (load_file(one.folder / "user_encoder" / "part.safetensors") for one in opened)
        changed = {name for name in theirs if not torch.equal(theirs[name], ours[name])}
        assert changed == {"norm.weight", "norm.bias"}
        assert ("item_table" in after.parts) == (recipe == "unisrec_transductive")
        told = pmmrec("evaluate", run / "checkpoint", home / "boutique", "--out", f"again_{recipe}", "--cache", "cache")
        assert told.code == 0, told.output
        first, again = (
            json.loads((place / "metrics.json").read_text())["domains"][0]["metrics"]["ndcg@10"]["mean"]
            for place in (run, home / f"again_{recipe}")
        )
        assert first == again
        out = f"lists_{recipe}.csv"
        told = pmmrec("score", run / "checkpoint", home / "boutique", "--top-k", 5, "--out", out, "--cache", "cache")
        assert told.code == 0, told.output
        best = [float(line.rsplit(",", 1)[1]) for line in Path(out).read_text().splitlines()[1:]]
        assert all(abs(score) <= 1 + 1e-5 for score in best)  # cosines
        told = pmmrec(
            "index", run / "checkpoint", home / "boutique", "--out", f"index_{recipe}", "--kind", "flat", "--cache", "c"
        )
        assert told.code == 0, told.output
        assert "1.0000 of exact search" in told.output


def test_what_second_texts_need_is_said_before_training(home: Path, pmmrec: Pmmrec) -> None:
    with working_in(home):
        sources = f"data.sources=[{home}/bazaar, {home}/gallery]"
        told = pmmrec(
            *("pretrain", "pretrain/unisrec", sources, f"model.item_encoder.length={LENGTH}", *SMALL),
            *("name=other", "model.item_encoder.reworded=null", "--dry-run"),
        )
        assert told.code == 2, told.output
        assert "objectives.seq_seq: asks for reworded vectors of items" in told.output
