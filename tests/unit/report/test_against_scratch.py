"""A transfer is compared with its twin from scratch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pmmrec.context import Backbone
from pmmrec.errors import RecipeError
from pmmrec.evaluation.outcome import DomainOutcome, Outcome, write_outcome
from pmmrec.evaluation.significance import Interval
from pmmrec.recipe import FinetuneRecipe
from pmmrec.report.against_scratch import against_scratch, scratch_twin, weights_asked
from pmmrec.settings import validate
from pmmrec.tables import Sentence
from pmmrec.zoo.checkpoint import Checkpoint

NUM_USERS = 40


def write_run(folder: Path, rank: int, validation: list[float]) -> Path:
    folder.mkdir()
    gain = 1 / math.log2(rank + 1) if rank <= 10 else 0.0
    metrics = {"hr@10": Interval(float(rank <= 10), 0.0, 1.0), "ndcg@10": Interval(gain, 0.0, 1.0)}
    about: dict[str, Any] = {"num_users": NUM_USERS, "num_items": 50, "seen_target": 0.0, "metrics": metrics}
    best = validation.index(max(validation))
    domains = (DomainOutcome(domain="shop", fingerprint="f", **about),)
    epochs = {"best_epoch": best, "num_epochs": len(validation) - 1}
    write_outcome(folder, Outcome(name=folder.name, kind="finetune", domains=domains, training_s=7, **epochs))
    users = [f"u{user}" for user in range(NUM_USERS)]
    columns = {"user_id": users, "item_id": users, "rank": [rank] * NUM_USERS}
    pq.write_table(pa.table(columns), folder / "ranks.parquet")
    events = [{"event": "validation", "epoch": e, "mean": {"ndcg@10": value}} for e, value in enumerate(validation)]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def lines(transfer: Path, scratch: Path) -> list[str]:
    return [word.text for word in against_scratch(transfer, scratch) if isinstance(word, Sentence)]


def test_a_transfer_that_helped_is_reported_with_its_epochs(tmp_path: Path) -> None:
    ours = write_run(tmp_path / "full", 1, [0.1, 0.3, 0.4, 0.3])
    theirs = write_run(tmp_path / "full-scratch", 30, [0.0, 0.1, 0.2, 0.3, 0.2])
    said = lines(ours, theirs)
    assert said[:3] == [
        "full: best validation NDCG@10 40.00% at epoch 2 of 3, 7 s of training",
        "full-scratch: best validation NDCG@10 30.00% at epoch 3 of 4, 7 s of training",
        "full-scratch needed 3 epoch(s) to its best; full reached it at epoch 1",
    ]
    assert said[-1] == "transfer paid: full beats full-scratch on HR@10, NDCG@10"
    assert not any("warning" in line for line in said)


def test_a_transfer_that_does_harm_is_a_warning(tmp_path: Path) -> None:
    ours = write_run(tmp_path / "full", 30, [0.1, 0.2, 0.1])
    theirs = write_run(tmp_path / "full-scratch", 1, [0.1, 0.5, 0.4])
    said = lines(ours, theirs)
    assert said[2] == "full-scratch needed 1 epoch(s) to its best; full never reached it"
    assert said[-1].startswith("warning: negative transfer: full-scratch beats full on HR@10, NDCG@10;")


def test_a_transfer_without_effect_is_reported(tmp_path: Path) -> None:
    ours, theirs = (write_run(tmp_path / name, 5, [0.1, 0.2, 0.1]) for name in ("full", "full-scratch"))
    assert lines(ours, theirs)[-1] == "transfer neither paid nor did harm, as far as 40 users and one seed can show"


def test_a_run_whose_best_epoch_is_its_last_is_a_warning(tmp_path: Path) -> None:
    ours = write_run(tmp_path / "full", 5, [0.1, 0.2, 0.1])
    theirs = write_run(tmp_path / "full-scratch", 5, [0.1, 0.2, 0.3])
    warnings = [line for line in lines(ours, theirs) if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert warnings[0].startswith("warning: full-scratch was at its best in its last epoch (2);")


def recipe(home: Path, **values: Any) -> FinetuneRecipe:
    tree = {"name": "full", "objectives": {"dap": {"type": "next_item"}}, "runs": str(home), **values}
    return validate(FinetuneRecipe, tree, "test")


@pytest.fixture
def checkpoint(small_run: Path) -> Checkpoint:
    return Checkpoint.open(small_run / "hub" / "small")


def test_the_twin_trains_the_same_model_from_scratch(tmp_path: Path, checkpoint: Checkpoint) -> None:
    ours = recipe(tmp_path, seed=7, transfer={"load": ["text_encoder", "user_encoder"], "drop": ["*"]})
    twin = scratch_twin(ours, checkpoint, {})
    assert (twin.name, twin.seed, twin.transfer) == ("full-scratch", 7, None)
    assert twin.model == twin.model_from(None) == ours.model_from(checkpoint)
    assert twin.train == ours.train
    assert twin.active_objectives == ours.active_objectives


def test_a_twin_that_could_not_be_run_is_refused_before_anything_is_trained(
    tmp_path: Path, checkpoint: Checkpoint
) -> None:
    with pytest.raises(RecipeError, match="no effect with `--from none`"):
        scratch_twin(recipe(tmp_path), None, {})
    with pytest.raises(RecipeError, match="rank_test is false"):
        scratch_twin(recipe(tmp_path, rank_test=False), checkpoint, {})
    with pytest.raises(RecipeError, match="--weights bert: has no effect, no encoder asks for these weights"):
        scratch_twin(recipe(tmp_path), checkpoint, {"bert": tmp_path})
    (tmp_path / "full-scratch").mkdir()
    with pytest.raises(RecipeError, match="full-scratch: this run exists"):
        scratch_twin(recipe(tmp_path), checkpoint, {})


def test_weights_of_parts_that_the_checkpoint_gives_are_for_the_twin_alone(checkpoint: Checkpoint) -> None:
    model = checkpoint.model_config
    text = model.item_encoder.encoders["text_encoder"].model_copy(update={"weights": "bert"})
    items = model.item_encoder.model_copy(update={"text": text})
    named = model.model_copy(update={"item_encoder": items})
    weights = {"bert": Path("bert")}
    given = {"text_encoder": Backbone(Path("part"), is_pretrained=False)}
    assert weights_asked(named, given, weights) == {}
    assert weights_asked(named, {}, weights) == weights
