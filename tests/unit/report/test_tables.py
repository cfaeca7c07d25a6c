"""Tables are readable in a terminal and in Markdown."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pmmrec.evaluation.significance import Interval
from pmmrec.report.tables import Percent, ResultRow, markdown, results, shown_names, to_markdown
from pmmrec.tables import PlainTable

NAMES = ["hr@10", "ndcg@10"]
ROWS = [
    ResultRow("item-kNN", {"hr@10": Interval(0.123, 0.11, 0.136), "ndcg@10": 0.05}),
    ResultRow("PMMRec", {"hr@10": Interval(0.2, 0.19, 0.21)}, best_epoch=12, seen_target=0.031),
]


def printed(table: PlainTable) -> str:
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(table)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]  # the StringIO of the line above
    return text


def test_metrics_are_percents_with_their_interval() -> None:
    assert to_markdown(ROWS, NAMES).splitlines() == [
        "| system | HR@10 | NDCG@10 | epochs to best | seen targets |",
        "| :-- | --: | --: | --: | --: |",
        "| item-kNN | 12.3 [11.0, 13.6] | 5.0 | - | - |",
        "| PMMRec | 20.0 [19.0, 21.0] | - | 12 | 3.1 |",
    ]


def test_empty_columns_are_left_out() -> None:
    assert results(ROWS[:1], NAMES).columns == ["system", "HR@10", "NDCG@10"]


def test_the_terminal_shows_the_same_cells() -> None:
    text = printed(results(ROWS, NAMES, title="Test"))
    for expected in ("Test", "12.3 [11.0, 13.6]", "20.0 [19.0, 21.0]", "epochs to best", " 12 ", "3.1"):
        assert expected in text


def test_markup_in_a_name_is_shown_literally() -> None:
    text = printed(results([ResultRow("[bold]my[/bold] \x1b[31mrun [/]", {})], NAMES, title="[red]t"))
    assert "[bold]my[/bold] [31mrun [/]" in text
    assert "[red]t" in text
    assert "\x1b" not in text


def test_a_name_cannot_break_out_of_its_markdown_cell() -> None:
    name = "a|b <script> `x` [link](http://y)\n| new row | **bold** _it_ \\"
    line = to_markdown([ResultRow(name, {"hr@10": 0.5})], NAMES).splitlines()[2]
    expected = r"a\|b \<script\> \`x\` \[link\](http://y) \| new row \| \*\*bold\*\* \_it\_ \\"
    assert line == f"| {expected} | 50.0 | - |"
    assert len(to_markdown([ResultRow(name, {})], NAMES).splitlines()) == 3


def test_numbers_of_any_table_are_readable() -> None:
    table = PlainTable(
        "Statistics | all",
        ["domain", "users", "mean length", "parameters", "images"],
        [["hm", 8335, 5.5712, 365_123_456.0, Percent(0.9926)], ["none_yet", 0, 0.0, None, None]],
    )
    assert markdown(table).splitlines() == [
        r"**Statistics \| all**",
        "",
        "| domain | users | mean length | parameters | images |",
        "| :-- | --: | --: | --: | --: |",
        "| hm | 8,335 | 5.571 | 365,123,456 | 99.3 |",
        r"| none\_yet | 0 | 0 | - | - |",
    ]
    assert "365,123,456" in printed(table)


def test_a_row_of_another_width_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"table 'T': row 1: 1 cells, 2 columns"):
        PlainTable("T", ["a", "b"], [[1, 2], [1]])


def test_tables_show_recall_where_queries_have_several_targets_and_the_smallest_cutoff_without_ten() -> None:
    assert shown_names(["hr@10", "ndcg@10", "hr@5", "ndcg@5"]) == ("hr@10", "ndcg@10")
    assert shown_names(["hr@40", "ndcg@40", "hr@5", "ndcg@5"]) == ("hr@5", "ndcg@5")
    assert shown_names(["hr@10", "ndcg@10", "recall@10", "map@10"]) == ("recall@10", "ndcg@10")
