"""Features: vectors from files are stored in a domain, checked, and read as they were given."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pmmrec.contracts import StoredInputs
from pmmrec.data.contents import check_features
from pmmrec.data.domain import Domain
from pmmrec.data.importers import features
from pmmrec.data.importers.features import store_file
from pmmrec.data.items import ItemReader
from pmmrec.data.verify import verify_domain
from pmmrec.data.write import record_of
from pmmrec.errors import DataError, RecipeError
from pmmrec.modality import VectorSpec

SEQUENCES = [[0, 1, 2], [3, 1, 0]]
NAN = float("nan")


def saved(folder: Path, array: Any) -> Path:
    np.save(folder / "vectors.npy", array)
    return folder / "vectors.npy"


@pytest.fixture
def domain(make_domain: Any) -> Domain:
    made: Domain = make_domain(SEQUENCES)
    return made


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("shape", [(3,), (2, 3)])
@pytest.mark.parametrize("rows_of_a_batch", [1, 3, 1000])
def test_an_array_is_read_back_to_the_bit(
    domain: Domain, tmp_path: Path, monkeypatch: Any, dtype: Any, shape: Any, rows_of_a_batch: int
) -> None:
    monkeypatch.setattr(features, "MAX_BATCH_BYTES", rows_of_a_batch * int(np.prod(shape)) * np.dtype(dtype).itemsize)
    vectors = np.random.default_rng(1).normal(size=(4, *shape)).astype(dtype)
    vectors[2] = NAN
    stored = store_file(domain.folder, saved(tmp_path, vectors), "clip")
    assert (stored.info.shape, stored.info.dtype, stored.info.num_with) == (shape, np.dtype(dtype).name, 3)
    opened = Domain.open(domain.folder)
    for one in (opened, pickle.loads(pickle.dumps(opened))):  # noqa: S301 - as worker processes get it
        table = one.feature("clip")
        assert table.has_N.tolist() == [True, True, False, True]
        found = table.read(np.array([3, 2, 0]))
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, np.stack([vectors[3], np.zeros(shape, dtype), vectors[0]]))
    assert verify_domain(domain.folder) == []


def test_domains_that_store_a_feature_in_other_precisions_are_read_in_the_wider_one(
    make_domain: Any, tmp_path: Path
) -> None:
    domains, large = [make_domain(SEQUENCES, name=name) for name in ("shop", "market")], 1e5  # beyond float16
    for domain, dtype in zip(domains, (np.float16, np.float32), strict=True):
        vectors = np.full((4, 2), large if dtype == np.float32 else 1, dtype)
        store_file(domain.folder, saved(tmp_path, vectors), "clip")
    opened = [Domain.open(domain.folder) for domain in domains]
    reader = ItemReader(opened, {"clip": VectorSpec((2,))}, tmp_path / "cache")
    rows = reader.read(np.array([0, 1]), np.array([3, 3])).fields["clip"]
    assert isinstance(rows, StoredInputs)
    assert rows.vector_RF.tolist() == [[1, 1], [large, large]]


def test_a_table_gives_vectors_by_id_in_any_order(domain: Domain, tmp_path: Path) -> None:
    table = {"item_id": ["i03", "i00", "other", "i01"], "vector": [[1.0, 2.0], [3.0, 4.0], [9.0, 9.0], None]}
    pq.write_table(pa.table(table), tmp_path / "vectors.parquet")
    stored = store_file(domain.folder, tmp_path / "vectors.parquet", "clip")
    assert stored.lines()[1:] == [
        "items without a vector: 2: 'i01', 'i02'",
        "left out, rows of no item of the domain: 1: 'other'",
    ]
    found = Domain.open(domain.folder).feature("clip")
    assert found.has_N.tolist() == [True, False, False, True]
    assert found.read(np.arange(4)).tolist() == [[3, 4], [0, 0], [0, 0], [1, 2]]


def test_several_features_lie_side_by_side_and_the_rest_of_the_domain_is_as_before(
    domain: Domain, tmp_path: Path
) -> None:
    for name, width in (("clip", 2), ("audio", 5)):
        store_file(domain.folder, saved(tmp_path, np.ones((4, width), np.float32)), name)
    opened = Domain.open(domain.folder)
    assert [opened.feature(name).info.shape for name in ("clip", "audio")] == [(2,), (5,)]
    assert opened.fingerprint == domain.fingerprint
    assert opened.info.files == domain.info.files


def test_a_domain_of_an_earlier_version_opens(domain: Domain) -> None:
    path = domain.folder / "domain.json"
    tree = json.loads(path.read_text())
    del tree["features"]
    path.write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"items have no feature 'clip'; they have: none; `pmmrec data features"):
        Domain.open(domain.folder).feature("clip")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((3, 2)), r"vectors\.npy: holds 3 rows, but .* has 4 items"),
        (np.ones(4), r"holds float64 of shape \(4,\); save floats of shape"),
        (np.ones((4, 2), int), r"holds int64 of shape \(4, 2\); save floats"),
        (np.array([[1, NAN], [1, 1], [1, 1], [NAN, NAN]]), r"vectors of 1 items, such as 'i00', hold NaN or infinity"),
        (np.array([[1, 1], [1e39, 1], [1, 1], [1, 1]]), r"the float32 vectors of 1 items, such as 'i01'"),
        (np.full((4, 2), NAN), r"has no vector for any item"),
        (np.ones((4, 0)), r"vectors of shape \(0,\), which have no entries"),
        (np.ones((4, 3, 0)), r"vectors of shape \(3, 0\), which have no entries"),
        (
            np.array([[{}]] * 4, object),
            r"vectors\.npy: is not a \.npy file of numbers, or is damaged; save an array of floats with numpy\.save$",
        ),
    ],
)
def test_an_array_that_does_not_fit_is_refused(domain: Domain, tmp_path: Path, array: Any, message: str) -> None:
    before = (domain.folder / "domain.json").read_bytes()
    with pytest.raises(DataError, match=message):
        store_file(domain.folder, saved(tmp_path, array), "clip")
    assert (domain.folder / "domain.json").read_bytes() == before
    assert not list((domain.folder).glob("features/*"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"item_id": ["i00"], "embedding": [[1.0]]}, r"has no column vector; it needs item_id and vector"),
        ({"item_id": ["i00"], "vector": ["1 2"]}, r"vector is string; write a list of floats"),
        ({"item_id": ["i00", "i00"], "vector": [[1.0], [1.0]]}, r"an item has several rows"),
        ({"item_id": ["i00", "i01"], "vector": [[1.0], [1.0, 2.0]]}, r"give all the same number"),
        ({"item_id": ["x"], "vector": [[1.0]]}, r"has no vector for any item"),
        ({"item_id": [["i00"]], "vector": [[1.0]]}, r"item_id is list<.*>; write the ids as text"),
        ({"item_id": ["i00"], "vector": pa.array([[]], pa.list_(pa.float32()))}, r"a vector has no entries"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(domain: Domain, tmp_path: Path, table: Any, message: str) -> None:
    pq.write_table(pa.table(table), tmp_path / "vectors.parquet")
    with pytest.raises(DataError, match=message):
        store_file(domain.folder, tmp_path / "vectors.parquet", "clip")


def test_a_column_that_stands_twice_is_refused(domain: Domain, tmp_path: Path) -> None:
    columns = [pa.array(["i00"]), pa.array(["i01"]), pa.array([[1.0]])]
    pq.write_table(pa.Table.from_arrays(columns, ["item_id", "item_id", "vector"]), tmp_path / "vectors.parquet")
    with pytest.raises(DataError, match="item_id or vector stands twice"):
        store_file(domain.folder, tmp_path / "vectors.parquet", "clip")


def test_a_name_that_is_taken_or_cannot_be_one_is_refused(domain: Domain, tmp_path: Path) -> None:
    source = saved(tmp_path, np.ones((4, 2), np.float32))
    store_file(domain.folder, source, "clip")
    for name, message in (("clip", r"exists; choose another"), ("../x", "use letters"), ("text", "of an item itself")):
        with pytest.raises(RecipeError, match=message):
            store_file(domain.folder, source, name)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"\x80\x04N.", b"plain text"])
def test_a_file_that_is_no_array_is_refused_without_advice_to_unpickle_it(
    domain: Domain, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "vectors.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"vectors\.npy: is not a \.npy file of numbers, or is damaged") as raised:
        store_file(domain.folder, tmp_path / "vectors.npy", "clip")
    assert "pickle" not in str(raised.value)
    with pytest.raises(DataError, match=r"none\.npy: cannot be read: No such file or directory"):
        store_file(domain.folder, tmp_path / "none.npy", "clip")


def _as_a_domain_says(domain: Domain, path: Path) -> None:
    """Let `domain.json` name the file of the only feature as it is now."""
    tree = json.loads((domain.folder / "domain.json").read_text())
    tree["features"]["clip"] |= record_of(path).model_dump()
    (domain.folder / "domain.json").write_text(json.dumps(tree))


@pytest.mark.parametrize(
    ("column", "problem"),
    [
        (("other", [[1.0, 2.0]] * 4), "has no column vector"),
        (("vector", [[1.0, 2.0]] * 3), "3 rows of fixed_size_list"),
        (("vector", [[1.0, 2.0], [1.0, None], [1.0, 2.0], None]), "an entry of a vector is missing"),
    ],
)
def test_a_feature_that_does_not_fit_is_refused_when_the_domain_is_opened(
    domain: Domain, tmp_path: Path, column: tuple[str, list[Any]], problem: str
) -> None:
    stored = store_file(domain.folder, saved(tmp_path, np.ones((4, 2), np.float32)), "clip")
    vectors = pa.array(column[1], pa.list_(pa.float32(), 2))
    with pa.ipc.new_file(stored.path, schema := pa.schema([(column[0], vectors.type)])) as writer:
        writer.write_batch(pa.record_batch([vectors], schema=schema))
    _as_a_domain_says(domain, stored.path)
    with pytest.raises(DataError, match=rf"clip\.arrow: {problem}"):
        Domain.open(domain.folder)
    (found,) = verify_domain(domain.folder)
    assert problem in found


def test_a_changed_or_missing_file_is_found(domain: Domain, tmp_path: Path) -> None:
    stored = store_file(domain.folder, saved(tmp_path, np.ones((4, 2), np.float32)), "clip")
    content = bytearray(stored.path.read_bytes())
    content[content.index(np.ones(8, np.float32).tobytes())] ^= 1
    stored.path.write_bytes(content)
    (problem,) = verify_domain(domain.folder)
    assert "clip.arrow: changed after it was written" in problem
    stored.path.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"clip\.arrow: .* bytes where domain\.json says"):
        Domain.open(domain.folder)


def test_a_reader_gives_stored_vectors_and_finds_items_that_are_the_same(make_domain: Any, tmp_path: Path) -> None:
    vectors = np.array([[1, 2], [3, 4], [NAN, NAN], [1, 2]], np.float16)
    shops = [make_domain(SEQUENCES, name=name) for name in ("one", "two")]
    for shop in shops:
        store_file(shop.folder, saved(tmp_path, vectors), "clip")
    opened = [Domain.open(shop.folder) for shop in shops]
    reader = ItemReader(opened, {"clip": VectorSpec((2,))}, tmp_path / "cache", max_unreadable=0.5)
    items = reader.read(np.array([1, 0, 0]), np.array([0, 2, 1]))
    rows = items.fields["clip"]
    assert isinstance(rows, StoredInputs)
    assert rows.vector_RF.dtype == torch.float16
    assert (rows.vector_RF.tolist(), rows.item_index_R.values.tolist()) == ([[1, 2], [3, 4]], [0, 2])
    assert items.has_U["clip"].tolist() == [True, False, True]
    alone = reader.read(np.array([0]), np.array([2])).fields["clip"]
    assert isinstance(alone, StoredInputs)
    assert (alone.vector_RF.tolist(), alone.item_index_R.values.tolist()) == ([[0, 0]], [1])
    assert reader.contents(0).same_as_N.tolist() == [0, 1, 2, 0]
    assert reader.contents(0).is_readable_N.tolist() == [True, True, False, True]


def test_other_vectors_change_the_name_of_what_is_cached(make_domain: Any, tmp_path: Path) -> None:
    prints = set()
    for number in range(2):
        shop = make_domain(SEQUENCES, name=f"shop{number}")
        store_file(shop.folder, saved(tmp_path, np.full((4, 2), number, np.float32)), "clip")
        reader = ItemReader([Domain.open(shop.folder)], {"clip": VectorSpec((2,))}, tmp_path / "cache")
        prints.add(reader.fingerprint(0))
    assert len(prints) == 2


def test_features_of_another_shape_than_the_model_reads_are_refused(make_domain: Any, tmp_path: Path) -> None:
    shop = make_domain(SEQUENCES)
    store_file(shop.folder, saved(tmp_path, np.ones((4, 3, 2), np.float32)), "layers")
    domain = Domain.open(shop.folder)
    check_features(domain, {"layers": VectorSpec((3, 2))})
    with pytest.raises(DataError, match="'layers' holds 3 x 2 numbers an item, but the model reads vectors of 2; set"):
        check_features(domain, {"layers": VectorSpec((2,))})
    read = ItemReader([domain], {"layers": VectorSpec((3, 2))}, tmp_path / "cache").read(np.array([0]), np.array([1]))
    assert read.fields["layers"].vector_RF.shape == (1, 3, 2)
