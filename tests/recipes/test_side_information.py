"""FDSA and CARCA++, which know items by id and read stored vectors of them, run by the ordinary verbs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import Pmmrec, working_in

from pmmrec.data.domain import Domain
from pmmrec.serving.service import load_index
from pmmrec.system import load

FEATURES = "model.item_encoder.content.features"
BOTH = (f"{FEATURES}.content=12", f"{FEATURES}.image_content=9", "model.width=16")
FDSA = ("train.epochs=8", "model.user_encoder.num_layers=1", "model.user_encoder.dropout=0.1")
CARCA = ("train.epochs=20", "model.user_encoder.num_layers=1", "model.user_encoder.dropout=0", "model.scorer.dropout=0")
SYSTEMS = {
    "zoo/ids_and_content/fdsa": (*BOTH, *FDSA),
    "zoo/ids_and_content/small/fdsa": (f"{FEATURES}.content=12", *FDSA),
    "zoo/ids_and_content/carca_plus_plus": (*BOTH, *CARCA, "model.item_encoder.content_width=20"),
    "zoo/ids_and_content/small/carca_plus_plus": (f"{FEATURES}.content=12", *CARCA),
}
QUICK = ("validation.patience=20", "train.batch_users=16", "train.log_every=1")


@pytest.fixture
def boutique(world: Path, tmp_path: Path, pmmrec: Pmmrec) -> Path:
    """A copy of a platform with two stored features: item 3 has neither, and item 4 has one of them."""
    folder, draw = Path(shutil.copytree(world / "boutique", tmp_path / "boutique")), np.random.default_rng(1)
    for name, length, lacking in (("content", 12, [3]), ("image_content", 9, [3, 4])):
        vectors = draw.normal(size=(Domain.open(folder).num_items, length)).astype(np.float32)
        vectors[lacking] = np.nan
        np.save(tmp_path / f"{name}.npy", vectors)
        told = pmmrec("data", "features", folder, "--from", tmp_path / f"{name}.npy", "--name", name)
        assert told.code == 0, told.output
    return folder


@pytest.mark.parametrize("name", SYSTEMS)
def test_it_learns_is_ranked_and_makes_lists(boutique: Path, pmmrec: Pmmrec, name: str) -> None:
    with working_in(boutique.parent):
        where = ("--from", "none", "--on", boutique, "machine.device=cpu", "cache=c", "name=run")
        told = pmmrec("finetune", name, *where, *QUICK, "train.optimizer.learning_rate=1e-2", *SYSTEMS[name])
        assert told.code == 0, told.output
        run, kept = Path("runs/run"), Path("runs/run/checkpoint")
        events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
        losses = [event["loss"] for event in events if event["event"] == "train"]
        assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
        told = pmmrec("evaluate", kept, boutique, "--out", "again", "--cache", "c")
        assert told.code == 0, told.output
        ranks = [pq.read_table(place / "ranks.parquet")["rank"].to_pylist() for place in (run, Path("again"))]
        assert ranks[0] == ranks[1]
        told = pmmrec("score", kept, boutique, "--top-k", 4, "--out", "lists.csv", "--cache", "c")
        assert told.code == 0, told.output
        domain, system = Domain.open(boutique), load(kept, cache="c", device="cpu")
        system.encode_items(domain)
        rows = [line.replace('"', "").split(",") for line in Path("lists.csv").read_text().splitlines()[1:5]]
        user = [domain.sequences.user_id(row) for row in range(domain.num_users)].index(rows[0][0])
        best = system.recommend([domain.item_ids[row].as_py() for row in domain.sequence(user).tolist()], 4)
        assert [item for item, _ in best] == [row[2] for row in rows]
        assert pmmrec("zoo", "verify", kept).code == 0


def test_an_index_of_two_streams_recommends_what_the_model_does(boutique: Path, pmmrec: Pmmrec) -> None:
    with working_in(boutique.parent):
        where = ("--from", "none", "--on", boutique, "machine.device=cpu", "cache=c", "name=run")
        told = pmmrec("finetune", "zoo/ids_and_content/fdsa", *where, *QUICK, *SYSTEMS["zoo/ids_and_content/fdsa"])
        assert told.code == 0, told.output
        told = pmmrec("index", "runs/run/checkpoint", boutique, "--out", "index", "--kind", "flat", "--cache", "c")
        assert (told.code, "1.0000 of exact search" in told.output) == (0, True), told.output
        domain, system = Domain.open(boutique), load("runs/run/checkpoint", cache="c", device="cpu")
        system.encode_items(domain)
        history = [domain.item_ids[row].as_py() for row in domain.sequence(2).tolist()]
        listed, expected = load_index("index").recommend(history, 5), system.recommend(history, 5)
        assert [item for item, _ in listed] == [item for item, _ in expected]
        assert [score for _, score in listed] == pytest.approx([score for _, score in expected], abs=1e-5)


def test_scores_that_are_no_inner_product_have_no_index(boutique: Path, pmmrec: Pmmrec) -> None:
    with working_in(boutique.parent):
        where = ("--from", "none", "--on", boutique, "machine.device=cpu", "cache=c", "name=run", "train.epochs=1")
        told = pmmrec("finetune", "zoo/ids_and_content/small/carca_plus_plus", *where, f"{FEATURES}.content=12")
        assert told.code == 0, told.output
        told = pmmrec("index", "runs/run/checkpoint", boutique, "--out", "index", "--cache", "c")
        assert (told.code, "its scores are not inner products, as an index needs" in " ".join(told.output.split())) == (
            2,
            True,
        ), told.output


def test_a_stream_that_no_item_encoder_gives_is_refused_before_training(boutique: Path, pmmrec: Pmmrec) -> None:
    with working_in(boutique.parent):
        where = ("--from", "none", "--on", boutique, "machine.device=cpu", "cache=c")
        for changed, message in (
            ("model.item_encoder.join=add", "two_stream reads the stream content, which model.item_encoder: with_ids"),
            ("model.item_encoder.content_width=8", "whose vectors are 8 long, and not 64 as model.width says"),
        ):
            told = pmmrec("finetune", "zoo/ids_and_content/small/fdsa", *where, f"{FEATURES}.content=12", changed)
            assert (told.code, message in " ".join(told.output.split())) == (2, True), told.output
