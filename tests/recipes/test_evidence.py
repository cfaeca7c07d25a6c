"""A whole plan on the demo world: what is measured, kept, found stale, shown, and what fails alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
import yaml
from command_line import SMALL, working_in

from pmmrec.errors import DataError, RecipeError
from pmmrec.report.evidence.cells import Results
from pmmrec.report.evidence.layout import Layout
from pmmrec.report.evidence.page import Page
from pmmrec.report.evidence.plan import EvidencePlan, read_plan
from pmmrec.report.evidence.runner import Runner, Wanted

IDS = ["model.width=8", "train.epochs=1", "train.batch_users=16", "machine.device=cpu"]
KNOWN, UNSEEN = "tiny/boutique/ids", "tiny/boutique/unseen"
PLAN = {
    "title": "Results",
    "tunings": {"none": "not tuned"},
    "domains": {
        "bazaar_a": {"folder": "bazaar", "images": "bazaar/images", "cut": {"salt": "s", "half": "a"}},
        "boutique": {"folder": "boutique", "images": "boutique/images"},
    },
    "pretrainings": {
        "bazaar": {"recipe": "pretrain/tiny", "sources": ["bazaar_a"], "overrides": [*SMALL, "train.epochs=1"]}
    },
    "cells": {
        "tiny/boutique/floors": {"kind": "floors"},
        KNOWN: {
            "kind": "finetune",
            "recipe": "finetune/sasrec",
            "from": "none",
            "seeds": [1],
            "overrides": IDS,
            "tuning": "none",
        },
        UNSEEN: {"kind": "zero_shot", "from": "bazaar", "tuning": "none"},
    },
    "differences": [{"a": UNSEEN, "b": KNOWN}, {"a": KNOWN, "b": "tiny/boutique/floors@popularity"}],
    "tables": {
        "tiny": {
            "title": "A tiny world",
            "rows": [
                {"cell": "tiny/boutique/floors"},
                {"label": "ids", "cell": KNOWN},
                {"label": "unseen", "cell": UNSEEN},
            ],
        }
    },
}


class Place:
    """A folder in which a plan is carried out."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data, self.said = folder, data, list[str]()
        self.results = Results(folder / "results")

    def plan(self, tree: object = PLAN) -> EvidencePlan:
        (self.folder / "plan.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(tree)), sort_keys=False))
        return read_plan(self.folder / "plan.yaml")

    def runner(self, tree: object = PLAN, *, data: Path | None = None) -> Runner:
        plan = self.plan(tree)
        layout = Layout(self.folder / "home", plan, data or self.data, self.folder / "cache")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.said.clear()
        return Runner(plan, self.results, layout, environment, self.said.append)

    def page(self) -> bytes:
        Page(self.plan(), self.folder, self.results, ()).write(self.folder / "RESULTS.md")
        return (self.folder / "RESULTS.md").read_bytes()


@pytest.fixture(scope="module")
def data(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of two platforms as the folder of real data has them."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("bazaar", "boutique"):
        (folder / name).mkdir()
        (folder / name / "images").symlink_to(world / "files" / name / "images")
        for table in ("items", "interactions"):
            text = pc.ConvertOptions(column_types={"item_id": "string", "user_id": "string"})
            read = pc.read_csv(world / "files" / name / f"{table}.csv", convert_options=text)
            pq.write_table(read, folder / name / f"{table}.parquet")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Place:
    """A folder in which the whole plan was measured."""
    place = Place(tmp_path_factory.mktemp("place"), data)
    with working_in(place.folder):
        failures = place.runner().measure(Wanted(), jobs=2)
    assert failures == {}, place.said
    return place


def test_every_cell_and_every_difference_has_its_file(place: Place) -> None:
    cells = {cell_id: place.results.cell(cell_id) for cell_id in PLAN["cells"]}
    assert {cell_id for cell_id, cell in cells.items() if cell is None} == set()
    ids, unseen, floors = cells[KNOWN], cells[UNSEEN], cells["tiny/boutique/floors"]
    assert [training.seed for training in ids.trainings] == [1]
    assert [point.epoch for point in ids.trainings[0].validation] == [0, 1]
    assert ids.trainings[0].cpu_s > 0
    assert ids.trainings[0].hardware.threads == 1
    assert set(floors.systems) == {"random", "popularity", "last-item-markov", "item-knn"}
    assert unseen.pretraining.num_epochs == 1
    strata = ids.systems["model"]
    assert strata["regular"].num_users + strata["cold"].num_users == strata["all"].num_users == 40
    difference = place.results.difference(UNSEEN, KNOWN).strata["all"].intervals["hr@10"].mean
    means = [cell.systems["model"]["all"].intervals["hr@10"].mean for cell in (unseen, ids)]
    assert difference == pytest.approx(means[0] - means[1], abs=2e-6)  # figures are kept to six decimals
    assert place.results.difference(KNOWN, "tiny/boutique/floors@popularity") is not None


def test_what_is_measured_is_the_run_it_is_said_to_be(place: Place) -> None:
    run = place.folder / "home" / "cells" / KNOWN / "seed-1"
    figures = json.loads((run / "metrics.json").read_text())["domains"][0]["metrics"]["ndcg@10"]
    assert place.results.cell(KNOWN).systems["model"]["all"].intervals["ndcg@10"].mean == pytest.approx(
        figures["mean"], abs=1e-6
    )


def test_the_same_command_again_runs_nothing_and_gives_the_same_page(place: Place) -> None:
    before = place.page()
    assert place.runner().measure(Wanted(), jobs=2) == {}
    assert place.said == []
    assert place.page() == before


def test_a_cell_on_request_is_made_of_the_run_that_is_there(place: Place) -> None:
    kept = place.results.cell_path(KNOWN).read_bytes()
    place.results.cell_path(KNOWN).unlink()
    assert place.runner().measure(Wanted(cells=("*/ids",)), jobs=1) == {}
    assert [line for line in place.said if line.startswith("[")] == []
    assert place.results.cell_path(KNOWN).read_bytes() == kept


def test_without_the_data_the_page_is_the_same_and_a_cell_on_request_says_what_is_missing(
    place: Place, tmp_path: Path
) -> None:
    elsewhere = Place(tmp_path, tmp_path / "no-data")
    elsewhere.results = place.results
    runner = elsewhere.runner()
    assert runner.stale() == {}
    assert runner.measure(Wanted(), jobs=1) == {}
    assert elsewhere.page() == place.page().replace(
        b"results/", os.path.relpath(place.results.folder, tmp_path).encode() + b"/"
    )
    with pytest.raises(DataError, match=f"{KNOWN}: needs the data of boutique"):
        runner.measure(Wanted(cells=(KNOWN,)), jobs=1)


def test_another_setting_makes_a_cell_stale_and_a_cell_that_fails_stops_no_other(place: Place) -> None:
    tree = json.loads(json.dumps(PLAN))
    tree["cells"][KNOWN]["overrides"] = [*IDS, "train.batch_users=10"]
    assert place.runner(tree).stale() == {KNOWN: ["recipe.train.batch_users"]}
    tree["cells"]["tiny/boutique/broken"] = tree["cells"][KNOWN] | {"overrides": [*IDS, "data.window.size=40"]}
    failures = place.runner(tree).measure(Wanted(cells=("tiny/boutique/broken", "*/floors")), jobs=1)
    assert list(failures) == ["tiny/boutique/broken seed 1"]
    assert "gives 39 inputs" in failures["tiny/boutique/broken seed 1"]
    assert f"wrote {place.results.cell_path('tiny/boutique/floors')}" in place.said


def test_a_run_that_was_left_half_finished_is_run_again(place: Place) -> None:
    stamp = place.folder / "home" / "cells" / KNOWN / "seed-1" / "evidence.json"
    stamp.unlink()
    with working_in(place.folder):
        assert place.runner().measure(Wanted(cells=(KNOWN,)), jobs=1) == {}
    assert stamp.is_file()
    assert place.said[0] == f"started {KNOWN} seed 1"
    assert place.said[1].startswith(f"[1/1] {KNOWN} seed 1: ")
    assert place.said[1].endswith("; 0 left")


def test_a_name_that_no_cell_has_is_told(place: Place) -> None:
    with pytest.raises(RecipeError, match="--cell tiny/nowhere: no cell"):
        place.runner().measure(Wanted(cells=("tiny/nowhere",)), jobs=1)
