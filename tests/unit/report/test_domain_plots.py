"""Plots of domains show what loops count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import Pmmrec
from PIL import Image

from pmmrec.data.domain import Domain
from pmmrec.report import domain_plots
from pmmrec.report.domain_plots import draw_domains

DAY = 86_400


def made(folder: Path, times: list[int] | None) -> Domain:
    log = {"user_id": ["u", "v", "u", "u"], "item_id": ["a", "a", "b", "a"]}
    stamps = {} if times is None else {"timestamp": times}
    items = {"item_id": ["a", "b", "c"], "text": ["x", "y", "z"]}
    return Domain.from_tables(items, {**log, **stamps}, out=folder, k_core=None)


@pytest.mark.parametrize("per_second", [1, 1000, 1_000_000])
def test_times_are_counted_by_date_in_any_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_second: int
) -> None:
    monkeypatch.setattr(domain_plots, "NUM_BINS", 4)
    start = 1_600_000_000
    domain = made(tmp_path / "d", [(start + day * DAY) * per_second for day in (0, 1, 4, 4)])
    shown = domain_plots._shown(domain)
    assert shown.edges is not None
    assert np.allclose(shown.edges, [start + day * DAY for day in range(5)], rtol=0, atol=1)
    assert shown.by_time.tolist() == [1, 1, 0, 2]
    assert shown.counts.tolist() == [3, 1]
    assert shown.lengths.tolist() == [1, 3]


@pytest.mark.parametrize("times", [None, [1, 2, 3, 4]])
def test_positions_are_no_dates(tmp_path: Path, times: list[int] | None) -> None:
    domain = made(tmp_path / "d", times)
    assert domain_plots._shown(domain).edges is None
    assert draw_domains([domain]) == draw_domains([domain])


def test_stats_draw_a_picture_and_count_tokens(home: Path, world: Path, small_run: Path, pmmrec: Pmmrec) -> None:
    (vocabulary,) = (small_run / "hub" / "small").rglob("tokenizer.json")
    words = ["data", "stats", world / "bazaar", world / "gallery"]
    result = pmmrec(*words, "--plot", "new/p.png", "--tokenizer", vocabulary.parent)
    assert result.code == 0, result.output
    with Image.open(home / "new" / "p.png") as picture:
        assert picture.size == (1650, 510)
    for fact in ("sparsity, %", "words of a text, mean", "tokens of a text, mean"):
        assert fact in result.output
    assert "tokens of a text" not in pmmrec(*words).output
    refused = pmmrec(*words, "--plot", "p.jpg")
    assert (refused.code, "end its name in .png" in refused.output) == (2, True)
