"""Training on impressions: what was shown to users, and what they clicked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import SMALL, Pmmrec, working_in
from stop_recipe import assert_goes_on

from pmmrec.data.domain import Domain
from pmmrec.shipped import shipped_file

OBJECTIVES = "objectives={dap: null, nicl: null, nid: null, rcl: null, click: {type: impression_ce, not_clicked: 4}}"
SPLIT, EXAMPLES = "data.split={type: impressions, name: shown}", "data.examples={type: impressions, history: 10}"
QUICK = ("data.sources=[news]", "name=news", "cache=c", "train.epochs=4", "train.optimizer.learning_rate=5e-3")
NEWS = (*SMALL, OBJECTIVES, SPLIT, EXAMPLES, *QUICK)


@pytest.fixture
def at_news(tmp_path: Path, world: Path, pmmrec: Pmmrec):
    """A folder with a domain `news`, whose users clicked what they touched next, among popular items."""
    shutil.copytree(world / "boutique", tmp_path / "news")
    domain = Domain.open(tmp_path / "news")
    with (tmp_path / "shown.csv").open("w") as file:
        file.write("impression_id,user_id,split,known,item_id,clicked\n")
        for user in range(domain.num_users):
            items = domain.sequence(user).tolist()
            for known in range(1, len(items)):
                part = {len(items) - 1: "test", len(items) - 2: "validation"}.get(known, "train")
                others = [row for row in range(user % 5, domain.num_items, 5) if row not in items][:6]
                for row in (*others, items[known]):
                    item_id, is_clicked = domain.item_ids[row].as_py(), int(row == items[known])
                    file.write(
                        f"{user}-{known},{domain.user_ids[user].as_py()},{part},{known},{item_id},{is_clicked}\n"
                    )
    with working_in(tmp_path):
        stored = pmmrec("data", "impressions", "news", "--from", "shown.csv", "--name", "shown")
        assert stored.code == 0, stored.output
        assert "of train" in stored.output
        yield tmp_path


def events_of(kind: str) -> list[dict]:
    lines = Path("runs/news/events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def test_a_model_learns_from_impressions_and_is_ranked_on_others(at_news: Path, pmmrec: Pmmrec) -> None:
    judged = "validation={metric: auc, cutoffs: [1, 5], seen: include}"
    done = pmmrec("pretrain", "pretrain/tiny", *NEWS, judged)
    assert done.code == 0, done.output
    assert "impressions/s" in done.output
    losses = [event["loss"] for event in events_of("train")]
    assert sum(losses[-5:]) < 0.97 * sum(losses[:5])
    (measured,) = json.loads(Path("runs/news/metrics.json").read_text())["domains"]
    assert 0 <= measured["metrics"]["auc"]["mean"] <= 1


def test_the_loss_of_validation_impressions_judges_too(at_news: Path, pmmrec: Pmmrec) -> None:
    done = pmmrec("pretrain", "pretrain/tiny", *NEWS, "validation.judge=loss", "rank_test=false")
    assert done.code == 0, done.output
    losses = [event["mean"]["loss"] for event in events_of("validation")]
    assert len(losses) == 5
    assert min(losses[1:]) < losses[0]


def test_an_objective_that_counts_nothing_is_named(at_news: Path, pmmrec: Pmmrec) -> None:
    histories_of_one = "data.examples={type: impressions, history: 1}"
    next_item = "objectives.following={type: next_item}"
    done = pmmrec("pretrain", "pretrain/tiny", *NEWS, histories_of_one, next_item, "train.epochs=1", "rank_test=false")
    assert done.code == 0, done.output
    assert "following -" in done.output
    assert "objectives.following: has counted nothing so far: no example has what it compares" in done.output
    assert "objectives.click" not in done.output
    assert all("click" in event and "following" not in event for event in events_of("train"))


def test_a_training_on_impressions_that_is_stopped_goes_on_to_the_same_bits(at_news: Path) -> None:
    recipe = (shipped_file("pretrain/run.py"), "pretrain/tiny", *NEWS, f"data.sources=[{at_news / 'news'}]")
    assert_goes_on(at_news, "news", *recipe, "train.epochs=2", "train.log_every=1")


def test_a_plan_tells_the_candidates_among_the_items_of_a_step(at_news: Path, pmmrec: Pmmrec) -> None:
    done = pmmrec("pretrain", "pretrain/tiny", *NEWS, "--dry-run", "--launch", "two_cpu")
    assert done.code == 0, done.output
    assert "a step: up to 16 impressions, 8 in each of 2 processes" in done.output
    assert "items as negatives" in done.output


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("data.examples=windows",), "windows have no candidates, but objectives.click reads Shown windows"),
        (
            ("data.split={type: leave_one_out}",),
            "and data.split is leave_one_out; set data.split=",
        ),
        (
            ("data.examples={type: impressions, history: 30}",),
            "data.examples.history: 30 gives 30 inputs, but the user",
        ),
        (
            ("validation.judge=loss", "rank_test=false", "objectives.dap={type: next_item}"),
            "but objectives.dap counts items of the histories before them",
        ),
        (("data.window.size=9",), "window: has no effect with examples: impressions"),
        (
            ("model.user_encoder={type: user_table}",),
            "data.examples.history: has no effect, the user encoder reads no history; leave it out",
        ),
    ],
)
@pytest.mark.parametrize("plan", [(), ("--dry-run",)], ids=["run", "plan"])
def test_what_does_not_fit_impressions_is_refused(
    at_news: Path, pmmrec: Pmmrec, settings: tuple[str, ...], message: str, plan: tuple[str, ...]
) -> None:
    done = pmmrec("pretrain", "pretrain/tiny", *NEWS, *settings, *plan)
    assert done.code == 2, done.output
    assert message in " ".join(done.output.split())
