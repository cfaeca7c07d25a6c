"""Every shipped way to transfer, from a published checkpoint by one command, onto every kind of platform."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pytest
from command_line import SMALL, Pmmrec, Result, sources, working_in

from pmmrec.data.demo_world import DemoWorldConfig, write_demo_world
from pmmrec.data.importers.table import TableImport, import_table
from pmmrec.zoo.checkpoint import Checkpoint

ITEMS = ("text_encoder", "vision_encoder", "fusion")
QUICK = ("train.epochs=1", "train.batch_users=16", "cache=c")


@pytest.fixture(scope="module")
def at_run(small_run: Path, tmp_path_factory: pytest.TempPathFactory):
    """A folder of our own with the hub of the tiny pretraining."""
    home = tmp_path_factory.mktemp("plans")
    shutil.copytree(small_run / "hub", home / "hub")
    with working_in(home):
        yield home


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One platform twice: `texts` without pictures, `pictures` without texts."""
    out = tmp_path_factory.mktemp("halves")
    config = DemoWorldConfig(source_users=20, source_items=30, target_users=40, target_items=36, image_side=32)
    folder = write_demo_world(out / "files", config)["boutique"]
    tables = {"interactions": folder / "interactions.csv", "k_core": None}
    import_table(TableImport(items=folder / "items.csv", name="texts", out=out / "texts", **tables))
    items = pacsv.read_csv(folder / "items.csv")
    bare_items = items.set_column(items.column_names.index("text"), "text", pa.nulls(len(items), pa.string()))
    pacsv.write_csv(bare_items, folder / "bare.csv")
    bare = TableImport(
        items=folder / "bare.csv", images=folder / "images", name="pictures", out=out / "pictures", **tables
    )
    import_table(bare)
    return out


def finetune(pmmrec: Pmmrec, plan: str, start: str, domain: Path, *settings: str) -> Result:
    return pmmrec("finetune", f"finetune/{plan}", "--from", start, "--on", domain, *QUICK, *settings)


def rows(result: Result) -> dict[tuple[str, str], str]:
    """(part, action) -> how many of its parameters learn, as the table of a transfer says it."""
    assert result.code == 0, result.output
    words = [line.replace("│", " ").split() for line in result.output.splitlines()]
    return {(w[0], w[1]): w[4] for w in words if len(w) == 5 and w[1] in {"loaded", "fresh", "dropped"}}


@pytest.mark.parametrize(
    ("plan", "loaded", "fresh", "frozen"),
    [
        ("full", (*ITEMS, "user_encoder"), (), ()),
        ("items", ITEMS, ("user_encoder",), ()),
        ("user", ("user_encoder",), ITEMS, ()),
        ("text", ("text_encoder", "user_encoder"), (), ()),
        ("vision", ("vision_encoder", "user_encoder"), (), ()),
        ("frozen", (*ITEMS, "user_encoder"), (), ITEMS),
    ],
)
def test_a_plan_moves_its_parts_and_accounts_for_the_rest(
    at_run: Path,
    world: Path,
    pmmrec: Pmmrec,
    plan: str,
    loaded: tuple[str, ...],
    fresh: tuple[str, ...],
    frozen: tuple[str, ...],
) -> None:
    told = rows(finetune(pmmrec, plan, "small", world / "boutique", f"name={plan}"))
    assert {part for part, action in told if action == "loaded"} == set(loaded)
    assert {part for part, action in told if action == "fresh"} == set(fresh)
    left = {*ITEMS, "user_encoder", "objectives/nid"} - set(loaded)
    assert {part for part, action in told if action == "dropped"} == left
    assert {part for (part, action), learns in told.items() if learns == "0"} == set(frozen)
    assert set(Checkpoint.open(at_run / "runs" / plan / "checkpoint").parts) == {*loaded, *fresh}
    assert json.loads((at_run / "runs" / plan / "metrics.json").read_text())["domains"]


def test_a_dry_run_shows_the_same_table(at_run: Path, world: Path, pmmrec: Pmmrec) -> None:
    told = rows(finetune(pmmrec, "text", "small", world / "boutique", "name=dry", "--dry-run"))
    assert told["vision_encoder", "dropped"] == "-"
    assert not (at_run / "runs" / "dry").exists()


def test_a_model_of_both_meets_a_platform_without_pictures(at_run: Path, halves: Path, pmmrec: Pmmrec) -> None:
    full = finetune(pmmrec, "full", "small", halves / "texts", "name=full_texts")
    assert rows(full)["vision_encoder", "loaded"] not in ("0", "-")
    assert "image: no item of texts has one; its encoder learns nothing here" in full.output
    text = finetune(pmmrec, "text", "small", halves / "texts", "name=text_texts")
    assert ("text_encoder", "loaded") in rows(text)
    assert "no item of texts has one" not in text.output


def test_a_model_of_both_meets_a_platform_without_texts(at_run: Path, halves: Path, pmmrec: Pmmrec) -> None:
    assert ("vision_encoder", "loaded") in rows(
        finetune(pmmrec, "vision", "small", halves / "pictures", "name=vision_pictures")
    )
    nothing = finetune(pmmrec, "text", "small", halves / "pictures", "name=none")
    assert nothing.code == 3
    assert "pictures" in nothing.output


def test_a_text_model_meets_a_platform_of_both(at_run: Path, world: Path, pmmrec: Pmmrec) -> None:
    only_text = ("model.item_encoder.vision=null", "model.item_encoder.fusion=null", "objectives.nicl=null")
    made = pmmrec("pretrain", "pretrain/tiny", *SMALL, *sources(world), *only_text, "name=texts", *QUICK)
    assert made.code == 0, made.output
    told = rows(pmmrec("finetune", "finetune/tiny", "--from", "texts", "--on", world / "boutique", *SMALL, *QUICK))
    assert {part for part, action in told if action == "loaded"} == {"text_encoder", "user_encoder"}
    assert {part for part, action in told if action == "fresh"} >= {"vision_encoder", "fusion"}
    wrong = finetune(pmmrec, "vision", "texts", world / "boutique", "name=wrong")
    assert wrong.code == 2
    assert "keeps user_encoder of" in wrong.output
    assert "that makes no item encoder; choose a plan for what it holds" in wrong.output


def test_other_widths_are_named(at_run: Path, world: Path, pmmrec: Pmmrec) -> None:
    wide = ("finetune", "finetune/tiny", "--from", "small", "--on", world / "boutique", *SMALL, *QUICK, "name=wide")
    result = pmmrec(*wide, "model.width=32")
    assert result.code == 3
    assert "of another shape in the checkpoint" in result.output
    assert "user_encoder" in result.output


def test_item_vectors_computed_once_give_the_same_training(at_run: Path, world: Path, pmmrec: Pmmrec) -> None:
    losses, found = [], []
    for name, use in (("once", "auto"), ("always", "off")):
        settings = (f"name={name}", f"prefix_cache={use}", "train.epochs=2", "train.log_every=1")
        result = finetune(pmmrec, "frozen", "small", world / "boutique", *settings)
        assert result.code == 0, result.output
        assert ("vectors were computed once" in result.output) == (use == "auto")
        lines = (at_run / "runs" / name / "events.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        losses.append([event["loss"] for event in events if event["event"] == "train"])
        found.append([event["domains"] for event in events if event["event"] == "validation"])
        found[-1].append(json.loads((at_run / "runs" / name / "metrics.json").read_text())["domains"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert found[0] == found[1]


def test_an_objective_with_nothing_to_improve_is_refused(at_run: Path, world: Path, pmmrec: Pmmrec) -> None:
    result = finetune(pmmrec, "frozen", "small", world / "boutique", "name=dead", "objectives.nicl={type: alignment}")
    assert result.code == 2
    assert "nothing of the item encoder learns" in result.output
