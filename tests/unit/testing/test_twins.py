"""A part of a plugin hands its twin to the conformance tests, and the table says where there is none."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from pmmrec.family import Entry
from pmmrec.models import scorers
from pmmrec.models.dot import Dot
from pmmrec.objectives import objectives
from pmmrec.objectives.drawn_negatives import BPR
from pmmrec.testing import __main__, twins
from pmmrec.testing.__main__ import table_of
from pmmrec.testing.twins import NO_TWIN, find_twin, twin_of
from pmmrec.testing.twins.drawn_negatives import drawn_by_loops


class TwiceBPR(BPR):
    """BPR, twice as large."""

    def forward(self, views):
        term = super().forward(views)
        return dataclasses.replace(term, sum=2 * term.sum)


@pytest.fixture(autouse=True)
def _own_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One objective and one scorer of a plugin, and twins that are forgotten after the test."""
    monkeypatch.setattr(objectives, "_entries", {"bpr": Entry("bpr", objectives["bpr"].config_class, TwiceBPR)})
    monkeypatch.setattr(scorers, "_entries", {"dot": Entry("dot", scorers["dot"].config_class, Dot)})
    find_twin(objectives, "bpr")  # the twins of the project are there
    monkeypatch.setattr(twins, "_TWINS", {})


def cells(family) -> list[str]:
    (column,) = [one for one in table_of(family)[0].columns if one.header == "twin"]
    return [str(cell) for cell in column.cells]


def test_the_table_says_where_there_is_no_twin() -> None:
    assert set(cells(objectives)) == set(cells(scorers)) == {NO_TWIN}


def test_the_twin_of_a_plugin_is_compared() -> None:
    @twin_of(objectives, "bpr")
    def twice_by_loops(objective, views):
        total, count = drawn_by_loops(objective, views)
        return 2 * total, count

    assert find_twin(objectives, "bpr") is twice_by_loops
    assert set(cells(objectives)) == {"ok"}


def test_a_part_that_is_not_its_twin_fails() -> None:
    twin_of(objectives, "bpr")(drawn_by_loops)
    assert set(cells(objectives)) == {"FAILED"}


def test_a_part_has_one_twin() -> None:
    twin_of(objectives, "bpr")(drawn_by_loops)
    with pytest.raises(ValueError, match="objective 'bpr' has a twin already; keep one"):
        twin_of(objectives, "bpr")(lambda *_: None)


def test_modules_named_on_the_command_line_bring_their_twins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "twins_of_a_plugin.py").write_text(
        "from pmmrec.models import scorers\n"
        "from pmmrec.testing import twin_of\n"
        "from pmmrec.testing.twins.scorers import dot_by_loops\n\n"
        'twin_of(scorers, "dot")(dot_by_loops)\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pmmrec.testing", "twins_of_a_plugin"])
    monkeypatch.setattr(__main__, "FAMILIES", (scorers,))
    assert __main__.main() == 0
    said = capsys.readouterr().out
    assert "every part passes every check" in said
    assert set(cells(scorers)) == {"ok"}
