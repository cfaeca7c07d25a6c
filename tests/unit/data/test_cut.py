"""Two halves of a platform share no user, and each keeps all interactions of its users."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pmmrec.data.cut import UserCut, cut_users
from pmmrec.errors import DataError

USERS = [f"u{user}" for user in range(200)]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Items i0 .. i299 and two interactions a user: with the item of its number and with the one 100 further on."""
    items, interactions = tmp_path / "items.parquet", tmp_path / "interactions.parquet"
    pq.write_table(pa.table({"item_id": [f"i{row}" for row in range(301)], "text": ["a"] * 301}), items)
    rows = [(user, f"i{number + step}", step) for step in (0, 100) for number, user in enumerate(USERS)]
    pq.write_table(
        pa.table(dict(zip(("user_id", "item_id", "timestamp"), zip(*rows, strict=True), strict=True))), interactions
    )
    return items, interactions


def half(
    files: tuple[Path, Path], out: Path, **settings: object
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    items, interactions = cut_users(*files, UserCut.model_validate({"salt": "s", **settings}), out)
    return pq.read_table(items).to_pylist(), pq.read_table(interactions).to_pylist()


def test_halves_share_no_user_and_cover_all_users(files: tuple[Path, Path], tmp_path: Path) -> None:
    users = [{row["user_id"] for row in half(files, tmp_path / name, half=name)[1]} for name in ("a", "b")]
    assert users[0] & users[1] == set()
    assert users[0] | users[1] == set(USERS)


def test_users_keep_their_interactions_in_order_and_untouched_items_are_left_out(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    items, interactions = half(files, tmp_path / "a", half="a")
    kept = {row["user_id"] for row in interactions}
    assert interactions == [row for row in pq.read_table(files[1]).to_pylist() if row["user_id"] in kept]
    assert [row["item_id"] for row in items] == sorted(
        {row["item_id"] for row in interactions}, key=lambda item: int(str(item)[1:])
    )


def test_who_is_in_which_half_is_the_hash_of_salt_and_id(files: tuple[Path, Path], tmp_path: Path) -> None:
    expected = set()
    for user in USERS:
        share = int(hashlib.sha256(f"s/{user}".encode()).hexdigest()[:16], 16) / 2**64
        if share < 0.25:
            expected.add(user)
    assert {row["user_id"] for row in half(files, tmp_path / "a", half="a", share=0.25)[1]} == expected
    assert 30 <= len(expected) <= 70  # 200 draws of 0.25: 50 with a deviation of 6.1


def test_another_salt_draws_other_users(files: tuple[Path, Path], tmp_path: Path) -> None:
    one, other = (half(files, tmp_path / salt, half="a", salt=salt)[1] for salt in ("s", "t"))
    assert one != other


def test_a_half_without_users_and_a_file_without_its_columns_are_refused(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"interactions\.parquet: half a of salt 's' has no user"):
        half(files, tmp_path / "a", half="a", share=1e-9)
    with pytest.raises(DataError, match=r"items\.parquet: has no column user_id"):
        cut_users(files[0], files[0], UserCut(salt="s", half="a"), tmp_path / "b")
    assert not list(tmp_path.glob("[ab]/*"))
