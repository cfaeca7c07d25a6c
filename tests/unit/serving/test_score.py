"""Lists for many users hold the right users and items, and survive interrupted runs."""

from __future__ import annotations

import errno
from pathlib import Path

import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import torch
from command_line import Pmmrec

import pmmrec as api
from pmmrec.contracts import History, UserStates
from pmmrec.data.domain import Domain
from pmmrec.errors import DataError, MachineError, RecipeError
from pmmrec.evaluation.share import Share
from pmmrec.serving import lists as lists_module
from pmmrec.serving import score
from pmmrec.serving.lists import SCHEMA
from pmmrec.system import System

K = 4


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def warned() -> list[str]:
    return []


@pytest.fixture
def system(small_run: Path, cache: Path, warned: list[str]) -> System:
    return api.load("small", hub=small_run / "hub", cache=cache, device="cpu", warn=warned.append)


@pytest.fixture
def domain(world: Path) -> Path:
    return world / "boutique"


def lists(path: Path) -> dict[str, list[tuple[str, float]]]:
    found: dict[str, list[tuple[str, float]]] = {}
    for row in pq.read_table(path).to_pylist():
        found.setdefault(row["user_id"], []).append((row["item_id"], row["score"]))
        assert row["rank"] == len(found[row["user_id"]])
    return found


def test_every_user_gets_what_recommend_gives(system: System, domain: Path, tmp_path: Path) -> None:
    scored = system.score(domain, K, tmp_path / "top.parquet")
    opened, found = system.encode_items(domain).domain, lists(tmp_path / "top.parquet")
    assert list(found) == opened.user_ids.to_pylist()
    assert (scored.num_users, scored.num_rows) == (opened.num_users, K * opened.num_users)
    for user, user_id in enumerate(found):
        history = [opened.item_ids[int(row)].as_py() for row in opened.sequence(user)]
        best = system.recommend(history, K)
        assert [item for item, _ in found[user_id]] == [item for item, _ in best]
        assert [one for _, one in found[user_id]] == pytest.approx([one for _, one in best], rel=1e-5)


def test_chunks_of_users_change_nothing(
    system: System, domain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.score(domain, K, tmp_path / "one.parquet")
    monkeypatch.setattr(score, "USERS_AT_ONCE", 3)
    system.score(domain, K, tmp_path / "other.parquet")
    one, other = lists(tmp_path / "one.parquet"), lists(tmp_path / "other.parquet")
    assert {user: [item for item, _ in best] for user, best in one.items()} == {
        user: [item for item, _ in best] for user, best in other.items()
    }


def test_only_users_of_a_file_get_lists(system: System, domain: Path, tmp_path: Path) -> None:
    (tmp_path / "users.txt").write_text("\n".join(reversed(_users(domain)[3:9])))
    scored = system.score(domain, K, tmp_path / "some.parquet", users=tmp_path / "users.txt")
    system.score(domain, K, tmp_path / "all.parquet")
    some, everybody = lists(tmp_path / "some.parquet"), lists(tmp_path / "all.parquet")
    assert list(some) == _users(domain)[3:9]  # in the order of the domain
    assert scored.num_users == 6
    for user_id, best in some.items():
        assert [item for item, _ in best] == [item for item, _ in everybody[user_id]]


def test_unknown_users_are_an_error_unless_they_are_skipped(
    system: System, domain: Path, tmp_path: Path, warned: list[str]
) -> None:
    known = _users(domain)[0]
    (tmp_path / "users.csv").write_text(f"user_id\nstranger\n{known}\nother\n")
    asked = {"users": tmp_path / "users.csv"}
    with pytest.raises(DataError, match="2 of 3 are not users of the domain: 'stranger', 'other'; ids are text"):
        system.score(domain, K, tmp_path / "top.parquet", **asked)
    assert not (tmp_path / "top.parquet").exists()
    system.score(domain, K, tmp_path / "top.parquet", **asked, skip_unknown=True)
    assert list(lists(tmp_path / "top.parquet")) == [known]
    assert any("'stranger', 'other'; they are left out" in line for line in warned)
    (tmp_path / "users.csv").write_text("user_id\nstranger\n")
    with pytest.raises(DataError, match="1 of 1 are not users"):
        system.score(domain, K, tmp_path / "none.parquet", **asked, skip_unknown=True)


def test_seen_items_are_listed_only_when_asked_for(system: System, domain: Path, tmp_path: Path) -> None:
    opened = Domain.open(domain)
    system.score(domain, opened.num_items, tmp_path / "new.parquet")
    system.score(domain, opened.num_items, tmp_path / "all.parquet", seen="include")
    new, everything = lists(tmp_path / "new.parquet"), lists(tmp_path / "all.parquet")
    for user, user_id in enumerate(_users(domain)):
        history = {opened.item_ids[int(row)].as_py() for row in opened.sequence(user)}
        assert {item for item, _ in new[user_id]} == set(opened.item_ids.to_pylist()) - history
        assert len(everything[user_id]) == opened.num_items


def test_new_items_are_candidates_beside_those_of_the_domain(
    system: System, domain: Path, tmp_path: Path, warned: list[str], cache: Path
) -> None:
    opened = Domain.open(domain)
    text = opened.texts(range(1))[0]
    (tmp_path / "new.csv").write_text(f'item_id,text\nfresh,"{text}"\nbare,\nother,something else\n')
    system.score(domain, 38, tmp_path / "top.parquet", seen="include", new_items=tmp_path / "new.csv")
    found = lists(tmp_path / "top.parquet")
    for best in found.values():
        assert {item for item, _ in best} == {*opened.item_ids.to_pylist(), "fresh", "other"}
    assert any("1 x item left out: neither text nor image" in line for line in warned)
    assert not list(cache.glob("new-items-*"))
    with pytest.raises(RecipeError, match="--top-k 39: boutique has only 38 items"):
        system.score(domain, 39, tmp_path / "more.parquet", new_items=tmp_path / "new.csv")


def test_a_new_item_with_a_picture_scores_as_its_twin_in_the_domain(
    system: System, domain: Path, tmp_path: Path
) -> None:
    opened = Domain.open(domain)
    twin = opened.item_ids[0].as_py()
    (tmp_path / "new.csv").write_text(f'item_id,text\nfresh,"{opened.texts(range(1))[0]}"\n')
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "fresh.jpg").write_bytes(opened.jpegs(range(1))[0])
    new = {"new_items": tmp_path / "new.csv", "new_images": tmp_path / "pictures"}
    system.score(domain, 37, tmp_path / "top.parquet", seen="include", **new)
    for best in lists(tmp_path / "top.parquet").values():
        scores = dict(best)
        assert scores["fresh"] == pytest.approx(scores[twin], abs=0.05)  # its JPEG was written a second time


def test_a_new_item_that_the_domain_has_is_refused(system: System, domain: Path, tmp_path: Path) -> None:
    known = Domain.open(domain).item_ids[5].as_py()
    (tmp_path / "new.csv").write_text(f"item_id,text\nfresh,a\n{known},b\n")
    calls: list[int] = []
    system._model_for(Domain.open(domain)).item_encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(DataError, match=f"1 of 2 items are already items of boutique: '{known}'; leave them out"):
        system.score(domain, K, tmp_path / "top.parquet", new_items=tmp_path / "new.csv")
    assert not calls  # before anything is encoded
    with pytest.raises(RecipeError, match="--new-images: has no effect without --new-items"):
        system.score(domain, K, tmp_path / "top.parquet", new_images=tmp_path)


def test_a_catalogue_is_encoded_once_and_reused(small_run: Path, domain: Path, tmp_path: Path, system: System) -> None:
    system.score(domain, K, tmp_path / "one.parquet")
    later = api.load("small", hub=small_run / "hub", cache=system._cache, device="cpu")
    calls: list[int] = []
    later._model_for(Domain.open(domain)).item_encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    later.score(domain, K, tmp_path / "other.parquet")
    assert not calls
    assert lists(tmp_path / "one.parquet") == lists(tmp_path / "other.parquet")


def test_parts_of_several_processes_join_to_the_table_of_one(system: System, domain: Path, tmp_path: Path) -> None:
    system.score(domain, K, tmp_path / "one.parquet")
    for index in (2, 0, 1):
        assert not (tmp_path / "many").exists()
        system.score(domain, K, tmp_path / "many", share=Share(index, 3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many", "one.parquet"]
    assert [path.name for path in sorted((tmp_path / "many").iterdir())] == [
        f"part-{index:05d}-of-00003.parquet" for index in range(3)
    ]
    joined = pq.read_table(tmp_path / "many").select(["user_id", "rank", "item_id"])
    assert joined.equals(pq.read_table(tmp_path / "one.parquet").select(["user_id", "rank", "item_id"]))


def test_finished_parts_of_a_killed_run_are_kept_and_those_of_another_table_removed(
    system: System, domain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.score(domain, K + 1, tmp_path / "many", share=Share(0, 2))  # of another table
    system.score(domain, K, tmp_path / "many", share=Share(0, 2))
    assert len(list(tmp_path.glob("many-*.incomplete"))) == 2
    monkeypatch.setattr(score, "write_lists", lambda *_: pytest.fail("the part was there"))
    scored = system.score(domain, K, tmp_path / "many", share=Share(0, 2))
    assert scored.num_rows == K * 20
    monkeypatch.undo()
    system.score(domain, K, tmp_path / "many", share=Share(1, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["many"]
    assert len(lists(tmp_path / "many")) == 40


def test_an_existing_output_is_refused_before_any_work(
    small_run: Path, domain: Path, tmp_path: Path, pmmrec: Pmmrec
) -> None:
    (tmp_path / "top.parquet").write_text("mine")
    asked = (domain, "--out", tmp_path / "top.parquet", "--hub", small_run / "hub", "--cache", tmp_path / "c")
    result = pmmrec("score", "small", *asked)
    assert result.code == 2
    assert "exists; choose another name or remove it" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["top.parquet"]
    assert (tmp_path / "top.parquet").read_text() == "mine"


def test_a_format_that_cannot_be_written_is_refused_before_any_work(
    small_run: Path, domain: Path, tmp_path: Path, pmmrec: Pmmrec
) -> None:
    asked = (domain, "--out", tmp_path / "top.xlsx", "--hub", small_run / "hub", "--cache", tmp_path / "c")
    result = pmmrec("score", "small", *asked)
    told = f"error: --out {tmp_path / 'top.xlsx'}: cannot write .xlsx files; end the name in .csv or .jsonl or .parquet"
    assert (result.code, result.output.strip()) == (2, told)
    assert not list(tmp_path.iterdir())


def test_csv_is_written_under_the_name_of_csv(system: System, domain: Path, tmp_path: Path) -> None:
    system.score(domain, K, tmp_path / "top.csv")
    system.score(domain, K, tmp_path / "top.parquet")
    rows = pacsv.read_csv(tmp_path / "top.csv", convert_options=pacsv.ConvertOptions(column_types=SCHEMA))
    assert rows.equals(pq.read_table(tmp_path / "top.parquet"))


def test_an_output_that_cannot_be_made_is_refused_before_any_work(
    system: System, domain: Path, tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    before = set(cache.iterdir())
    for ask in (lambda out: system.score(domain, K, out), lambda out: system.index(domain, out)):
        with pytest.raises(MachineError, match=r"file is a file, not a folder"):
            ask(tmp_path / "file" / "lists" / "top.parquet")
        with pytest.raises(MachineError, match=r"--out /proc/top: /proc cannot be written to: "):
            ask("/proc/top")
    assert set(cache.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_tilde_in_the_output_is_expanded(
    system: System, domain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    scored = system.score(domain, K, "~/lists/top.parquet")
    assert scored.path == tmp_path / "home" / "lists" / "top.parquet"
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert len(lists(scored.path)) == 40


def test_leftovers_of_a_killed_run_are_removed_by_the_next_one(system: System, domain: Path, tmp_path: Path) -> None:
    (tmp_path / "top.parquet.incomplete").write_bytes(b"PAR1 and half a row group")
    system.score(domain, K, tmp_path / "top.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["top.parquet"]
    assert len(lists(tmp_path / "top.parquet")) == 40


def test_a_score_that_is_not_finite_names_user_and_item(
    system: System, domain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, vectors_ND = Domain.open(domain), system.encode_items(domain).vectors_ND
    latest = [int(opened.sequence(user)[-1]) for user in range(opened.num_users)]
    spoilt = next(user for user in range(10, opened.num_users) if latest[user] not in latest[:user])

    def spoil(_module: object, inputs: tuple[History], states: UserStates) -> UserStates:
        is_spoilt_B = (inputs[0].item_BLD[:, -1] == vectors_ND[latest[spoilt]]).all(dim=1)
        return UserStates(torch.where(is_spoilt_B[:, None, None], torch.nan, states.hidden_BLD), states.is_valid_BL)

    system._model_for(opened).user_encoder.register_forward_hook(spoil)
    monkeypatch.setattr(score, "USERS_AT_ONCE", 3)
    first = opened.item_ids[0].as_py()
    with pytest.raises(DataError, match=f"^user '{_users(domain)[spoilt]}': item '{first}' scores nan; scores must be"):
        system.score(domain, K, tmp_path / "top.parquet")
    assert not list(tmp_path.iterdir())


def test_an_item_whose_vector_is_not_finite_is_named(system: System, domain: Path, tmp_path: Path) -> None:
    opened = Domain.open(domain)
    with torch.no_grad():
        next(system._model_for(opened).item_encoder.parts["fusion"].parameters()).fill_(torch.nan)
    system._cache = tmp_path / "cache"
    with pytest.raises(DataError, match=r"boutique: the vector of item '[^']+' is not finite; has the model diverged"):
        system.score(domain, K, tmp_path / "top.parquet")
    assert not (tmp_path / "top.parquet").exists()


def test_a_full_disk_is_an_error_and_leaves_nothing(
    system: System, domain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(lists_module.pq.ParquetWriter):
        def write_table(self, *_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lists_module.pq, "ParquetWriter", Full)
    with pytest.raises(MachineError, match=r"top\.parquet: the disk is full"):
        system.score(domain, K, tmp_path / "top.parquet")
    assert not list(tmp_path.iterdir())


def test_the_command_prints_the_number_of_users_and_the_speed(
    small_run: Path, domain: Path, tmp_path: Path, pmmrec: Pmmrec, cache: Path
) -> None:
    (tmp_path / "users.txt").write_text(_users(domain)[0] + "\nnobody\n")
    where = ("--hub", small_run / "hub", "--cache", cache, "--out", tmp_path / "top.parquet", "--top-k", 3)
    unknown = pmmrec("score", "small", domain, *where, "--users", tmp_path / "users.txt")
    assert (unknown.code, "'nobody'" in unknown.output) == (3, True)
    told = pmmrec(
        "score", "small", domain, *where, "--users", tmp_path / "users.txt", "--skip-unknown", "--include-seen"
    )
    assert told.code == 0, told.output
    assert "top.parquet: 3 rows for 1 users in " in told.output
    assert " users/s" in told.output


def _users(domain: Path) -> list[str]:
    ids: list[str] = Domain.open(domain).user_ids.to_pylist()
    return ids
