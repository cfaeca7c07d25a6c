"""Interactions are left out on purpose, and every row is accounted for."""

from __future__ import annotations

import hashlib
import re

import pytest
from pydantic import ValidationError

from pmmrec.data.domain import Domain
from pmmrec.data.info import Filters
from pmmrec.errors import DataError, RecipeError

LOG = "user_id,item_id,timestamp,rating\nu,a,1,5\nv,b,2,3\nu,c,3,4.5\nv,a,4,none\nu,a,5,2\nw,b,6,5\nghost,x,7,5\n"


def figures(domain: Domain) -> dict[str, tuple[int, ...]]:
    """Rows that were read, kept, rejected and filtered, by kind, from the lines that people see."""
    lines = domain.info.summary.lines()
    found = [re.fullmatch(r"(\w+): (\d+) read = (\d+) kept \+ (\d+) rejected \+ (\d+) filtered", one) for one in lines]
    return {one[1]: tuple(map(int, one.groups()[1:])) for one in found if one}


@pytest.mark.parametrize(
    ("settings", "kept", "counts"),
    [
        ({}, {"u": ["a", "c", "a"], "v": ["b", "a"], "w": ["b"]}, (7, 6, 1, 0)),
        ({"min_rating": 4}, {"u": ["a", "c"], "w": ["b"]}, (7, 3, 2, 2)),
        ({"since": "2", "until": "5"}, {"v": ["b", "a"], "u": ["c"]}, (7, 3, 1, 3)),
        ({"repeats": "first"}, {"u": ["a", "c"], "v": ["b", "a"], "w": ["b"]}, (7, 5, 1, 1)),
        ({"repeats": "last"}, {"u": ["c", "a"], "v": ["b", "a"], "w": ["b"]}, (7, 5, 1, 1)),
        ({"min_user": 2}, {"u": ["a", "c", "a"], "v": ["b", "a"]}, (7, 5, 1, 1)),
        ({"min_item": 2}, {"u": ["a", "a"], "v": ["b", "a"], "w": ["b"]}, (7, 5, 1, 1)),
        ({"min_user": 2, "min_item": 2}, {"u": ["a", "a"]}, (7, 2, 1, 4)),
    ],
)
def test_each_filter_keeps_what_it_says(shop, sequences, settings: dict, kept: dict, counts: tuple) -> None:
    shop.interactions.write_text(LOG)
    domain = shop.run(**settings)
    assert sequences(domain) == kept
    assert figures(domain)["interactions"] == counts
    assert counts[0] == sum(counts[1:])
    assert domain.info.filters == Filters(**settings)


def test_every_item_is_accounted_for(shop) -> None:
    shop.items.write_text("item_id,text\na,red\nb,\nc,hat\nd,old\n,x\n")
    shop.interactions.write_text("user_id,item_id\nu,a\nu,c\nv,a\nv,c\n")
    domain = shop.run(k_core=2)
    assert figures(domain) == {"items": (5, 2, 2, 1), "interactions": (4, 4, 0, 0)}
    assert domain.info.summary.filtered == {"item": {"outside the 2-core": 1}}


def test_reasons_name_the_rule(shop, rejected) -> None:
    shop.interactions.write_text(LOG)
    domain = shop.run(min_rating=4, since="2", repeats="last", min_user=1, min_item=1)
    reasons = {row: reason for kind, _, row, reason in rejected(domain) if kind == "interaction"}
    assert reasons == {
        1: "before 2",
        2: "rating below 4",
        4: "no readable rating",
        5: "rating below 4",
        7: "unknown item",
    }


@pytest.mark.parametrize(
    ("times", "since"),
    [
        (["1577836799", "1577836800"], "2020-01-01"),
        (["1577836799999", "1577836800000"], "2020-01-01T00:00:00"),
        (["1577836799999999", "1577836800000000"], "2020-01-01T01:00:00+01:00"),
        (["1577836799999999999", "1577836800000000000"], "2020-01-01"),
        (["2019-12-31T23:59:59.999", "2020-01-01"], "2020-01-01"),
    ],
)
def test_dates_bound_times_of_any_unit(shop, sequences, times: list[str], since: str) -> None:
    rows = [f"u,{item},{time}" for item, time in zip("ab", times, strict=True)]
    shop.interactions.write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    assert sequences(shop.run(since=since)) == {"u": ["b"]}
    assert sequences(shop.run(until=since, out=shop.folder / "other")) == {"u": ["a"]}


def test_a_sample_of_users_depends_on_the_seed_and_on_no_order(shop, sequences) -> None:
    rows = [f"u{number},a" for number in range(40)]
    shop.interactions.write_text("\n".join(["user_id,item_id", *rows]))
    first = shop.run(sample_users=7)
    shop.interactions.write_text("\n".join(["user_id,item_id", *reversed(rows)]))
    again = shop.run(sample_users=7, out=shop.folder / "again")
    other = shop.run(sample_users=7, seed=1, out=shop.folder / "other")
    chosen = [set(sequences(domain)) for domain in (first, again, other)]
    assert [len(users) for users in chosen] == [7, 7, 7]
    assert chosen[0] == chosen[1] != chosen[2]
    assert first.info.filters == Filters(sample_users=7, seed=0)
    assert figures(first)["interactions"] == (40, 7, 0, 33)


@pytest.mark.parametrize(
    ("settings", "kind", "reason"),
    [
        ({"min_rating": 6}, DataError, "no interaction is left: rating below 6 holds for all"),
        ({"since": "soon"}, RecipeError, "--from soon: neither a date"),
        ({"since": "2\u00b2"}, RecipeError, "--from 2\u00b2: neither a date"),
        ({"since": "2020-01-01"}, RecipeError, "times such as 3 are no dates"),
        (
            {"since": "1"},
            RecipeError,
            "--from 1: has no effect, times are numbers from 1 to 6; give one of the same unit",
        ),
        ({"until": "2024"}, RecipeError, "--to 2024: has no effect, times are numbers from 1 to 6"),
        ({"sample_users": 9}, RecipeError, "only 3 users are left"),
        (
            {"max_rejects": 0.1},
            DataError,
            r"1 of 7 rows are rejected, more than 10 %: unknown item \(1, the first in line \d: "
            r"column 'item_id' holds '\w+'\); mend",
        ),
        ({"seed": 3}, ValidationError, "seed has no effect without sample_users"),
        ({"k_core": 3, "min_user": 2}, ValidationError, "k_core, or min_user and min_item"),
        ({"time_format": "%d/%m/%Y"}, DataError, "7 of 7 timestamps cannot be read"),
        ({"time_format": "%!"}, RecipeError, "time format '%!'"),
    ],
)
def test_filters_that_cannot_work_are_refused(shop, settings: dict, kind: type[Exception], reason: str) -> None:
    shop.interactions.write_text(LOG)
    with pytest.raises(kind, match=reason):
        shop.run(**settings)
    assert not shop.out.exists()


def test_filters_need_the_columns_that_they_read(shop) -> None:
    with pytest.raises(DataError, match=r"no rating can be read, .* --map rating=COLUMN"):
        shop.run(min_rating=3)
    shop.interactions.write_text("user_id,item_id\nu,a\n")
    with pytest.raises(RecipeError, match="interactions have no timestamps"):
        shop.run(until="5")


def test_days_that_come_first_are_read_by_their_format(shop, sequences) -> None:
    shop.interactions.write_text(
        "user_id,item_id,timestamp\nu,a,02/03/2020 10:00\nu,b,01/04/1969 00:00\nu,c,03/02/2020 09:30\n"
    )
    domain = shop.run(time_format="%d/%m/%Y %H:%M")
    assert sequences(domain) == {"u": ["b", "c", "a"]}
    assert domain.times(0).tolist()[1:] == [1580722200000, 1583143200000]
    assert "times: read as '%d/%m/%Y %H:%M', kept as milliseconds since 1970 (UTC)" in domain.info.summary.notes


def test_what_earlier_versions_wrote_of_filters_is_what_is_written_without_new_ones(shop) -> None:
    assert shop.run().info.filters.model_dump() == {"k_core": None}


def test_users_are_drawn_by_the_hashes_of_their_ids(shop, sequences) -> None:
    ids = [f"u\u00e9{number}" for number in range(40)]
    shop.interactions.write_text("user_id,item_id\n" + "".join(f"{one},a\n" for one in ids), encoding="utf-8")
    ranked = sorted(ids, key=lambda one: hashlib.sha256(f"3/{one}".encode()).digest())
    assert set(sequences(shop.run(sample_users=9, seed=3))) == set(ranked[:9])
