"""A whole plan on the demo world: what is measured, kept, found stale, shown, and what fails alone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
import yaml
from command_line import SMALL, working_in
from quick_programs import quick_programs

from pmmrec.data.domain import Domain
from pmmrec.data.splits import split_of
from pmmrec.data.splits.leave_one_out import leave_one_out
from pmmrec.data.user_sample import UserSampleConfig
from pmmrec.errors import DataError, RecipeError
from pmmrec.evaluation.baselines import item_knn_baseline
from pmmrec.evaluation.ranking import rank_targets, read_ranks
from pmmrec.processes import folder_lock
from tests.real.evidence.cells import Results
from tests.real.evidence.layout import Layout
from tests.real.evidence.page import Page
from tests.real.evidence.plan import EvidencePlan
from tests.real.evidence.read_plan import read_plan
from tests.real.evidence.runner import Runner, Wanted

IDS = ["model.width=8", "train.epochs=1", "train.batch_users=16", "machine.device=cpu"]
KNOWN, UNSEEN, SEARCHED = "tiny/boutique/ids", "tiny/boutique/unseen", "tiny/boutique/searched"
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
    "searches": {"two": {"domain": "bazaar_a", "space": "finetune/spaces/small.yaml", "trials": 2}},
    "cells": {
        "tiny/boutique/baselines": {"kind": "baselines"},
        "tiny/boutique/tuned": {"kind": "tuned_baselines"},
        SEARCHED: {
            "kind": "finetune",
            "recipe": "zoo/ids/small/sasrec_in_batch",
            "from": "none",
            "seeds": [1],
            "search": "two",
            "overrides": IDS,
            "tuning": "none",
        },
        KNOWN: {
            "kind": "finetune",
            "recipe": "zoo/ids/small/sasrec_in_batch",
            "from": "none",
            "seeds": [1],
            "overrides": IDS,
            "tuning": "none",
        },
        UNSEEN: {"kind": "zero_shot", "from": "bazaar", "tuning": "none"},
    },
    "differences": [{"a": UNSEEN, "b": KNOWN}, {"a": KNOWN, "b": "tiny/boutique/baselines@popularity"}],
    "tables": {
        "tiny": {
            "title": "A tiny world",
            "rows": [
                {"cell": "tiny/boutique/baselines"},
                {"cell": "tiny/boutique/tuned"},
                {"label": "ids", "cell": KNOWN},
                {"label": "unseen", "cell": UNSEEN},
                {"label": "searched", "cell": SEARCHED},
            ],
            "columns": ["hr@10", "cpu", "trainable", "parameters", "multiply_adds"],
        }
    },
    "orderings": [
        {
            "paper": "A paper, table 1",
            "table": "tiny",
            "domains": ["boutique"],
            "systems": ["ids", "searched"],
            "why": "Forty users are too few.",
        }
    ],
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


@pytest.fixture(scope="module", autouse=True)
def _quick_programs() -> Iterator[None]:
    with quick_programs():
        yield


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
    ids, unseen, baselines = cells[KNOWN], cells[UNSEEN], cells["tiny/boutique/baselines"]
    assert [training.seed for training in ids.trainings] == [1]
    assert [point.epoch for point in ids.trainings[0].validation] == [0, 1]
    assert ids.trainings[0].cpu_s > 0
    assert ids.trainings[0].hardware.threads == 1
    assert set(baselines.systems) == {"random", "popularity", "last-item-markov", "item-knn"}
    tuned = cells["tiny/boutique/tuned"]
    assert set(tuned.systems) == {"ease", "tuned-item-knn"}
    assert (tuned.chosen.trials, tuned.chosen.cpu_s > 0) == (27, True)
    assert set(tuned.chosen.values) == {
        *("ease.regularisation", "tuned-item-knn.num_neighbours", "tuned-item-knn.shrinkage")
    }
    assert "Chosen by 27 trials" in place.page().decode()
    assert unseen.pretraining.num_epochs == 1
    strata = ids.systems["model"]
    assert strata["regular"].num_users + strata["cold"].num_users == strata["all"].num_users == 40
    difference = place.results.difference(UNSEEN, KNOWN).strata["all"].intervals["hr@10"].mean
    means = [cell.systems["model"]["all"].intervals["hr@10"].mean for cell in (unseen, ids)]
    assert difference == pytest.approx(means[0] - means[1], abs=2e-6)  # figures are kept to six decimals
    assert place.results.difference(KNOWN, "tiny/boutique/baselines@popularity") is not None


def test_a_plan_of_validation_targets_ranks_these_alone_and_each_seed_draws_its_own_users(
    tmp_path: Path, data: Path
) -> None:
    place, few, counted = Place(tmp_path, data), "tiny/boutique/few", "tiny/boutique/counted"
    kinds = {few: PLAN["cells"][KNOWN], counted: {"kind": "baselines"}, UNSEEN: PLAN["cells"][UNSEEN]}
    kinds[few] = kinds[few] | {"users": 12, "seeds": [1, 2], "blend": True}
    kinds[counted] = kinds[counted] | {"users": 12, "seeds": [1, 2]}
    rows = [{"cell": counted}, {"cell": few, "label": "few"}, {"cell": UNSEEN, "label": "unseen"}]
    tree = {key: value for key, value in PLAN.items() if key not in ("searches", "orderings")} | {
        "targets": "validation",
        "cells": kinds,
        "differences": [{"a": few, "b": f"{counted}@item-knn"}, {"a": UNSEEN, "b": few}],
        "tables": {"tiny": {"title": "A tiny world", "rows": rows}},
    }
    with working_in(place.folder):
        assert place.runner(tree).measure(Wanted(), jobs=2) == {}, place.said
    split = leave_one_out(Domain.open(place.folder / "home" / "domains" / "boutique"))
    holdout = split.holdout("validation")
    runs = [place.folder / "home" / "cells" / few / f"seed-{seed}" for seed in (1, 2)]
    for run in runs:
        assert not (run / "ranks.parquet").exists()  # the test targets were not ranked
        ranks = read_ranks(run / "evaluation" / "ranks.parquet", holdout, split.domain.user_ids, split.domain.item_ids)
        assert len(ranks) == split.domain.num_users  # of all users, whoever trains
    drawn = [yaml.safe_load((run / "recipe.yaml").read_text())["data"]["users"] for run in runs]
    assert [(users["sample"], users["seed"]) for users in drawn] == [(12, 1), (12, 2)]
    cell = place.results.cell(counted)
    knn_ranks = item_knn_baseline(split_of(split.config, split.domain, UserSampleConfig(sample=12, seed=2)), holdout)
    hits = float((rank_targets(holdout, split.domain.num_items, knn_ranks, chunk=64).rank <= 10).double().mean())
    assert cell.systems["item-knn"]["all"].by_seed["hr@10"][1] == pytest.approx(hits, abs=1e-6)
    assert place.results.difference(few, f"{counted}@item-knn").seeds == (1, 2)
    assert place.results.difference(UNSEEN, few) is not None
    Page(place.plan(tree), place.folder, place.results, ()).write(place.folder / "RESULTS.md")
    assert "`boutique`: validation targets of 40 users" in (place.folder / "RESULTS.md").read_text()


def test_a_search_comes_before_the_seeds_and_what_it_chose_is_kept(place: Place) -> None:
    cell = place.results.cell(SEARCHED)
    (found,) = (place.folder / "home" / "searches" / "bazaar_a").glob("zoo-ids-small-sasrec_in_batch-*/best.yaml")
    best = yaml.safe_load(found.read_text())
    assert cell.chosen.trials == 2
    assert cell.chosen.cpu_s > 0
    assert cell.chosen.values["train.optimizer.learning_rate"] == best["train"]["optimizer"]["learning_rate"]
    run = place.folder / "home" / "cells" / SEARCHED / "seed-1" / "recipe.yaml"
    assert (
        yaml.safe_load(run.read_text())["model"]["user_encoder"]["dropout"] == best["model"]["user_encoder"]["dropout"]
    )
    assert place.results.difference(KNOWN, SEARCHED) is not None
    page = place.page().decode()
    assert "Chosen by 2 trials, CPU" in page
    assert r"| A paper, table 1 | boutique | ids \> searched | HR@10: " in page


def test_the_work_of_one_user_is_that_of_the_user_encoder_where_items_are_known_by_id(place: Place) -> None:
    width, num_inputs, num_layers = 8, 20, 2
    products = 12 * width**2 * num_inputs  # of one layer: queries, keys, values, output, and four times the width
    attention = 2 * width * num_inputs**2
    assert place.results.cell(KNOWN).trainings[0].cost.multiply_adds == num_layers * (products + attention)


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
    failures = place.runner(tree).measure(Wanted(cells=("tiny/boutique/broken", "*/baselines")), jobs=1)
    assert list(failures) == ["tiny/boutique/broken seed 1"]
    assert "gives 39 inputs" in failures["tiny/boutique/broken seed 1"]
    assert f"wrote {place.results.cell_path('tiny/boutique/baselines')}" in place.said


@pytest.fixture
def copy(place: Place, tmp_path: Path) -> Place:
    """A folder like that of the whole plan, and data of its own, to change at will."""
    shutil.copytree(place.folder, tmp_path / "place")
    shutil.copytree(place.data, tmp_path / "data", symlinks=True)
    return Place(tmp_path / "place", tmp_path / "data")


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.json"))}


def test_what_is_stale_is_measured_again_when_that_is_asked_for(copy: Place) -> None:
    tree = json.loads(json.dumps(PLAN))
    tree["cells"][KNOWN]["overrides"] = [*IDS, "train.batch_users=10"]
    before = bytes_of(copy.results.folder)
    with working_in(copy.folder):
        assert copy.runner(tree).measure(Wanted(), jobs=1) == {}
        assert copy.said == []
        assert bytes_of(copy.results.folder) == before
        assert copy.runner(tree).measure(Wanted(stale=True), jobs=1) == {}
    assert copy.said[0] == f"started {KNOWN} seed 1"
    assert copy.runner(tree).stale() == {}
    changed = {name for name, kept in bytes_of(copy.results.folder).items() if kept != before[name]}
    assert {name for name in changed if "--" not in name} == {"tiny/boutique/ids.json"}
    assert len(changed) == 4  # and the three differences of it
    assert copy.results.cell(KNOWN).identity["recipe"]["train"]["batch_users"] == 10


def test_a_pretraining_done_again_makes_stale_what_started_from_the_one_before(copy: Place) -> None:
    tree, full = json.loads(json.dumps(PLAN)), "tiny/boutique/full"
    settings = {"recipe": "finetune/full", "overrides": ["train.epochs=1"], "tuning": "none"}
    tree["cells"][full] = {"kind": "finetune", "from": "bazaar", "seeds": [1], **settings}
    before = copy.results.cell(UNSEEN)
    index = copy.folder / "home" / "pretrained" / "bazaar" / "checkpoint" / "model_index.json"
    index.write_text(index.read_text() + "\n")  # the same settings again, which led to other weights
    assert copy.runner(tree).stale() == {}  # all that was measured is of one checkpoint
    with working_in(copy.folder):
        assert copy.runner(tree).measure(Wanted(cells=(full,)), jobs=1) == {}
    assert before.checkpoint != copy.results.cell(full).checkpoint
    assert copy.runner(tree).stale() == {UNSEEN: ["from.checkpoint"]}
    moved = index.rename(index.with_name("away"))  # where it is not here, nobody knows which of the two is the later
    assert copy.runner(tree).stale() == {UNSEEN: ["from.checkpoint"], full: ["from.checkpoint"]}
    moved.rename(index)
    with working_in(copy.folder):
        assert copy.runner(tree).measure(Wanted(stale=True), jobs=1) == {}
    assert copy.said[0] == f"started {UNSEEN} zero-shot"
    assert copy.runner(tree).stale() == {}
    copy.results.write(before.model_copy(update={"checkpoint": None}))  # a cell of those that did not tell
    assert copy.runner(tree).stale() == {}


def test_a_fresh_run_takes_the_place_of_a_whole_one_and_gives_the_same_again(copy: Place) -> None:
    run = copy.folder / "home" / "cells" / KNOWN / "seed-1"
    (run / "left-over").touch()
    before = copy.results.cell(KNOWN).systems
    with working_in(copy.folder):
        assert copy.runner().measure(Wanted(cells=(KNOWN,), fresh=True), jobs=1) == {}
    assert copy.said[0] == f"started {KNOWN} seed 1"
    assert not (run / "left-over").exists()
    assert copy.results.cell(KNOWN).systems == before


def test_a_search_whose_runs_are_gone_is_taken_from_a_result_that_records_it(copy: Place) -> None:
    (best,) = (copy.folder / "home" / "searches" / "bazaar_a").glob("*/best.yaml")
    found, before = yaml.safe_load(best.read_text()), copy.results.cell(SEARCHED)
    for folder in ("searches", "cells"):
        shutil.rmtree(copy.folder / "home" / folder)
    with working_in(copy.folder):
        assert copy.runner().measure(Wanted(cells=(SEARCHED,)), jobs=1) == {}
    assert [line for line in copy.said if line.startswith("started")] == [f"started {SEARCHED} seed 1"]
    places = {"hub": str(copy.folder / "home" / "hub"), "cache": str(copy.folder / "cache")}
    assert yaml.safe_load(best.read_text()) == {**found, **places}
    now = copy.results.cell(SEARCHED)
    assert (now.systems, now.chosen, now.identity) == (before.systems, before.chosen, before.identity)


def test_changed_data_is_imported_again_and_makes_stale_what_was_measured_on_it(copy: Place) -> None:
    path = copy.data / "boutique" / "interactions.parquet"
    actions = pq.read_table(path)
    pq.write_table(actions.slice(0, len(actions) - 1), path)
    assert copy.runner().stale() == {}  # what became of it is not known yet
    assert copy.runner().measure(Wanted(), jobs=1) == {}
    assert copy.said == ["imported boutique"]
    changes = ["domain.fingerprint"]
    assert copy.runner().stale() == dict.fromkeys(PLAN["cells"], changes)


def test_two_do_not_measure_in_the_same_folder(place: Place) -> None:
    runner = place.runner()
    with (
        folder_lock(place.folder / "home", "another"),
        pytest.raises(RecipeError, match="home: another that measures, or"),
    ):
        runner.measure(Wanted(), jobs=1)
    assert runner.measure(Wanted(), jobs=1) == {}


def test_whatever_goes_wrong_with_a_run_is_noted_and_stops_no_other(copy: Place) -> None:
    tree = json.loads(json.dumps(PLAN))
    tree["cells"]["full/boutique/ids"] = tree["cells"][KNOWN]
    tree["cells"]["later/boutique/baselines"] = {"kind": "baselines"}
    (copy.folder / "home" / "cells" / "full").touch()  # no folder can be made there
    failures = copy.runner(tree).measure(Wanted(), jobs=1)
    assert list(failures) == ["full/boutique/ids seed 1"]
    assert "NotADirectoryError" in failures["full/boutique/ids seed 1"]
    assert "(runs.py:" not in failures["full/boutique/ids seed 1"]  # the place where it was raised, not where we called
    assert any(line.startswith("[1/1] full/boutique/ids seed 1: FAILED: NotADirectoryError") for line in copy.said)
    assert copy.results.cell("later/boutique/baselines") is not None


def test_an_interrupt_stops_all_and_leaves_no_process(copy: Place) -> None:
    plan = copy.plan(PLAN)
    layout = Layout(copy.folder / "home", plan, copy.data, copy.folder / "cache")

    def interrupt(line: str) -> None:
        if line == f"started {UNSEEN} zero-shot":  # the other one is at work by now
            raise KeyboardInterrupt

    runner = Runner(plan, copy.results, layout, {**os.environ, "OMP_NUM_THREADS": "1"}, interrupt)
    with working_in(copy.folder), pytest.raises(KeyboardInterrupt):
        runner.measure(Wanted(cells=(KNOWN, UNSEEN), fresh=True), jobs=2)
    with folder_lock(copy.folder / "home", "a run that was left"):
        pass
    assert not (copy.folder / "home" / "cells" / KNOWN / "seed-1" / "evidence.json").exists()


def test_a_difference_of_other_figures_is_made_again_where_the_ranks_are_here(copy: Place) -> None:
    path = copy.results.difference_path(UNSEEN, KNOWN)
    before = path.read_bytes()
    tree = json.loads(before)
    del tree["figures"]
    path.write_text(json.dumps(tree))
    assert copy.runner().measure(Wanted(), jobs=1) == {}
    assert copy.said == [f"wrote {path}"]
    assert path.read_bytes() == before


def test_a_difference_is_never_made_of_ranks_that_are_not_those_of_the_figures(copy: Place) -> None:
    cell, path = copy.results.cell(KNOWN), copy.results.difference_path(UNSEEN, KNOWN)
    strata = cell.systems["model"]
    seeds = {name: tuple(value / 2 for value in values) for name, values in strata["all"].by_seed.items()}
    elsewhere = strata | {"all": strata["all"].model_copy(update={"by_seed": seeds})}
    copy.results.write(cell.model_copy(update={"systems": {"model": elsewhere}}))  # as if measured on another machine
    before = path.read_bytes()
    assert copy.runner().measure(Wanted(), jobs=1) == {}
    expected = f"not compared: {UNSEEN} - {KNOWN}; ranks here are of other figures, measure both here first"
    assert copy.said[0] == expected
    assert path.read_bytes() == before
    assert b"(stale)" in copy.page()


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
