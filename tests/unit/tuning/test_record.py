"""The trials of a search are kept when its process ends."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import optuna
import pytest

from pmmrec.errors import DataError, MachineError, RecipeError
from pmmrec.tuning import require_optuna
from pmmrec.tuning.record import Ending, Record, best_first
from pmmrec.tuning.space import Dimension, Space

SPACE = Space(Path("space.yaml"), {"a.x": Dimension(uniform=(0, 1)), "a.kind": Dimension(choice=(None, [1, 2], "w"))})
OWN = {"a.x": 0.5, "a.kind": [1, 2]}


def _open(folder: Path, **changed: object) -> Record:
    about = {"recipe": "r", "space": {"x": [0, 1]}, **changed}
    return Record.open(folder, SPACE, about, seed=3, prune_after=1, retold=lambda told: told)


def _ended(number: int, value: float | None, state: str = "complete", message: str = "") -> Ending:
    return Ending(number, state, {}, is_own=False, value=value, best_epoch=1, num_epochs=2, seconds=3, message=message)


def test_trials_are_kept_when_the_search_is_opened_again(tmp_path: Path) -> None:
    record = _open(tmp_path)
    assert record.is_new
    record.begin_with(OWN)
    assert record.propose() == (0, OWN)
    record.end(_ended(0, 0.25))
    number, values = record.propose()
    record.end(_ended(number, None, "failed", "diverged"))
    again = _open(tmp_path)
    assert not again.is_new
    first, second = again.endings()
    assert (first.values, first.value, first.is_own, first.state) == (OWN, 0.25, True, "complete")
    assert (second.values, second.message, second.is_own, second.state) == (values, "diverged", False, "failed")
    assert best_first([second, first]) == [first]


def test_a_trial_of_a_killed_search_does_not_count_and_is_tried_again(tmp_path: Path) -> None:
    record = _open(tmp_path)
    record.begin_with(OWN)
    assert record.propose()[0] == 0
    again = _open(tmp_path)  # the first search never said how trial 0 ended
    assert again.endings() == []
    assert again.propose() == (1, OWN)
    again.give_up(1)
    assert again.propose() == (2, OWN)
    again.end(_ended(2, 0.5))
    assert [ending.is_own for ending in again.endings()] == [True]


def test_a_search_of_an_earlier_version_is_compared_in_the_words_of_today(tmp_path: Path) -> None:
    about = {"recipe": {"data": {"corruption": 3}}, "space": {}}
    Record.open(tmp_path, SPACE, about, seed=3, prune_after=1, retold=dict).begin_with(OWN)
    today = {"recipe": {"noise": 3}, "space": {}}
    with pytest.raises(RecipeError, match="holds a search with another recipe"):
        Record.open(tmp_path, SPACE, today, seed=3, prune_after=1, retold=dict)
    read = {"noise": 3}.copy
    assert not Record.open(tmp_path, SPACE, today, seed=3, prune_after=1, retold=lambda _told: read()).is_new


@pytest.mark.parametrize("content", [b"x" * 5000, b"SQLite format 3\0" + bytes(4000)])
def test_an_unreadable_record_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "study.db").write_bytes(content)
    told = r"study\.db: is not a record of a search, or was changed: put a whole copy back"
    with pytest.raises(DataError, match=told):
        _open(tmp_path)


def test_a_record_that_does_not_say_what_was_searched_is_refused(tmp_path: Path) -> None:
    _open(tmp_path).begin_with(OWN)
    with closing(sqlite3.connect(tmp_path / "study.db")) as study:
        study.execute("delete from study_user_attributes")
        study.commit()
    with pytest.raises(DataError, match=r"study\.db: does not say what was searched"):
        _open(tmp_path)


def test_a_resumed_search_proposes_the_same_as_an_uninterrupted_one(tmp_path: Path) -> None:
    proposed: dict[str, list] = {"whole": [], "stopped": []}
    for name, values in proposed.items():
        folder = tmp_path / name
        folder.mkdir()
        record = _open(folder)
        for place in range(12):  # beyond the ten that are drawn before the sampler learns
            number, tried = record.propose()
            values.append(tried)
            record.end(_ended(number, tried["a.x"]))
            record = _open(folder) if name == "stopped" and place % 5 == 4 else record
    assert proposed["whole"] == proposed["stopped"]
    assert len({tried["a.x"] for tried in proposed["whole"]}) == 12


FEW = Space(Path("few.yaml"), {"a.n": Dimension(int=(1, 3)), "a.kind": Dimension(choice=("w", [1, 2]))})


def _few(folder: Path) -> Record:
    return Record.open(folder, FEW, {"recipe": {}}, seed=3, prune_after=None, retold=lambda told: told)


def test_no_settings_are_tried_twice_and_a_small_space_is_exhausted(tmp_path: Path) -> None:
    record, tried = _few(tmp_path), list[dict]()
    record.begin_with({"a.n": 2, "a.kind": "w"})
    while (proposed := record.propose()) is not None:
        number, values = proposed
        assert values not in tried
        tried.append(values)
        record.end(_ended(number, 0.1 * values["a.n"], ("complete", "pruned", "failed")[number % 3]))
        record = _few(tmp_path) if number == 3 else record
    assert tried[0] == {"a.n": 2, "a.kind": "w"}
    assert len(tried) == FEW.num_points == 6
    assert _few(tmp_path).propose() is None


def test_settings_of_running_trials_are_not_proposed_but_those_of_interrupted_ones_are(tmp_path: Path) -> None:
    record = _few(tmp_path)
    at_work = [record.propose() for _ in range(6)]
    assert record.propose() is None
    record.give_up(at_work[4][0])
    number, values = record.propose()
    assert (number, values) == (6, at_work[4][1])
    assert record.propose() is None


def test_a_random_untried_point_is_taken_if_the_sampler_repeats_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like a sampler once one point is far better than the others."""
    monkeypatch.setattr(Record, "_sampler", lambda *_: optuna.samplers.RandomSampler(seed=1))
    record, tried = _few(tmp_path), list[dict]()
    for _ in range(6):
        number, values = record.propose()
        tried.append(values)
        record.end(_ended(number, 0.5))
    assert len({str(values) for values in tried}) == 6


def test_the_number_of_points_is_the_product_over_dimensions(tmp_path: Path) -> None:
    assert SPACE.num_points is None
    assert Space(Path("s"), {"a": Dimension(int=(0, 9)), "b": Dimension(choice=(1, 2, 3))}).num_points == 30
    assert Space(Path("s"), {"a": Dimension(int=(0, 9)), "b": Dimension(log=(1, 2))}).num_points is None


def test_a_search_with_another_recipe_or_space_is_refused(tmp_path: Path) -> None:
    _open(tmp_path)
    with pytest.raises(RecipeError, match=r"another recipe and another space, .* choose another --name"):
        _open(tmp_path, recipe="s", space={"x": [0, 2]})
    _open(tmp_path)


def test_a_trial_below_the_median_of_five_ends_after_its_guaranteed_epochs(tmp_path: Path) -> None:
    record = _open(tmp_path)
    for place in range(5):
        number, _ = record.propose()
        assert not [epoch for epoch in range(3) if record.report(number, epoch, 0.1 * place)]
        record.end(_ended(number, 0.1 * place))
    number, _ = record.propose()
    assert [record.report(number, epoch, value) for epoch, value in enumerate((0.0, 0.1, 0.1))] == [False, True, True]


def test_a_setting_with_an_effect_has_the_larger_importance(tmp_path: Path) -> None:
    record = _open(tmp_path)
    for _ in range(20):
        assert record.importances() == {}  # too few to tell
        number, tried = record.propose()
        record.end(_ended(number, tried["a.x"]))
    shares = record.importances()
    assert shares["a.x"] > shares["a.kind"]
    assert sum(shares.values()) == pytest.approx(1)


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require_optuna()
    monkeypatch.delitem(sys.modules, "optuna", raising=False)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    with pytest.raises(MachineError, match=r"tune: optuna is not installed; pip install -e '\.\[tune\]'"):
        require_optuna()
