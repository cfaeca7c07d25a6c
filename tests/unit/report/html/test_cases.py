"""Lists of sample users agree with the ranks of the run and the lists of its checkpoint."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pmmrec.data.domain import Domain
from pmmrec.errors import DataError
from pmmrec.evaluation.ranking import Seen
from pmmrec.report.html.cases import LETTERS_SHOWN, Case, add_lists, item_cards, sample_cases
from pmmrec.report.html.encoded_domain import EncodedDomain, SampledHistories
from pmmrec.zoo.checkpoint import Checkpoint


@pytest.fixture
def encoded(checkpoint: Path, hostile_domain: Domain, tmp_path: Path) -> EncodedDomain:
    return EncodedDomain.open(Checkpoint.open(checkpoint), hostile_domain, tmp_path / "c", torch.device("cpu"))


def shown_to(encoded: EncodedDomain, ranks: Path, num_users: int, k: int, seen: Seen, seed: int = 0) -> list[Case]:
    """Sample users with the lists of one system."""
    cases = sample_cases(encoded.split, ranks, num_users, seed)
    add_lists(cases, encoded, "ours", ranks, k, seen)
    return cases


def test_lists_agree_with_ranks(encoded: EncodedDomain, evaluated: Path) -> None:
    cases = shown_to(encoded, evaluated / "ranks.parquet", 12, 10, "exclude")
    table = pq.read_table(evaluated / "ranks.parquet")
    ranks = dict(zip(table["user_id"].to_pylist(), table["rank"].to_pylist(), strict=True))
    targets = dict(zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True))
    assert len(cases) == 12
    assert {case.user_id: case.target.item_id for case in cases} == targets
    for case in cases:
        (found,) = case.lists
        assert (found.system, found.rank) == ("ours", ranks[case.user_id])
        hits = [one.place for one in found.shown if one.is_target]
        assert [one.place for one in found.shown] == list(range(1, len(found.shown) + 1))
        assert not {one.card.item_id for one in found.shown} & {item.item_id for item in case.history}
        assert bool(hits) == found.is_hit
        if hits:
            assert hits[0] <= found.rank  # ties count against the target in ranks, and by row in lists
        else:
            assert found.rank == 0 or found.rank > len(found.shown)
    assert any(found.is_hit for case in cases for found in case.lists)


def test_all_systems_have_lists_for_the_same_users(encoded: EncodedDomain, evaluated: Path) -> None:
    ranks = evaluated / "ranks.parquet"
    cases = shown_to(encoded, ranks, 3, 5, "exclude")
    add_lists(cases, encoded, "theirs", ranks, 4, "exclude")
    assert [[(one.system, len(one.shown)) for one in case.lists] for case in cases] == 3 * [
        [("ours", 5), ("theirs", 4)]
    ]


def test_seen_items_may_be_shown_again_where_the_run_ranked_them(encoded: EncodedDomain, evaluated: Path) -> None:
    cases = shown_to(encoded, evaluated / "ranks.parquet", 12, 16, "include")
    assert all(len(case.lists[0].shown) == 16 for case in cases)


def test_a_sample_of_users_is_drawn_by_its_seed(encoded: EncodedDomain, evaluated: Path) -> None:
    ranks = evaluated / "ranks.parquet"
    first, again, other = ([c.user_id for c in sample_cases(encoded.split, ranks, 3, seed)] for seed in (0, 0, 1))
    assert first == again != other


def test_users_are_read_as_the_ranking_read_them(encoded: EncodedDomain) -> None:
    """The vector of a user does not depend on the other users."""
    users = [encoded.domain.sequence(user) for user in range(4)]
    together = encoded.user_vectors(SampledHistories.of(range(4), users))
    for place, items in enumerate(users):
        # another padding changes the order of sums in float32; measured 9.5e-7 of 4.6
        assert encoded.user_vectors(SampledHistories.of([place], [items]))[0] == pytest.approx(
            together[place], abs=2e-6
        )


@pytest.mark.parametrize(("column", "words"), [(0, "has no test target in"), (1, "another target for user")])
def test_ranks_of_another_domain_are_refused(
    encoded: EncodedDomain, evaluated: Path, tmp_path: Path, column: int, words: str
) -> None:
    table = pq.read_table(evaluated / "ranks.parquet")
    name = table.column_names[column]
    elsewhere = table.set_column(column, name, pa.array([f"x{row}" for row in range(len(table))]))
    pq.write_table(elsewhere, tmp_path / "ranks.parquet")
    with pytest.raises(DataError, match=words):
        shown_to(encoded, tmp_path / "ranks.parquet", 3, 5, "exclude")


def test_long_texts_are_cut_and_missing_pictures_are_none(hostile_domain: Domain) -> None:
    cards = item_cards(hostile_domain, [0, 1])
    assert [card.item_id for card in cards] == ["i0", "i1"]
    assert [card.picture is None for card in cards] == [False, True]
    assert all(card.text is not None and len(card.text) <= LETTERS_SHOWN for card in cards)


def test_control_characters_are_replaced(hostile_domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile_domain, "texts", lambda rows: ["a\x00b\x1bc\n\u202e" for _ in rows])
    assert item_cards(hostile_domain, [0])[0].text == "a\ufffdb\ufffdc\n\u202e"
