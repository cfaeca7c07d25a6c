"""Kept vectors of a catalogue: the same as fresh ones, never computed twice, resumed, shared."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pmmrec.data import releases
from pmmrec.data.domain import Domain
from pmmrec.data.items import ItemReader
from pmmrec.data.releases import LIBRARIES
from pmmrec.data.splits import Split
from pmmrec.errors import DataError, MachineError
from pmmrec.evaluation import encoded
from pmmrec.evaluation.catalogue import encode_catalogue
from pmmrec.evaluation.encoded import KeptVectors, encoder_name, kept_vectors, remove_unused
from pmmrec.evaluation.share import Share
from pmmrec.models.build import ModelConfig, build
from pmmrec.models.recommender import Recommender

CPU = torch.device("cpu")
NUM_ITEMS = 23
ALIKE = [5, 9]  # say the same
BARE = 7  # says nothing


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded, "ITEMS_AT_ONCE", 2)
    monkeypatch.setattr(encoded, "ITEMS_OF_PIECE", 4)


@pytest.fixture
def reader(make_split: Callable[..., Split], make_reader: Callable[[Domain], ItemReader]) -> ItemReader:
    titles: list[str | None] = [f"{chr(ord('A') + row)} " + "long " * (row % 4) for row in range(NUM_ITEMS)]
    titles[ALIKE[1]], titles[BARE] = titles[ALIKE[0]], None
    return make_reader(make_split([[0, 1, 2]], NUM_ITEMS, titles).domain)


class Counted:
    """How many items a model was asked to encode."""

    def __init__(self, recommender: Recommender, fail_after: int | None = None) -> None:
        self.num_items, self._fail_after = 0, fail_after
        self._hook = recommender.item_encoder.register_forward_pre_hook(self._count)

    def _count(self, _module: object, inputs: tuple) -> None:
        if self._fail_after is not None and self.num_items >= self._fail_after:
            self._hook.remove()
            raise KeyboardInterrupt
        self.num_items += inputs[0].num_items


def kept(recommender: Recommender, reader: ItemReader, cache: Path, **more: object) -> torch.Tensor:
    return found(recommender, reader, cache, **more).vectors_ND


def found(recommender: Recommender, reader: ItemReader, cache: Path, **more: object) -> KeptVectors:
    told = {"weights": "w", "device": CPU, **more}
    return kept_vectors(recommender, reader, 0, cache=cache, **told)


def test_kept_vectors_are_those_of_encoding_bit_for_bit(
    recommender: Recommender, reader: ItemReader, tmp_path: Path
) -> None:
    fresh = encode_catalogue(recommender, reader, 0, NUM_ITEMS, chunk=2, device="cpu")
    for _ in range(2):
        assert torch.equal(kept(recommender, reader, tmp_path / "k"), fresh)
    assert torch.equal(fresh[ALIKE[0]], fresh[ALIKE[1]])
    assert not fresh[BARE].any()


def test_nothing_is_encoded_twice_and_the_counts_say_so(
    recommender: Recommender, reader: ItemReader, tmp_path: Path
) -> None:
    counted = Counted(recommender)
    first, second = (found(recommender, reader, tmp_path / "k") for _ in range(2))
    assert counted.num_items == first.num_encoded == second.num_kept == NUM_ITEMS - 2
    assert second.num_encoded == first.num_kept == 0
    assert first.counts() == "21 of 21 items encoded, 0 kept"
    assert second.counts() == "0 of 21 items encoded, 21 kept"


def test_a_killed_run_goes_on_where_it_was(recommender: Recommender, reader: ItemReader, tmp_path: Path) -> None:
    fresh = encode_catalogue(recommender, reader, 0, NUM_ITEMS, chunk=2, device="cpu")
    Counted(recommender, fail_after=14)
    with pytest.raises(KeyboardInterrupt):
        kept(recommender, reader, tmp_path / "k")
    again = Counted(recommender)
    assert torch.equal(kept(recommender, reader, tmp_path / "k"), fresh)
    assert again.num_items == NUM_ITEMS - 2 - 12  # three pieces of four were whole


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-3], lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda _: b""]
)
def test_a_damaged_piece_is_encoded_again(
    recommender: Recommender, reader: ItemReader, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    fresh = kept(recommender, reader, tmp_path / "k")
    piece = sorted(tmp_path.glob("k/vectors-*/*/vectors.npy"))[1]
    piece.write_bytes(damage(piece.read_bytes()))
    again = Counted(recommender)
    said: list[str] = []
    assert torch.equal(kept(recommender, reader, tmp_path / "k", say=said.append), fresh)
    assert again.num_items == 4
    assert said == [f"{piece.parent}: was damaged; item vectors are made again"]


def test_other_weights_have_other_vectors(recommender: Recommender, reader: ItemReader, tmp_path: Path) -> None:
    kept(recommender, reader, tmp_path / "k")
    torch.nn.init.zeros_(recommender.item_encoder.get_parameter("out.weight"))
    torch.nn.init.zeros_(recommender.item_encoder.get_parameter("out.bias"))
    assert not kept(recommender, reader, tmp_path / "k", weights="other").any()
    assert kept(recommender, reader, tmp_path / "k").any()


def test_processes_encode_their_own_pieces_and_then_what_is_missing(
    recommender: Recommender, reader: ItemReader, tmp_path: Path
) -> None:
    fresh = encode_catalogue(recommender, reader, 0, NUM_ITEMS, chunk=2, device="cpu")
    Counted(recommender, fail_after=8)  # the second of two dies after two of its three pieces
    with pytest.raises(KeyboardInterrupt):
        kept(recommender, reader, tmp_path / "k", share=Share(1, 2))
    assert {path.name for path in tmp_path.glob("k/vectors-*/*")} == {"000003", "000004"}
    first = Counted(recommender)
    assert torch.equal(kept(recommender, reader, tmp_path / "k", share=Share(0, 2)), fresh)
    assert first.num_items == NUM_ITEMS - 2 - 8


def test_a_piece_that_another_process_is_making_comes_last(
    recommender: Recommender, reader: ItemReader, tmp_path: Path
) -> None:
    fresh = kept(recommender, reader, tmp_path / "k")
    (group,) = tmp_path.glob("k/vectors-*")
    shutil.rmtree(group / "000000")
    shutil.rmtree(group / "000001")
    (group / ".000000.lock").touch()  # as a killed process leaves it; nobody holds it
    Counted(recommender, fail_after=4)
    with pytest.raises(KeyboardInterrupt):
        kept(recommender, reader, tmp_path / "k")
    assert (group / "000001").exists()
    assert not (group / "000000").exists()
    assert torch.equal(kept(recommender, reader, tmp_path / "k"), fresh)


def test_no_temporary_file_stays(recommender: Recommender, reader: ItemReader, tmp_path: Path) -> None:
    kept(recommender, reader, tmp_path / "k")
    assert {path.name for path in tmp_path.glob("k/vectors-*/*")} == {f"{place:06d}" for place in range(6)}
    assert {path.name for path in tmp_path.glob("k/vectors-*/*/*")} == {"vectors.npy", "index.json"}


def test_a_cache_that_cannot_be_written_is_an_error_where_vectors_must_be_kept(
    recommender: Recommender, reader: ItemReader, tmp_path: Path
) -> None:
    (tmp_path / "k").write_text("")
    with pytest.raises(MachineError, match="item vectors cannot be kept there"):
        kept(recommender, reader, tmp_path / "k", must_keep=True)


def test_vectors_that_cannot_be_kept_are_encoded_and_said_once(
    recommender: Recommender, reader: ItemReader, tmp_path: Path
) -> None:
    (tmp_path / "k").write_text("")
    said: list[str] = []
    fresh = encode_catalogue(recommender, reader, 0, NUM_ITEMS, chunk=2, device="cpu")
    unkept = found(recommender, reader, tmp_path / "k", say=said.append)
    assert torch.equal(unkept.vectors_ND, fresh)
    assert (unkept.num_encoded, unkept.num_kept) == (NUM_ITEMS - 2, 0)
    assert len(said) == 1
    assert "item vectors cannot be kept there" in said[0]


def test_the_name_of_an_encoder_changes_with_its_tensors_its_settings_and_its_adapters(
    recommender: Recommender,
) -> None:
    config = ModelConfig.model_validate({"width": 8, "item_encoder": {"type": "ids"}, "user_encoder": {"type": "gru"}})
    names = [encoder_name(recommender, config), encoder_name(recommender, config, {"kind": "lora"})]
    names.append(encoder_name(recommender, config.model_copy(update={"width": 16})))
    assert encoder_name(recommender, config) == names[0]
    with torch.no_grad():
        recommender.user_encoder.get_parameter(next(iter(dict(recommender.user_encoder.named_parameters())))).add_(1)
    assert encoder_name(recommender, config) == names[0]  # the user encoder decides no item vector
    with torch.no_grad():
        recommender.item_encoder.get_parameter("out.bias")[0] += 1
    names.append(encoder_name(recommender, config))
    assert len(set(names)) == 4


def test_a_model_of_item_ids_reads_its_table_and_keeps_nothing(
    make_split: Callable[..., Split], tmp_path: Path
) -> None:
    domain = make_split([[0, 1, 2]], NUM_ITEMS).domain
    parts = {"item_encoder": {"type": "ids"}, "user_encoder": {"type": "gru"}}
    ids = build(ModelConfig.model_validate({"width": 8, **parts}), {}, [domain.catalogue])
    reader = ItemReader([domain], ids.item_encoder.reads, tmp_path / "cache")
    table = found(ids, reader, tmp_path / "k")
    assert torch.equal(table.vectors_ND, encode_catalogue(ids, reader, 0, NUM_ITEMS, chunk=100, device="cpu"))
    assert (table.num_encoded, table.num_kept) == (0, 0)
    assert not (tmp_path / "k").exists()


def test_catalogues_that_were_not_used_for_the_longest_time_make_room(
    recommender: Recommender, reader: ItemReader, tmp_path: Path
) -> None:
    for weights in "abc":
        kept(recommender, reader, tmp_path / "k", weights=weights)
    groups = sorted(tmp_path.glob("k/vectors-*"), key=lambda group: group.stat().st_mtime)
    for hours, group in zip((3, 2, 0), groups, strict=True):
        for index in group.glob("*/index.json"):
            os.utime(index, (time.time() - 3600 * hours,) * 2)
    num_bytes = sum(file.stat().st_size for file in groups[0].glob("*/*"))
    said: list[str] = []
    remove_unused(tmp_path / "k" / "vectors-new", said.append, budget=2 * num_bytes)
    assert [group.exists() for group in groups] == [False, True, True]
    assert said == [f"{groups[0]}: item vectors not used for 3.0 h made room for others"]
    remove_unused(tmp_path / "k" / "vectors-new", said.append, budget=0)
    assert [group.exists() for group in groups] == [False, False, True]  # the last one is in use


def test_a_vector_that_is_not_finite_is_an_error_and_not_kept(
    recommender: Recommender, reader: ItemReader, tmp_path: Path
) -> None:
    recommender.item_encoder.get_parameter("letter.weight").data[ord("D") % 100 + 1] = torch.nan
    with pytest.raises(DataError, match="the vector of item 3 is not finite"):
        kept(recommender, reader, tmp_path / "k")
    order = reader.in_order(0)
    place = int(np.flatnonzero(order == 3)[0]) // 4
    assert not list(tmp_path.glob(f"k/vectors-*/{place:06d}"))


@pytest.mark.parametrize("name", LIBRARIES["vectors"])
def test_vectors_of_another_release_are_not_taken_up(
    recommender: Recommender, reader: ItemReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    kept(recommender, reader, tmp_path / "k")
    real = releases.version
    monkeypatch.setattr(releases, "version", lambda asked: "0.0.1" if asked == name else real(asked))
    again = Counted(recommender)
    kept(recommender, reader, tmp_path / "k")
    assert again.num_items == NUM_ITEMS - 2
    assert len(list(tmp_path.glob("k/vectors-*"))) == 2
