"""PeterRec: blocks that were pretrained on ids serve another platform, where adapters and new items learn."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from command_line import Pmmrec, working_in
from safetensors.torch import load_file

WHERE = ("machine.device=cpu", "cache=c", "train.batch_users=16", "train.epochs=2")


@pytest.mark.parametrize("parallel", ["false", "true"])
def test_adapters_second_norms_cls_and_new_items_learn_alone(
    world: Path, tmp_path: Path, pmmrec: Pmmrec, parallel: str
) -> None:
    with working_in(tmp_path):
        sources = f"data.sources=[{world / 'bazaar'}]"
        told = pmmrec("pretrain", "pretrain/peterrec", sources, "model.width=16", "hub=hub", *WHERE)
        assert told.code == 0, told.output
        small = ("adapters.user_encoder.width=4", f"adapters.user_encoder.parallel={parallel}", "name=after")
        told = pmmrec("finetune", "zoo/ids/peterrec", "--from", "peterrec", "--on", world / "boutique", *WHERE, *small)
        assert told.code == 0, told.output
        actions = {tuple(line.replace("│", " ").split()[:2]) for line in told.output.splitlines()}
        assert {("item_table", "fresh"), ("user_encoder", "loaded")} <= actions
        after = Path("runs/after/checkpoint")
        kept = {path.relative_to(after).as_posix(): set(load_file(path)) for path in after.rglob("*.safetensors")}
        norms = {f"blocks.{block}.second_norm.{kind}" for block in range(4) for kind in ("weight", "bias")}
        places = [f"blocks.{block}.{which}.weights" for block in range(4) for which in ("first", "second")]
        ends = [f"adapter.{layer}.{kind}" for layer in ("down", "up") for kind in ("weight", "bias")]
        assert kept == {
            "item_table/part.safetensors": {"vector.weight", "catalogue_bytes"},
            "adapters/user_encoder/part.safetensors": {"cls.weight", *norms},
            "adapters/user_encoder/adapter_model.safetensors": {f"{place}.{end}" for place in places for end in ends},
        }
        for verb in (("zoo", "verify", after), ("score", after, world / "boutique", "--top-k", 5, "--out", "l.csv")):
            told = pmmrec(*verb)
            assert told.code == 0, told.output


def test_users_of_both_platforms_are_read_by_both_where_these_share_a_catalogue(
    world: Path, tmp_path: Path, pmmrec: Pmmrec
) -> None:
    files = world / "files" / "boutique"
    rows = list(csv.DictReader((files / "interactions.csv").open()))
    first = set(sorted({row["item_id"] for row in rows})[::2])
    later = [{**row, "timestamp": int(row["timestamp"]) + 10**9 * (row["item_id"] not in first)} for row in rows]
    with working_in(tmp_path):
        for name, some in (("first", [row for row in rows if row["item_id"] in first]), ("both", later)):
            with Path(f"{name}.csv").open("w", newline="") as file:
                table = csv.DictWriter(file, list(rows[0]))
                table.writeheader()
                table.writerows(some)
            tables = ("--items", files / "items.csv", "--interactions", f"{name}.csv", "--k-core", "none")
            told = pmmrec("data", "import", "table", *tables, "--name", name, "--out", name)
            assert told.code == 0, told.output
        told = pmmrec("pretrain", "pretrain/peterrec", "data.sources=[first]", "model.width=16", "hub=hub", *WHERE)
        assert told.code == 0, told.output
        train = "adapters.train=[item_table, user_encoder.cls, user_encoder.blocks.0.second_norm]"
        changed = ("transfer=full", "adapters.user_encoder.width=4", train, "name=after")
        told = pmmrec("finetune", "zoo/ids/peterrec", "--from", "peterrec", "--on", "both", *WHERE, *changed)
        assert told.code == 0, told.output
        actions = {tuple(line.replace("│", " ").split()[:2]) for line in told.output.splitlines()}
        assert {("item_table", "loaded"), ("user_encoder", "loaded")} <= actions


def test_a_checkpoint_without_cls_is_refused_in_one_line(world: Path, tmp_path: Path, pmmrec: Pmmrec) -> None:
    with working_in(tmp_path):
        where = ("--on", world / "boutique", *WHERE)
        told = pmmrec("finetune", "zoo/ids/nextitnet", "--from", "none", *where, "model.width=16", "name=plain")
        assert told.code == 0, told.output
        told = pmmrec("finetune", "zoo/ids/peterrec", "--from", "runs/plain/checkpoint", *where)
        message = "adapters.train: user_encoder.cls: no such module with weights"
        assert (told.code, message in " ".join(told.output.split())) == (2, True), told.output
