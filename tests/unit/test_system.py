"""A loaded checkpoint: encode, recommend, evaluate."""

from __future__ import annotations

import pwd
from pathlib import Path

import pytest
import torch
from read_only import read_only

import pmmrec
from pmmrec.data.domain import Domain
from pmmrec.errors import DataError, MachineError, RecipeError
from pmmrec.system import System


@pytest.fixture
def system(small_run: Path) -> System:
    return pmmrec.load("small", hub=small_run / "hub", cache=small_run / "c", device="cpu")


def _history(domain: Domain, user: int) -> list[str]:
    return [domain.item_ids[int(row)].as_py() for row in domain.sequence(user)]


def test_a_catalogue_is_encoded_once(small_run: Path, world: Path, tmp_path: Path) -> None:
    system = pmmrec.load("small", hub=small_run / "hub", cache=tmp_path, device="cpu")
    first = system.encode_items(world / "boutique")
    calls: list[int] = []
    encoder = system._recommender.item_encoder
    encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    assert system.encode_items(str(world / "boutique")) is first
    assert calls == []
    system.encode_items(Domain.open(world / "gallery"))
    assert calls


def test_vectors_stand_in_the_order_of_the_item_ids(system: System, world: Path) -> None:
    items = system.encode_items(world / "boutique")
    assert items.vectors_ND.shape == (len(items.item_ids), 16)
    assert items.vectors_ND.dtype == torch.float32
    assert items.item_ids == Domain.open(world / "boutique").item_ids.to_pylist()


def test_recommendations_come_from_the_catalogue_encoded_last(system: System, world: Path) -> None:
    for name in ("boutique", "gallery"):
        domain = system.encode_items(world / name).domain
        best = system.recommend(_history(domain, 0), k=5)
        assert len({item for item, _ in best}) == 5
        assert {item for item, _ in best} <= set(domain.item_ids.to_pylist())
        assert [score for _, score in best] == sorted((score for _, score in best), reverse=True)


def test_scoring_another_domain_leaves_the_catalogue_as_it_was(system: System, world: Path, tmp_path: Path) -> None:
    domain = system.encode_items(world / "boutique").domain
    before = system.recommend(_history(domain, 0), k=3)
    system.score(world / "gallery", 3, tmp_path / "scores.parquet")
    assert system.recommend(_history(domain, 0), k=3) == before


def test_seen_items_are_recommended_only_when_asked_for(system: System, world: Path) -> None:
    domain = system.encode_items(world / "boutique").domain
    history = _history(domain, 0)
    num_unseen = domain.num_items - len(set(history))
    fresh = system.recommend(history, k=domain.num_items)
    assert len(fresh) == num_unseen
    assert not {item for item, _ in fresh} & set(history)
    everything = system.recommend(history, k=domain.num_items, seen="include")
    assert {item for item, _ in everything} == set(domain.item_ids.to_pylist())


def test_the_order_of_a_history_matters(system: System, world: Path) -> None:
    domain = system.encode_items(world / "boutique").domain
    history = _history(domain, 0)
    assert system.recommend(history, k=36) != system.recommend(history[::-1], k=36)


def test_recommending_without_a_catalogue_says_what_to_do(system: System) -> None:
    with pytest.raises(RecipeError, match=r"no catalogue yet; call encode_items\(domain\) first"):
        system.recommend(["x"])


def test_an_unknown_item_and_an_empty_history_are_refused(system: System, world: Path) -> None:
    domain = system.encode_items(world / "boutique").domain
    with pytest.raises(DataError, match="'no-such-item' is not an item of boutique"):
        system.recommend([*_history(domain, 0), "no-such-item"])
    with pytest.raises(RecipeError, match="the history is empty"):
        system.recommend([])
    with pytest.raises(RecipeError, match="take 1 to 36"):
        system.recommend(_history(domain, 0), k=37)


@pytest.mark.parametrize("item", [7, None, b"i1", ["i1"]])
def test_what_is_no_text_is_no_item(system: System, world: Path, item: object) -> None:
    system.encode_items(world / "boutique")
    with pytest.raises(DataError, match="is not an item of boutique; ids are strings"):
        system.recommend([item])


def test_a_rule_for_seen_items_that_there_is_not_is_refused(system: System, world: Path) -> None:
    domain = system.encode_items(world / "boutique").domain
    with pytest.raises(RecipeError, match="seen: 'included' is not a rule; choose exclude or include"):
        system.recommend(_history(domain, 0), k=1, seen="included")
    with pytest.raises(RecipeError, match="seen: 'included' is not a rule"):
        system.evaluate(domain, name="small", seen="included")


def test_a_device_that_there_is_not_is_refused(small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="device 'gpu': torch knows no such device; give cpu, cuda or cuda:1"):
        pmmrec.load("small", hub=small_run / "hub", device="gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MachineError, match="device 'cuda:1': torch finds no GPU here"):
        pmmrec.load("small", hub=small_run / "hub", device="cuda:1")


def test_places_may_be_written_as_text(small_run: Path, world: Path, tmp_path: Path) -> None:
    system = pmmrec.load("small", hub=str(small_run / "hub"), cache=str(small_run / "c"), device="cpu")
    system.evaluate(str(world / "boutique"), name="small", out=str(tmp_path / "out"))
    system.score(str(world / "boutique"), 3, str(tmp_path / "top.parquet"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "top.parquet"]


def test_an_evaluation_that_cannot_be_written_whole_leaves_nothing(
    system: System, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, outcome: object) -> None:
        raise MachineError("the disk is full")

    monkeypatch.setattr("pmmrec.system.write_outcome", refuse)
    with pytest.raises(MachineError, match="the disk is full"):
        system.evaluate(world / "boutique", name="small", out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_ranking_among_seen_items_too_gives_other_figures(system: System, world: Path) -> None:
    figures = {}
    for seen in ("exclude", "include"):
        outcome = system.evaluate(world / "boutique", name="small", seen=seen)
        assert outcome.seen == seen
        figures[seen] = outcome.domains[0].metrics["ndcg@10"].mean
    assert figures["exclude"] > figures["include"]  # fewer candidates, the same targets


def test_evaluating_writes_only_where_nothing_stands(system: System, world: Path, tmp_path: Path) -> None:
    system.evaluate(world / "boutique", name="small", out=tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"domains.json", "metrics.json", "ranks.parquet"}
    with pytest.raises(RecipeError, match="exists; choose another folder"):
        system.evaluate(world / "boutique", name="small", out=tmp_path / "out")


def test_names_are_looked_up_when_asked_for_and_others_are_none() -> None:
    assert pmmrec.System is System
    assert pmmrec.fit is pmmrec.fit
    assert callable(pmmrec.fit)
    assert set(pmmrec.__all__) == {"EncodedItems", "System", "fit", "load"}
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        pmmrec.trian  # noqa: B018 - looking it up is what is tested


def test_fit_asks_for_both_or_neither_of_on_and_start_from() -> None:
    with pytest.raises(RecipeError, match="go together"):
        pmmrec.fit("finetune/full", on="domain")


def test_fit_trains_as_the_command_line_does(home: Path, world: Path) -> None:
    tiny = ("model.width=16", "train.epochs=1", "cache=c", "machine.device=cpu", "name=fitted")
    pmmrec.fit("zoo/ids/small/sasrec_in_batch", *tiny, on=world / "boutique", start_from="none")
    assert (home / "runs" / "fitted" / "checkpoint" / "model_index.json").is_file()


def test_a_kept_catalogue_is_used_where_nothing_can_be_written(small_run: Path, world: Path, tmp_path: Path) -> None:
    def load() -> System:
        return pmmrec.load("small", hub=small_run / "hub", cache=tmp_path / "cache", device="cpu")

    domain = world / "boutique"
    expected = load().evaluate(domain, name="small")
    load().score(domain, 3, tmp_path / "before.parquet")
    with read_only(small_run / "hub", domain, tmp_path / "cache"):
        assert load().evaluate(domain, name="small") == expected
        load().score(domain, 3, tmp_path / "after.parquet")
    assert (tmp_path / "after.parquet").read_bytes() == (tmp_path / "before.parquet").read_bytes()


def test_a_cache_that_cannot_be_written_says_how_to_name_another(
    small_run: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = r"name another cache \(--cache FOLDER; cache=FOLDER in a recipe\)"
    new_items = tmp_path / "new.csv"
    new_items.write_text("item_id,text\nn1,a lamp\n")
    (tmp_path / "cache").mkdir()
    system = pmmrec.load("small", hub=small_run / "hub", cache=tmp_path / "cache", device="cpu")
    with read_only(tmp_path / "cache"):
        with pytest.raises(MachineError, match=f"cannot be kept there: Permission denied; free space or {named}"):
            system.encode_items(world / "boutique")
        with pytest.raises(MachineError, match=f"new items cannot be kept there: Permission denied; .*{named}"):
            system.score(world / "boutique", 3, tmp_path / "new.parquet", new_items=new_items)
    monkeypatch.setenv("HOME", "/dev/null")  # as for users whom nobody gave a home
    with pytest.raises(MachineError, match=f"/dev/null/.*: Not a directory; free space or {named}"):
        pmmrec.load("small", hub=small_run / "hub", device="cpu").encode_items(world / "boutique")


def test_a_user_without_a_home_folder_is_told_of_the_cache(small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: int) -> None:
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(RecipeError, match=r"no home folder here; set XDG_CACHE_HOME, or name another cache \(--"):
        pmmrec.load("small", hub=small_run / "hub", device="cpu")
    pmmrec.load("small", hub=small_run / "hub", cache="c", device="cpu")
