"""A search for settings through the command line: real runs, each in a process of its own."""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from command_line import SMALL, Pmmrec, Result, run_pmmrec, sources, working_in
from quick_programs import quick_programs
from searches import SEED, SPACE, TINY
from searches import command as _command
from searches import study as _study
from searches import trials as _trials

from pmmrec.tuning.record import Ending, Record
from pmmrec.tuning.search import Search, SearchPlan
from pmmrec.tuning.space import read_space
from pmmrec.tuning.trial import TrialProcess


@pytest.fixture(scope="module", autouse=True)
def _quick_programs() -> Iterator[None]:
    with quick_programs():
        yield


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, world: Path) -> tuple[Path, Result]:
    """A folder in which a search of two trials was run, and what it said."""
    home = tmp_path_factory.mktemp("searched")
    with working_in(home):
        result = run_pmmrec(*_command(world, "train.epochs=2"))
    assert result.code == 0, result.output
    return home, result


@pytest.fixture
def search(searched: tuple[Path, Result]) -> Iterator[Path]:
    """The folder of that search, its home being the current one."""
    with working_in(searched[0]):
        yield searched[0] / "runs" / "sasrec-tune"


def test_the_first_trial_is_the_recipe_as_it_stands(searched: tuple[Path, Result], search: Path) -> None:
    first, second = _trials(search)
    assert (first["train.optimizer.learning_rate"], first["model.user_encoder.num_layers"]) == ("0.001", "2")
    assert second["train.optimizer.learning_rate"] == "0.01"
    lines = searched[1].output.splitlines()
    assert lines[0].startswith("trial 0000  ndcg@10 ")
    assert "learning_rate=0.001  num_layers=2  the recipe's own values" in lines[0]
    assert any("0000 (own values)" in line for line in lines[2:])
    assert lines[-1] == "best settings: runs/sasrec-tune/best.yaml"


def test_a_value_is_the_best_validation_of_a_run_that_left_its_test_targets_alone(search: Path) -> None:
    for trial in _trials(search):
        folder = search / "trials" / trial["trial"]
        outcome = json.loads((folder / "metrics.json").read_text())
        assert outcome["domains"] == []
        assert float(trial["value"]) == outcome["validation"]["ndcg@10"]
        assert (int(trial["best_epoch"]), int(trial["epochs"])) == (outcome["best_epoch"], 2)
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        values = [event["mean"]["ndcg@10"] for event in events if event["event"] == "validation"]
        assert float(trial["value"]) == max(values)
    assert not list(search.rglob("ranks*.parquet"))
    assert "left alone" in (search / "trials" / "0000.log").read_text()


def test_the_checkpoint_of_the_best_trial_alone_is_kept(search: Path) -> None:
    best = max(_trials(search), key=lambda trial: float(trial["value"]))
    kept = [path.parent.name for path in search.rglob("checkpoint")]
    assert kept == [best["trial"]]


def test_runs_without_test_figures_are_not_compared(search: Path, pmmrec: Pmmrec) -> None:
    result = pmmrec("compare", search / "trials" / "0000", search / "trials" / "0001")
    assert result.code == 3
    assert "its test targets were not ranked (rank_test: false)" in result.output


def test_the_best_settings_are_a_recipe_that_gives_the_same_again(search: Path, world: Path, pmmrec: Pmmrec) -> None:
    best = max(_trials(search), key=lambda trial: float(trial["value"]))
    recipe = search / "best.yaml"
    assert pmmrec("recipe", "validate", recipe).code == 0
    command = recipe.read_text().splitlines()[1].removeprefix("# pmmrec ").split()
    result = pmmrec(*command)
    assert result.code == 0, result.output
    outcome = json.loads(Path("runs/sasrec-tune-best/metrics.json").read_text())
    assert outcome["validation"]["ndcg@10"] == float(best["value"])
    assert [found["domain"] for found in outcome["domains"]] == ["boutique"]


def test_the_same_command_goes_on_and_a_trial_that_fails_is_recorded_with_its_reason(
    search: Path, world: Path, pmmrec: Pmmrec
) -> None:
    before = _trials(search)
    result = pmmrec(*_command(world, "train.epochs=2", trials=3))
    assert result.code == 0, result.output
    *first, failed = _trials(search)
    assert first == before
    assert (failed["trial"], failed["state"], failed["value"]) == ("0002", "failed", "")
    assert failed["train.optimizer.learning_rate"] == "1e+30"
    assert "step" in failed["message"]
    assert "trial 0002  failed  best " in result.output
    assert failed["message"] in result.output


def test_files_that_went_missing_are_made_again_from_the_record(search: Path, world: Path, pmmrec: Pmmrec) -> None:
    copy = Path(shutil.copytree(search, search.with_name("copy")))
    shutil.rmtree(copy / "trials")
    for name in ("trials.csv", "best.yaml"):
        (copy / name).unlink()
    result = pmmrec(*_command(world, "train.epochs=2", "--name", "copy", trials=1))
    assert result.code == 0, result.output
    assert (copy / "trials.csv").read_text() == (search / "trials.csv").read_text()
    assert pmmrec("recipe", "validate", copy / "best.yaml").code == 0


def test_trials_whose_record_was_lost_are_left_alone(search: Path, world: Path, pmmrec: Pmmrec) -> None:
    copy = Path(shutil.copytree(search, search.with_name("lost")))
    (copy / "study.db").unlink()
    result = pmmrec(*_command(world, "train.epochs=2", "--name", "lost"))
    assert result.code == 3
    assert "lost/trials: holds 0000, but study.db lists no trial; put the record back" in result.output
    assert (copy / "trials" / "0001" / "metrics.json").is_file()


def test_another_search_of_the_same_name_is_refused(search: Path, world: Path, pmmrec: Pmmrec) -> None:
    before = _trials(search)
    for what, epochs, space in (("recipe", 3, SPACE), ("space", 2, SPACE.replace("1e-2", "1e-4"))):
        refused = pmmrec(*_command(world, f"train.epochs={epochs}", space=space, trials=9))
        assert refused.code == 2
        assert f"runs/sasrec-tune: holds a search with another {what}, whose trials would not compare" in refused.output
    with (search / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = pmmrec(*_command(world, "train.epochs=2", trials=9))
    assert refused.code == 2
    assert "a search, or a trial that it left, works here" in refused.output
    again = pmmrec(*_command(world, "train.epochs=2"))  # two there are
    assert again.code == 0
    assert "trial 000" not in again.output
    assert _trials(search) == before


def test_an_interrupt_that_was_dropped_ends_the_search_all_the_same(
    home: Path, world: Path, pmmrec: Pmmrec, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_epochs = TrialProcess.new_epochs

    def interrupted(self: TrialProcess, metric: str) -> list[tuple[int, float]]:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        return new_epochs(self, metric)

    monkeypatch.setattr(TrialProcess, "new_epochs", interrupted)
    result = pmmrec(*_command(world, "train.epochs=100000", "validation.patience=100000"))
    assert (result.code, result.output) == (130, "stopped\n")
    assert not list((home / "runs").rglob("checkpoint"))


def test_a_wrong_recipe_ends_the_search_and_leaves_its_name_free(home: Path, world: Path, pmmrec: Pmmrec) -> None:
    result = pmmrec(*_command(world, "objectives.nicl={type: alignment}", trials=5))
    assert result.code == 2
    assert "error: trial 0000: objectives.nicl: compares text with image, but the model reads ids only" in result.output
    assert not (home / "runs" / "sasrec-tune").exists()


def test_what_ends_a_later_start_leaves_the_trials_before_it(home: Path, world: Path, pmmrec: Pmmrec) -> None:
    command = _command(world, "objectives.nicl={type: alignment}", trials=5)  # a trial finds it wrong, and not before
    plan = {
        "recipe": "zoo/ids/small/sasrec_in_batch",
        "overrides": [*TINY, "objectives.nicl={type: alignment}"],
        "trials": 5,
    }
    where = {"space": "space.yaml", "start_from": "none", "on": world / "boutique"}
    search = Search(SearchPlan.model_validate({**plan, **where, "seed": SEED}), print)
    (search.folder / "trials").mkdir(parents=True)
    rules = {"prune_after": 3, "retold": dict}
    record = Record.open(search.folder, read_space(Path("space.yaml")), search.about, SEED, **rules)
    number, values = record.propose()  # an earlier start, in which a trial failed for reasons of its own
    record.end(Ending(number=number, state="failed", values=values, is_own=False, message="the disk was full"))
    result = pmmrec(*command)
    assert result.code == 2
    assert "error: trial 0001: objectives.nicl: compares text with image" in result.output
    before, fatal = _trials(search.folder)
    assert (before["trial"], before["message"]) == ("0000", "the disk was full")
    assert (fatal["trial"], fatal["state"]) == ("0001", "failed")
    assert len(_study(search.folder).get_trials()) == 2


NICL = """
objectives.nicl.temperature: {choice: [0.1, 1.0]}
objectives.nicl.positives_in_denominator: {choice: [true, false]}
"""


def test_a_pretraining_is_searched_without_publishing_and_settings_that_do_not_go_together_fail(
    home: Path, world: Path, pmmrec: Pmmrec
) -> None:
    Path("space.yaml").write_text(NICL, encoding="utf-8")
    settings = (*SMALL, *sources(world), "train.epochs=1", "cache=c", "machine.device=cpu", "publish_as=first")
    options = (
        "--space",
        "space.yaml",
        "--trials",
        2,
        "--seed",
        2,
        "--name",
        "search",
        "objectives.nicl.temperature=1.0",
    )
    result = pmmrec("tune", "pretrain/tiny", *options, *settings)
    assert result.code == 0, result.output
    complete, failed = _trials(home / "runs" / "search")
    assert (complete["state"], failed["state"]) == ("complete", "failed")
    assert "positives_in_denominator" in failed["message"]
    assert not (home / "runs" / "search" / "trials" / "0001.log").exists()  # nothing was started
    assert json.loads((home / "runs/search/trials/0000/metrics.json").read_text())["kind"] == "pretrain"
    assert not (home / "hub").exists()
    assert not (home / "runs" / "search" / "hub").exists()
    best = yaml.safe_load((home / "runs/search/best.yaml").read_text())
    assert (best["name"], best["publish_as"]) == ("search-best", "first")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("zoo/ids/small/sasrec_in_batch",), "a fine-tuning needs --from CHECKPOINT (or none) and --on DOMAIN"),
        (("zoo/ids/small/sasrec_in_batch", "--from", "nobody", "--on", "BOUTIQUE"), "no checkpoint 'nobody'"),
        (("finetune/full", "--from", "none", "--on", "BOUTIQUE"), "model: missing"),
        (
            ("zoo/ids/small/sasrec_in_batch", "--from", "none", "--on", "BOUTIQUE", "train.epoch=1"),
            "did you mean 'epochs'?",
        ),
        (("zoo/ids/small/sasrec_in_batch", "--from", "none", "--on", "BOUTIQUE", "--name", "a/b"), "name"),
        (
            ("zoo/ids/small/sasrec_in_batch", "--from", "none", "--on", "BOUTIQUE", "--name", "taken"),
            "taken: exists and is not a search",
        ),
        (("pretrain/tiny", "--on", "BOUTIQUE", "data.sources=[BOUTIQUE]"), "a pretraining takes neither --from nor"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_made(
    home: Path, world: Path, pmmrec: Pmmrec, arguments: tuple[str, ...], told: str
) -> None:
    Path("space.yaml").write_text(SPACE, encoding="utf-8")
    Path("runs/taken").mkdir(parents=True)
    words = [word.replace("BOUTIQUE", str(world / "boutique")) for word in arguments]
    result = pmmrec("tune", *words, "--space", "space.yaml", "--trials", 2)
    assert result.code == 2
    assert told in result.output
    assert [path.name for path in (home / "runs").iterdir()] == ["taken"]
    assert not list((home / "runs" / "taken").iterdir())
