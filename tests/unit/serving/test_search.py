"""An index returns entries in the order of all lists, however many scores are equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pmmrec.serving import search
from pmmrec.serving.export import _built
from pmmrec.serving.search import Floats, IndexSearch

WIDTH = 8


def whole_numbers(seed: int, rows: int, most: int) -> Floats:
    """Vectors whose products are exact in float32, with many equal ones."""
    return np.random.default_rng(seed).integers(-most, most + 1, (rows, WIDTH)).astype(np.float32)


def sorted_by_hand(query: Floats, keys: Floats, among: Any, k: int) -> list[int]:
    scores = keys.astype(np.float64) @ query
    return sorted((int(entry) for entry in among), key=lambda entry: (-scores[entry], entry))[:k]


@pytest.mark.parametrize("num_queries", [1, 30, 70])  # faiss takes one way for up to 19, another for more
@pytest.mark.parametrize("most", [0, 1, 3])  # 0: all scores are equal
def test_a_flat_index_lists_what_sorting_all_scores_does(most: int, num_queries: int) -> None:
    keys, queries = whole_numbers(1, 600, most), whole_numbers(2, num_queries, 2)
    index = IndexSearch.of(_built("flat", keys), "flat", 1, keys)
    for k in (1, 2, 20, 21, 599, 600):
        entries, scores = index.best(queries, k)
        for query, found, score in zip(queries, entries, scores, strict=True):
            assert found.tolist() == sorted_by_hand(query, keys, range(600), k)
            np.testing.assert_array_equal(score, keys[found] @ query)


@pytest.mark.parametrize("num_queries", [1, 40])
def test_equal_keys_have_equal_scores(num_queries: int) -> None:
    generator = np.random.default_rng(0)
    keys = generator.normal(size=(1, 33)).astype(np.float32).repeat(501, axis=0)
    queries = generator.normal(size=(num_queries, 33)).astype(np.float32)
    entries, scores = IndexSearch.of(_built("flat", keys), "flat", 1, keys).best(queries, 7)
    assert (entries == np.arange(7)).all()
    assert (scores == scores[:, :1]).all()


def test_a_list_of_an_ivf_index_is_a_prefix_of_a_longer_one() -> None:
    keys, queries = whole_numbers(3, 900, 1), whole_numbers(4, 25, 1)
    index = IndexSearch.of(_built("ivf", keys), "ivf", 2, keys)
    whole, _ = index.best(queries, 900)
    for query, found in zip(queries, whole, strict=True):
        there = found[found >= 0]
        assert len(there) < 900  # what is in no list that was looked at is not found
        assert there.tolist() == sorted_by_hand(query, keys, there, 900)
    for k in (1, 5, 6, 100):
        assert index.best(queries, k)[0].tolist() == whole[:, :k].tolist()


def test_a_list_of_an_hnsw_index_is_a_prefix_of_a_longer_one_up_to_its_effort() -> None:
    keys, queries = whole_numbers(5, 900, 1), whole_numbers(6, 25, 1)
    index = IndexSearch.of(_built("hnsw", keys), "hnsw", 64, keys)
    whole, _ = index.best(queries, 64)
    for query, found in zip(queries, whole, strict=True):
        assert found.tolist() == sorted_by_hand(query, keys, found, 64)
    for k in (1, 5, 6, 63):
        assert index.best(queries, k)[0].tolist() == whole[:, :k].tolist()
    longer, _ = index.best(queries, 200)
    assert (longer >= 0).all()


def test_missing_entries_are_minus_one() -> None:
    keys = whole_numbers(7, 40, 1)
    index = IndexSearch.of(_built("flat", keys), "flat", 1, keys)
    entries, scores = index.best(whole_numbers(8, 2, 1), 50)
    assert (entries[:, 40:] == -1).all()
    assert np.isneginf(scores[:, 40:]).all()
    assert index.best(np.empty((0, WIDTH), np.float32), 3)[0].shape == (0, 3)


def test_more_entries_are_requested_only_if_equal_scores_may_be_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def noted(self: IndexSearch, queries: Floats, wanted: int) -> Any:
        asked.append((len(queries), wanted))
        return found(self, queries, wanted)

    found = IndexSearch._found
    monkeypatch.setattr(search.IndexSearch, "_found", noted)
    keys = np.zeros((1000, WIDTH), np.float32)
    keys[:, 0], keys[100:, 1] = -np.arange(1000), 1
    queries = np.zeros((2, WIDTH), np.float32)
    queries[0, 0], queries[1, 1] = 1, 1  # all scores of the first differ, of the second all but 100 are equal
    entries, _ = IndexSearch.of(_built("flat", keys), "flat", 1, keys).best(queries, 3)
    assert entries.tolist() == [[0, 1, 2], [100, 101, 102]]
    assert asked == [(2, 35), (1, 140), (1, 560), (1, 1000)]
