"""Every check of the conformance tests fails on a part that lacks the property."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from broken_data import BROKEN as BROKEN_DATA
from broken_parts import BROKEN, HasOtherKeys, ReadsAStream

from pmmrec.family import Entry
from pmmrec.models import scorers
from pmmrec.objectives import objectives
from pmmrec.testing.__main__ import table_of
from pmmrec.testing.checks import CHECKS, checks_of
from pmmrec.testing.conformance import configs_of, title
from pmmrec.testing.subjects import FAMILIES, Subject
from pmmrec.users import user_encoders


def ask(subject: Subject, name: str) -> str | None:
    (check,) = [check for check in checks_of(subject.family) if check.name == name]
    return check.run(subject)


ALL = [*BROKEN, *BROKEN_DATA]


@pytest.mark.parametrize(
    ("family", "name", "tree", "part_class", "check"), ALL, ids=[f"{row[3].__name__}-{row[4]}" for row in ALL]
)
def test_a_check_fails_on_a_part_that_lacks_the_property(
    family: Any, name: str, tree: Any, part_class: Any, check: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = family.config({"type": name, **tree})
    (tmp_path / "whole").mkdir()
    assert ask(Subject(family, config, tmp_path / "whole"), check) is None
    monkeypatch.setitem(family._entries, name, Entry(name, type(config), part_class))
    (tmp_path / "broken").mkdir()
    with pytest.raises((AssertionError, RuntimeError)):
        ask(Subject(family, config, tmp_path / "broken"), check)


def test_a_user_encoder_that_reads_a_stream_passes_every_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = user_encoders.config({"type": "gru"})
    monkeypatch.setitem(user_encoders._entries, "gru", Entry("gru", type(config), ReadsAStream))
    reasons = {check.name: check.run(Subject(user_encoders, config, tmp_path)) for check in checks_of(user_encoders)}
    assert {name for name, reason in reasons.items() if reason is not None} == {"masks", "not its own"}


def test_every_check_is_tried() -> None:
    tried = {(family.name, check) for family, _, _, _, check in ALL}
    for check in CHECKS:
        families = check.families or {family.name for family in FAMILIES}
        assert check.name == "settings" or {(name, check.name) for name in families} & tried, check.name


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_rows_of_the_table_are_told_apart(family: Any) -> None:
    titles = [title(config) for config in configs_of(family)]
    assert len(set(titles)) == len(titles)


def test_settings_that_change_when_they_are_saved_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = objectives.config({"type": "bce"})
    monkeypatch.setattr(type(config), "model_dump", lambda *_, **__: {"type": "bce", "weight": 2.0})
    with pytest.raises(AssertionError, match="settings change"):
        ask(Subject(objectives, config, tmp_path), "settings")


def test_the_table_shows_a_part_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Entry("dot", scorers["dot"].config_class, HasOtherKeys)
    monkeypatch.setattr(scorers, "_entries", {"dot": entry})
    table, failures = table_of(scorers)
    assert [failure.split(":")[:2] for failure in failures] == [
        [f"scorer {title(config)}", " keys"] for config in configs_of(scorers)
    ]
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    assert cells[-1] == ["FAILED"] * len(failures)
    assert set(cells[1]) == {"ok"}
