"""Samples and merges of domains are those of plain loops, whole, and refused where they cannot be meant."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pmmrec.data.derived import parts
from pmmrec.data.derived.merge import MergeConfig, merge_domains
from pmmrec.data.derived.sample import SampleConfig, sample_domain
from pmmrec.data.domain import Domain
from pmmrec.data.importers.features import store_vectors
from pmmrec.data.importers.given_split import store_split_by
from pmmrec.data.splits.leave_one_out import LeaveOneOutConfig
from pmmrec.data.verify import verify_domain
from pmmrec.errors import DataError, RecipeError
from pmmrec.settings import validate

SEQUENCES = [[0, 1, 2, 1], [3, 0], [2, 2, 2], [1, 3, 4], [4], [5, 0, 5]]
TEXTS = ["red", "blue &lt; green", None, "hat", "cap", "shoe"]
IMAGES = [0, 2, 5]
MakeDomain = Callable[..., Domain]


@pytest.fixture
def shop(make_domain: MakeDomain) -> Domain:
    return make_domain(SEQUENCES, texts=TEXTS, images=IMAGES)


def content(domain: Domain) -> list[tuple]:
    """Everything of a domain by ids: items with their texts and images, users with their items and times."""
    rows = range(domain.num_items)
    ids = domain.item_ids.to_pylist()
    texts, images = domain.texts(list(rows)), domain.jpegs(list(rows))
    found: list[tuple] = list(zip(ids, texts, images, strict=True))
    for user, user_id in enumerate(domain.user_ids.to_pylist()):
        times = domain.times(user)
        found.append((user_id, [ids[row] for row in domain.sequence(user)], None if times is None else times.tolist()))
    return found


def drawn(ids: list[str], count: int, seed: int) -> set[str]:
    return set(sorted(ids, key=lambda one: hashlib.sha256(f"{seed}/{one}".encode()).digest())[:count])


def loops(domain: Domain, users: int | None, items: int | str, seed: int) -> list[tuple]:
    """The sample by plain loops over the content of the whole domain."""
    whole = content(domain)
    catalogue, people = whole[: domain.num_items], whole[domain.num_items :]
    kept = {one[0] for one in catalogue}
    if isinstance(items, int):
        kept = drawn([one[0] for one in catalogue], items, seed)
    shorter = []
    for user_id, touched, times in people:
        pairs = [(item, time) for item, time in zip(touched, times, strict=True) if item in kept]
        if pairs:
            shorter.append((user_id, [item for item, _ in pairs], [time for _, time in pairs]))
    if users is not None:
        chosen = drawn([one[0] for one in shorter], users, seed)
        shorter = [one for one in shorter if one[0] in chosen]
    if items == "used":
        kept = {item for _, touched, _ in shorter for item in touched}
    return [one for one in catalogue if one[0] in kept] + shorter


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("users", "items"), [(2, "used"), (3, "all"), (None, 3), (2, 4), (6, "used")])
def test_a_sample_is_that_of_loops(
    shop: Domain, tmp_path: Path, users: int | None, items: int | str, seed: int
) -> None:
    tree = {"domain": shop.folder, "out": tmp_path / "some", "name": "some", "users": users, "items": items}
    found = sample_domain(validate(SampleConfig, {**tree, "seed": seed}, "arguments"))
    assert content(found) == loops(shop, users, items, seed)
    assert verify_domain(found.folder) == []
    read, lost = found.info.summary, found.info.summary.filtered
    assert read.num_interactions_read == found.num_interactions + sum(lost.get("interaction", {}).values())
    assert read.num_items_read == found.num_items + sum(lost.get("item", {}).values())
    assert found.info.filters.sample_users == users


def test_a_smaller_sample_is_part_of_a_larger_one(shop: Domain, tmp_path: Path) -> None:
    ids = []
    for users in (2, 4):
        tree = {"domain": shop.folder, "out": tmp_path / f"s{users}", "name": "s", "users": users}
        ids.append(set(sample_domain(validate(SampleConfig, tree, "arguments")).user_ids.to_pylist()))
    assert ids[0] < ids[1]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"users": 7}, "--users 7: only 6 users are left"),
        ({"items": 9}, "--items 9: only 6 items are left"),
        ({}, "nothing would be left out"),
        ({"items": 0}, "1 or more"),
    ],
)
def test_a_sample_that_cannot_be_drawn_is_refused(shop: Domain, tmp_path: Path, asked: dict, told: str) -> None:
    tree = {"domain": shop.folder, "out": tmp_path / "some", "name": "some", **asked}
    with pytest.raises(RecipeError, match=told):
        sample_domain(validate(SampleConfig, tree, "arguments"))
    assert not (tmp_path / "some").exists()


def merged(tmp_path: Path, *domains: Domain, **settings: str) -> Domain:
    tree = {"domains": [domain.folder for domain in domains], "out": tmp_path / "both", "name": "both", **settings}
    return merge_domains(validate(MergeConfig, tree, "arguments"))


@pytest.fixture
def other(make_domain: MakeDomain) -> Domain:
    """Shares items i00 to i02 and users u00 and u01 with the shop."""
    return make_domain([[0, 1], [2, 0, 2]], name="other", texts=["a", "b", "c"], images=[1])


def _no_links(path: Path, target: Path) -> None:
    raise OSError("no links here")


@pytest.mark.parametrize("can_link", [True, False])
def test_a_merge_is_one_after_the_other(
    shop: Domain, other: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_link: bool
) -> None:
    if not can_link:
        monkeypatch.setattr(Path, "hardlink_to", _no_links)
    both = merged(tmp_path, shop, other, same_ids="prefix")
    assert verify_domain(both.folder) == []
    items, users = ({f"{kind}{number:02d}" for number in range(count)} for kind, count in (("i", 3), ("u", 2)))

    def named(domain: Domain) -> list[tuple]:
        prefix = {one: f"{domain.name}:{one}" for one in items | users}
        return [
            (prefix.get(one[0], one[0]), [prefix.get(item, item) for item in one[1]], *one[2:])
            if isinstance(one[1], list)
            else (prefix.get(one[0], one[0]), *one[1:])
            for one in content(domain)
        ]

    first, second = named(shop), named(other)
    ours, theirs = shop.num_items, other.num_items
    assert content(both) == first[:ours] + second[:theirs] + first[ours:] + second[theirs:]
    assert "items: 6 ids occur in several domains and now begin with the name of theirs" in both.info.summary.notes
    same = (both.folder / "images-2.arrow").stat().st_ino == (other.folder / "images.arrow").stat().st_ino
    assert same is can_link


def test_a_domain_without_images_merges_with_one_that_has_some(
    shop: Domain, make_domain: MakeDomain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "BARE_AT_ONCE", 2)
    plain = make_domain([[0, 1, 2]], name="plain")
    both = merged(tmp_path, plain, shop, same_ids="prefix")
    assert verify_domain(both.folder) == []
    assert both.jpegs(range(9)) == [None] * 3 + shop.jpegs(range(6))


def test_equal_ids_are_refused_unless_a_prefix_is_asked_for(shop: Domain, other: Domain, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"3 item ids occur in several of shop, other.*--same-ids prefix"):
        merged(tmp_path, shop, other)
    with pytest.raises(RecipeError, match="a domain is named twice"):
        merged(tmp_path, shop, shop, same_ids="prefix")
    assert not (tmp_path / "both").exists()


def test_times_of_several_units_are_not_merged(make_domain: MakeDomain, tmp_path: Path) -> None:
    seconds = make_domain([[0, 1]], name="seconds", times=[[1_600_000_000, 1_600_000_001]])
    finer = make_domain([[0, 1]], name="finer", times=[[1_600_000_000_000, 1_600_000_001_000]])
    with pytest.raises(DataError, match="seconds has seconds, finer has milliseconds"):
        merged(tmp_path, seconds, finer, same_ids="prefix")


def test_features_that_all_parts_have_are_taken_over_and_what_is_not_is_named(
    shop: Domain, other: Domain, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    vectors = {one.name: rng.standard_normal((one.num_items, 2, 3), dtype=np.float32) for one in (shop, other)}
    vectors[shop.name][1] = np.nan  # has none
    for one in (shop, other):
        store_vectors(one, vectors[one.name], "grid", "encoder.npy")
        store_vectors(one, vectors[one.name][:, 0], "one", f"of {one.name}.npy")
    store_split_by(shop.folder, validate(LeaveOneOutConfig, {}, "x"), "paper")
    shop, other = Domain.open(shop.folder), Domain.open(other.folder)
    both = merged(tmp_path, shop, other, same_ids="prefix")
    told = f"features of {other.name} not taken over: one; `pmmrec data features` stores them again"
    assert told in both.info.summary.notes
    assert f"splits of {shop.name} not taken over: paper; `pmmrec data split` stores them again" in (
        both.info.summary.notes
    )
    assert list(both.info.features) == ["grid"]
    part = sample_domain(
        validate(SampleConfig, {"domain": shop.folder, "users": 2, "out": tmp_path / "part", "name": "part"}, "x")
    )
    assert list(part.info.features) == ["grid", "one"]
    rows = shop.rows_of(part.item_ids.to_pylist())
    for made, expected in (
        (both, np.concatenate([vectors[shop.name], vectors[other.name]])),
        (part, vectors[shop.name][rows]),
    ):
        assert verify_domain(made.folder) == []
        table, has = made.feature("grid"), ~np.isnan(expected).all(axis=(1, 2))
        assert (table.has_N == has).all()
        np.testing.assert_array_equal(table.read(np.arange(made.num_items))[has], expected[has])
