"""Tables fit the console they are printed on: nothing is cut, and no number is broken."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import pytest
from command_line import Pmmrec, working_in
from rich.console import Console

from pmmrec.evaluation.significance import Interval
from pmmrec.report.tables import Percent
from pmmrec.tables import Cell, PlainTable, Sentence, console_for

NARROW = 60
WIDTHS = (40, NARROW, 80, 200)
NUMBER = re.compile(r"\d[\d.,]*")


def interval(mean: float) -> Percent:
    return Percent(Interval(mean, mean - 0.0123, mean + 0.0456))


BASELINES = ["random", "popularity", "last-item Markov", "item-kNN"]
SETTING = "recipe.train.optimizer.parts.text_encoder.backbone.learning_rate"
SYSTEMS: list[list[Cell]] = [["transfer with a long name (3 seeds)", interval(0.134), interval(0.1), 43, 12_345_678]]
TABLES = {
    "one row": PlainTable(
        "A title of several words: 1,234 users", ["system", "HR@10", "NDCG@10", "epochs", "n"], SYSTEMS
    ),
    "many columns": PlainTable(
        "", ["occurrences", "targets", *BASELINES], [[n, 1234, *map(interval, (0.1, 0.2, 0.3, 0.4))] for n in "abcd"]
    ),
    "many rows": PlainTable("", ["fact", *BASELINES], [[f"fact {n}", *[123_456_789 + n] * 4] for n in range(12)]),
    "long words": PlainTable(
        "", [SETTING, "first", "second"], [[SETTING, "1.2345e-05", "hf://someone/else@0123456789"]] * 7
    ),
    "trials": PlainTable(
        "runs/search: the best trials, by validation",
        ["trial", "ndcg@10", "best epoch", "learning_rate", "weight_decay", "user_encoder.num_layers"],
        [[f"{n:04d} (own values)", "12.34%", n, "0.001234", "null", "2"] for n in range(10)],
    ),
    "nothing": PlainTable("An empty table", ["name", "system"], []),
    "no numbers": PlainTable("", ["", "a"], [["users", None], ["items", "日本語の名前"]]),
}


def printed(table: object, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width, soft_wrap=True, highlight=False, markup=False, color_system=None).print(table)
    return file.getvalue()


def numbers_of(cells: list[Cell]) -> list[str]:
    wide = printed(PlainTable("", [""] * len(cells), [cells]), 1000)
    return NUMBER.findall(wide)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", TABLES)
def test_a_table_fits_and_loses_nothing(name: str, width: int) -> None:
    table = TABLES[name]
    text = printed(table, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    found = NUMBER.findall(text)
    for row in table.rows:
        for number in numbers_of([cell for cell in row if not isinstance(cell, str)]):
            assert number in found


def test_a_table_with_room_is_printed_as_it_is() -> None:
    text = printed(TABLES["one row"], 200)
    assert "│ transfer with a long name (3 seeds) │ 13.4 [12.2, 18.0] │" in text


def test_an_interval_goes_below_its_figure_before_anything_is_turned() -> None:
    table = PlainTable("", ["system", "HR@10", "NDCG@10"], [["transfer", interval(0.134), interval(0.1)]])
    lines = [line.split("│") for line in printed(table, 46).splitlines() if "│" in line]
    assert [[cell.strip() for cell in line[1:4]] for line in lines] == [
        ["transfer", "13.4", "10.0"],
        ["", "[12.2, 18.0]", "[8.8, 14.6]"],
    ]


def test_a_table_of_few_rows_is_turned_on_its_side() -> None:
    table = PlainTable("", ["occurrences", "targets", *BASELINES], [["0", 7, *[0.5] * 4], ["1-9", 8, *[0.25] * 4]])
    lines = [line.split("│") for line in printed(table, 40).splitlines() if "│" in line]
    assert [cell.strip() for cell in lines[0][1:4]] == ["targets", "7", "8"]
    assert [cell.strip() for cell in lines[-1][1:4]] == ["item-kNN", "0.5", "0.25"]


def test_what_fits_no_other_way_is_a_list() -> None:
    lines = printed(PlainTable("", ["setting", "first", "second"], [[SETTING, "1e-05", None]] * 7), NARROW).splitlines()
    assert lines[:4] == [SETTING[:NARROW], SETTING[NARROW:], "  first   1e-05", "  second  -"]


def test_a_sentence_is_broken_between_words() -> None:
    lines = printed(Sentence("full beats scratch on HR@10: +1.38 points [0.47, 2.29]"), 25).splitlines()
    assert [line.strip() for line in lines] == ["full beats scratch on", "HR@10: +1.38 points", "[0.47, 2.29]"]


def test_a_file_gets_tables_as_wide_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(NARROW))
    assert console_for(os.environ).width == NARROW
    monkeypatch.delenv("COLUMNS")
    assert console_for(os.environ).width >= 1000


@pytest.mark.parametrize("columns", ["0", "00", "-5", "wide", ""])
def test_a_width_that_is_none_hides_no_table(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert console_for(os.environ).width >= 1000


def test_every_table_of_every_verb_fits_sixty_columns(
    small_run: Path, world: Path, tmp_path: Path, pmmrec: Pmmrec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(NARROW))
    domain, cache = world / "boutique", ("--cache", tmp_path / "c")
    out = [tmp_path / name for name in ("a-rather-long-name-for-a-zero-shot-run", "b")]
    start = ("--from", "small", "--on", domain, "name=dry")
    commands: list[tuple[object, ...]] = [
        ("data", "stats", *(world / name for name in ("bazaar", "gallery", "boutique"))),
        ("evaluate", "small", domain, "--name", out[0].name, "--out", out[0], *cache),
        ("evaluate", "small", domain, "--scenario", "cold", *cache),
        ("evaluate", "small", domain, "--name", "b", "--popularity", 0, "--out", out[1], *cache),
        ("compare", *out),
        ("zoo", "list"),
        ("zoo", "show", "small"),
        ("zoo", "diff", "small", "runs/small/checkpoint"),
        ("finetune", "finetune/tiny", *start, "model=null", "--dry-run"),
        ("finetune", "finetune/adapter", *start, "--dry-run", "--launch", "two_cpu"),
        ("recipe", "list"),
    ]
    with working_in(small_run):
        for command in commands:
            result = pmmrec(*command)
            assert result.code == 0, result.output
            assert "…" not in result.output, command
            lines = [line for line in result.output.splitlines() if not line.startswith("warning: ")]
            if command[0] == "finetune":  # the recipe and the prose beside its tables are no tables
                lines = [line for line in lines if set(line) & set("━┃│")]
            assert lines, command
            assert max(map(len, lines)) <= NARROW, (command, result.output)
