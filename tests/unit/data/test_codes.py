"""Codes of stored vectors: what faiss fits, against its own matrices by loops; what cannot be fitted is refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import Pmmrec

from pmmrec.data.contents import check_codes, check_features
from pmmrec.data.domain import Domain
from pmmrec.data.importers.codes import _fitted, least_items, store_codes
from pmmrec.data.importers.features import store_vectors
from pmmrec.data.importers.table import TableImport, import_table
from pmmrec.data.splits import Split, split_of
from pmmrec.data.splits.leave_one_out import LeaveOneOutConfig
from pmmrec.data.user_sample import UserSampleConfig
from pmmrec.data.verify import verify_domain
from pmmrec.errors import DataError, RecipeError
from pmmrec.faiss_library import faiss
from pmmrec.modality import VectorSpec

NUM_ITEMS, LENGTH, PARTS = 300, 8, 4


@pytest.fixture
def domain(tmp_path: Path) -> Domain:
    """300 items with vectors, of which one has none; nobody touches the last two before his last item."""
    return domain_of(tmp_path, "books")


def domain_of(tmp_path: Path, name: str) -> Domain:
    draw, users = np.random.default_rng(0), range(50)
    with (tmp_path / "items.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["item_id", "text"], *([f"i{row:03d}", f"item {row}"] for row in range(NUM_ITEMS))])
    with (tmp_path / "interactions.csv").open("w", newline="") as file:
        items = [[*draw.permutation(298)[:11], 298 + user % 2] for user in users]
        items[0] = [*range(298), 298]
        rows = [[f"u{user}", f"i{item:03d}", time] for user in users for time, item in enumerate(items[user])]
        csv.writer(file).writerows([["user_id", "item_id", "timestamp"], *rows])
    tables = {"items": tmp_path / "items.csv", "interactions": tmp_path / "interactions.csv"}
    import_table(TableImport(**tables, name=name, out=tmp_path / name, k_core=None))
    opened = Domain.open(tmp_path / name)
    vectors = draw.normal(size=(NUM_ITEMS, LENGTH)).astype(np.float32)
    vectors[5] = np.nan
    store_vectors(opened, vectors, "content", "content")
    return Domain.open(opened.folder)


def test_codes_are_those_of_the_nearest_centroids_of_rotated_parts() -> None:
    library, vectors = faiss(), np.random.default_rng(1).normal(size=(NUM_ITEMS, LENGTH)).astype(np.float32)
    index = _fitted(library, vectors, PARTS, 2)
    rotation = library.downcast_VectorTransform(index.chain.at(0))
    lists = library.downcast_index(index.index)
    matrix = library.vector_to_array(rotation.A).reshape(LENGTH, LENGTH)
    centroids = library.vector_to_array(lists.pq.centroids).reshape(PARTS, 256, LENGTH // PARTS)
    coarse = lists.quantizer.reconstruct(0)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(LENGTH), atol=1e-5)
    codes = index.sa_encode(vectors)[:, -PARTS:]
    for row in range(0, NUM_ITEMS, 7):
        rest = (matrix @ vectors[row] - coarse).reshape(PARTS, -1)
        for part in range(PARTS):
            distances = ((centroids[part] - rest[part]) ** 2).sum(axis=1)
            assert distances[codes[row, part]] == pytest.approx(distances.min(), abs=1e-5)


def test_codes_are_fitted_to_the_items_of_a_sample_of_users(domain: Domain, pmmrec: Pmmrec) -> None:
    """The first user touches nearly all items, the others together too few."""
    seed = next(s for s in range(9) if not _sample(domain, s).users.is_in_M[0])
    few = _sample(domain, seed)
    num_fitted = int(((few.train_counts > 0) & domain.feature("content").has_N).sum())
    how = ("--feature", "content", "--out", "codes", "--parts", PARTS, "--iterations", 2)
    told = pmmrec("data", "codes", domain.folder, *how, "--users", f"{{sample: 30, seed: {seed}}}")
    assert told.code == 3
    assert f"{num_fitted} training items have a content, and codes of 256 values" in " ".join(told.output.split())
    refused = pmmrec("data", "codes", domain.folder, *how, "--users", "{sample: 460}")
    assert (refused.code, "data.users.sample: 460 is more than the" in refused.output) == (2, True)


def _sample(domain: Domain, seed: int) -> Split:
    return split_of(LeaveOneOutConfig(), domain, UserSampleConfig(sample=30, seed=seed))


def test_codes_are_stored_as_a_feature_that_says_what_it_is(domain: Domain) -> None:
    split, warnings = split_of(LeaveOneOutConfig(), domain), list[str]()
    (stored,) = store_codes([split], "content", "codes", PARTS, 2, warnings.append)
    num_fitted = int(((split.train_counts > 0) & domain.feature("content").has_N).sum())
    assert num_fitted < 299
    assert stored.info.source == f"OPQ4,IVF1,PQ4x8 of content, fitted to {num_fitted} training items of books"
    assert (stored.info.num_values, stored.info.shape, stored.info.num_with) == (256, (PARTS,), NUM_ITEMS - 1)
    assert warnings == [f"{num_fitted} training items are few for codes of 256 values; faiss advises 9,984"]
    opened = Domain.open(domain.folder)
    written = json.loads((domain.folder / "domain.json").read_text())["features"]
    assert written["codes"]["num_values"] == 256
    assert "num_values" not in written["content"]  # earlier versions read a domain without codes
    codes = opened.feature("codes").read(np.arange(NUM_ITEMS))
    assert codes.min() >= 0
    assert codes.max() <= 255
    assert np.array_equal(codes, codes.round())
    assert len(np.unique(codes[:, 0])) > 200
    assert verify_domain(domain.folder) == []
    check_features(opened, {"codes": VectorSpec((PARTS,), 256), "content": VectorSpec((LENGTH,))})
    with pytest.raises(DataError, match="'content' holds vectors, but the model reads codes of 256 values"):
        check_features(opened, {"content": VectorSpec((LENGTH,), 256)})
    with pytest.raises(DataError, match="'codes' holds codes of 256 values, but the model reads vectors"):
        check_features(opened, {"codes": VectorSpec((PARTS,))})


def test_codes_of_domains_that_train_together_are_fitted_to_both(domain: Domain, tmp_path: Path) -> None:
    other = domain_of(tmp_path, "films")  # the same vectors
    splits = [split_of(LeaveOneOutConfig(), one) for one in (domain, other)]
    store_codes(splits, "content", "codes", PARTS, 2, list[str]().append)
    opened = [Domain.open(one.folder) for one in (domain, other)]
    codes = [one.feature("codes").read(np.arange(NUM_ITEMS)) for one in opened]
    np.testing.assert_array_equal(*codes)
    assert opened[0].feature("codes").info.source.endswith("training items of books, films")
    reads = {"codes": VectorSpec((PARTS,), 256)}
    check_codes(opened, reads)
    for one in opened:
        store_codes([split_of(LeaveOneOutConfig(), one)], "content", "alone", PARTS, 2, list[str]().append)
    with pytest.raises(DataError, match=r"their alone were fitted apart, .*`pmmrec data codes \S+books \S+films"):
        check_codes([Domain.open(one.folder) for one in opened], {"alone": reads["codes"]})


def test_too_few_items_and_parts_that_do_not_divide_are_refused(domain: Domain) -> None:
    split = split_of(LeaveOneOutConfig(), domain)
    with pytest.raises(RecipeError, match="--parts 3: do not divide the 8 numbers of content"):
        store_codes([split], "content", "codes", 3)
    assert [least_items(length) for length in (8, 256, 768)] == [256, 256, 768]


@pytest.mark.parametrize("num_different", [1, 255])
def test_vectors_too_few_of_which_differ_are_refused(domain: Domain, num_different: int) -> None:
    rows = np.arange(NUM_ITEMS) % num_different
    store_vectors(domain, np.repeat(rows[:, None], LENGTH, axis=1).astype(np.float32), "same", "same")
    split = split_of(LeaveOneOutConfig(), Domain.open(domain.folder))
    with pytest.raises(DataError, match=f"have {num_different} different vectors, and codes of 256 values need 256"):
        store_codes([split], "same", "codes", PARTS, 2, list[str]().append)


def test_vectors_too_long_for_float32_are_refused(domain: Domain) -> None:
    store_vectors(domain, np.full((NUM_ITEMS, LENGTH), 1e15, np.float32), "long", "long")
    split = split_of(LeaveOneOutConfig(), Domain.open(domain.folder))
    with pytest.raises(DataError, match=r"feature 'long' holds a vector of length 2.8e[+]15, .* of up to 1e[+]15"):
        store_codes([split], "long", "codes", PARTS, 2, list[str]().append)


def test_a_domain_named_twice_is_refused_before_anything_is_stored(domain: Domain) -> None:
    splits = [
        split_of(LeaveOneOutConfig(), one) for one in (domain, Domain.open(domain.folder / "." / "features" / ".."))
    ]
    with pytest.raises(RecipeError, match="named twice; a domain counts once"):
        store_codes(splits, "content", "codes", PARTS, 2)
    assert "codes" not in Domain.open(domain.folder).info.features


def test_a_name_that_is_taken_is_told_by_the_option_that_gave_it(domain: Domain) -> None:
    with pytest.raises(RecipeError, match=r"--out content: .* exists; choose another name"):
        store_codes([split_of(LeaveOneOutConfig(), domain)], "content", "content", PARTS, 2)


def test_the_verb_refuses_a_small_domain_in_one_line(world: Path, tmp_path: Path, pmmrec: Pmmrec) -> None:
    small = Path(shutil.copytree(world / "boutique", tmp_path / "boutique"))
    opened = Domain.open(small)
    store_vectors(opened, np.ones((opened.num_items, 32), np.float32), "content", "content")
    told = pmmrec("data", "codes", small, "--feature", "content", "--out", "codes")
    assert told.code == 3
    assert "training items have a content, and codes of 256 values for vectors of 32 numbers need 256" in told.output
