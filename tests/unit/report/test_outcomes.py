"""Tables and notes present the outcomes of runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pmmrec.evaluation.baselines import BASELINES
from pmmrec.evaluation.outcome import METRICS_FILE, DomainOutcome, Outcome, StratumOutcome, read_outcome, write_outcome
from pmmrec.evaluation.significance import Interval
from pmmrec.report.outcomes import held_out_tables, popularity_tables, result_rows, stratum_notes
from pmmrec.report.tables import Percent


@pytest.fixture
def folders(small_run: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two folders with the same metrics on the same two domains."""
    run = small_run / "runs" / "small"
    pair = (tmp_path / "one", tmp_path / "two")
    for folder in pair:
        folder.mkdir()
        shutil.copyfile(run / "metrics.json", folder / "metrics.json")
    return pair


def _change(folder: Path, **values: object) -> None:
    path = folder / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_baselines_come_first_and_once_per_domain(folders: tuple[Path, Path]) -> None:
    _change(folders[1], name="other")
    found = result_rows([read_outcome(folder) for folder in folders])
    assert [domain.domain for domain, _ in found] == ["bazaar", "gallery"]
    for _, rows in found:
        assert [row.system for row in rows] == [*BASELINES, "small", "other"]
        assert [row.best_epoch is None for row in rows[:4]] == [True] * 4


def interval(mean: float) -> Interval:
    return Interval(mean, mean - 0.01, mean + 0.01)


def cold_outcome(*, learned_here: bool) -> Outcome:
    """Ten cold targets, of which three were held out and none is popular."""
    figures = {"hr@10": interval(0.5), "ndcg@10": interval(0.25)}
    baselines = {"popularity": {"hr@10": interval(0.1), "ndcg@10": interval(0.05)}}
    some = StratumOutcome(num_targets=3, metrics=figures, baselines=baselines)
    measured = {"num_users": 6, "num_items": 20, "num_targets": 10, "seen_target": 0.0, "learned_here": learned_here}
    strata = {"0": some, "1-9": some, "10-99": StratumOutcome(num_targets=0), "100+": StratumOutcome(num_targets=0)}
    found = DomainOutcome(
        domain="shop",
        fingerprint="f",
        metrics=figures,
        baselines=baselines,
        popularity=strata,
        held_out=some,
        **measured,
    )
    return Outcome(name="ours", kind="evaluate", scenario="cold", domains=(found,))


def test_the_baselines_of_an_older_metrics_file_are_read_under_their_old_key(tmp_path: Path) -> None:
    outcome = cold_outcome(learned_here=True)
    write_outcome(tmp_path, outcome)
    text = (tmp_path / METRICS_FILE).read_text()
    assert text.count('"baselines"') == 6  # of the domain, its four strata and its held-out targets
    (tmp_path / METRICS_FILE).write_text(text.replace('"baselines"', '"floors"'))
    assert read_outcome(tmp_path) == outcome


def test_one_table_has_all_popularity_strata_including_empty_ones() -> None:
    outcome = cold_outcome(learned_here=False)
    (held_out,), (popularity,) = held_out_tables(outcome), popularity_tables([outcome])
    assert held_out.title == "shop: the 3 cold held-out targets, in %"
    assert [row[0] for row in held_out.rows] == ["popularity", "ours"]
    assert [row[:2] for row in popularity.rows] == [["0", 3], ["1-9", 3], ["10-99", 0], ["100+", 0]]
    assert list(popularity.columns[2:]) == ["popularity", "ours"]
    assert popularity.rows[0][2:] == [Percent(0.05), Percent(interval(0.25))]
    assert popularity.rows[-1][2:] == [None, None]


def test_a_note_says_which_systems_have_seen_targets_of_the_training_part() -> None:
    (trained,) = stratum_notes(cold_outcome(learned_here=True))
    (zero_shot,) = stratum_notes(cold_outcome(learned_here=False))
    assert "7 of the 10 cold targets lie in the training part" in trained
    assert "ours was trained on this domain and the baselines count there, so both have seen them" in trained
    assert "ours was not trained on this domain, but the baselines count there and have seen them" in zero_shot
    (blended,) = stratum_notes(cold_outcome(learned_here=False).model_copy(update={"blend": {"popularity": 1.0}}))
    assert "but its blend and the baselines count there, so both have seen them" in blended
