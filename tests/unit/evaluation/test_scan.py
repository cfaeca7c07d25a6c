"""The block-wise scan finds the same top-k candidates as sorting all scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pmmrec.errors import DataError
from pmmrec.evaluation.scan import Scan, Sizes, first_largest, inner_products

CPU = torch.device("cpu")
NOBODY = np.empty(0, dtype=np.int64)
SIZES = [
    Sizes(users=7, tile=4096, piece_bytes=1 << 27),  # one tile
    Sizes(users=7, tile=64, piece_bytes=1 << 27),  # tiles of one piece
    Sizes(users=7, tile=64, piece_bytes=4 * 7 * 128),  # pieces of two tiles
    Sizes(users=7, tile=33, piece_bytes=1),  # pieces of one tile
]


def whole_numbers(seed: int, rows: int, most: int = 2) -> torch.Tensor:
    """Vectors whose products are exact in float32, whatever the order of summing; with many equal ones."""
    return torch.from_numpy(np.random.default_rng(seed).integers(-most, most + 1, (rows, 4)).astype(np.float32))


def sorted_by_hand(score_BN: torch.Tensor, k: int) -> list[list[int]]:
    columns = range(score_BN.shape[1])
    return [sorted(columns, key=lambda n, row=row: (-row[n], n))[:k] for row in score_BN.tolist()]


def best(
    query: torch.Tensor,
    keys: torch.Tensor,
    k: int,
    sizes: Sizes,
    gone: tuple[np.ndarray, np.ndarray] = (NOBODY, NOBODY),
) -> tuple[torch.Tensor, torch.Tensor]:
    return Scan(inner_products(keys), len(keys), k, sizes, CPU).best(query, *gone, None)


def test_equal_scores_are_taken_and_ordered_by_column() -> None:
    score_BN = torch.from_numpy(np.random.default_rng(0).integers(4, size=(50, 9)).astype(np.float32))
    score_BN[::3, ::2] = -torch.inf
    for k in range(1, 10):
        assert first_largest(score_BN, k).tolist() == sorted_by_hand(score_BN, k)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("num_keys", "k"), [(300, 1), (300, 10), (300, 77), (64, 64), (5, 3), (1, 1)])
def test_lists_and_scores_equal_those_of_sorting_bit_for_bit(sizes: Sizes, num_keys: int, k: int) -> None:
    query, keys = whole_numbers(1, 7), whole_numbers(2, num_keys)  # 300 keys, at most 33 different scores: ties abound
    value, column = best(query, keys, k, sizes)
    score_BN = query @ keys.T
    assert column.tolist() == sorted_by_hand(score_BN, k)
    assert torch.equal(value, score_BN.gather(1, column))


@pytest.mark.parametrize("sizes", SIZES)
def test_lists_without_ties_equal_those_of_sorting(sizes: Sizes) -> None:
    generator = torch.Generator().manual_seed(0)
    query, keys = torch.randn(7, 4, generator=generator).double(), torch.randn(300, 4, generator=generator).double()
    query, keys = (
        (query * 64).round().float(),
        (keys * 4096).round().float(),
    )  # products are exact, and hardly ever equal
    _, column = best(query, keys, 10, sizes)
    assert column.tolist() == sorted_by_hand(query @ keys.T, 10)


@pytest.mark.parametrize("sizes", SIZES)
def test_excluded_candidates_are_not_listed(sizes: Sizes) -> None:
    query, keys, generator = whole_numbers(3, 7), whole_numbers(4, 150), np.random.default_rng(5)
    is_gone = generator.random((7, 150)) < 0.3
    is_gone[6] = np.arange(150) != 149  # one is left
    value, column = best(query, keys, 5, sizes, np.nonzero(is_gone))
    score_BN = (query @ keys.T).masked_fill(torch.from_numpy(is_gone), -torch.inf)
    assert column[:6].tolist() == sorted_by_hand(score_BN, 5)[:6]
    assert column[6, 0] == 149
    assert torch.isinf(value[6, 1:]).all()


def test_a_list_longer_than_the_candidates_is_padded() -> None:
    value, column = best(whole_numbers(1, 2), whole_numbers(2, 3), 5, SIZES[0])
    assert value.shape == column.shape == (2, 5)
    assert torch.isinf(value[:, 3:]).all()
    assert column.max() < 3


def test_all_scores_equal_lists_the_first_candidates() -> None:
    for sizes in SIZES:
        _, column = best(torch.ones(7, 4), torch.ones(2000, 4), 12, sizes)
        assert column.tolist() == [list(range(12))] * 7


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_a_score_that_is_not_finite_is_an_error_that_names_user_and_candidate(wrong: float) -> None:
    query, keys = torch.ones(7, 4), torch.ones(300, 4)
    keys[222, 0] = wrong
    scan = Scan(inner_products(keys), 300, 3, SIZES[1], CPU)
    with pytest.raises(DataError, match=r"user 0, candidate 222: (nan|inf|-inf)"):
        scan.best(
            query, NOBODY, NOBODY, lambda row, column, score: DataError(f"user {row}, candidate {column}: {score}")
        )


def test_one_scan_handles_chunks_of_any_length() -> None:
    keys = whole_numbers(2, 300)
    scan = Scan(inner_products(keys), 300, 4, SIZES[2], CPU)
    for num_users in (7, 1, 3, 7):
        query = whole_numbers(num_users, num_users)
        _, column = scan.best(query, NOBODY, NOBODY, None)
        assert column.tolist() == sorted_by_hand(query @ keys.T, 4)
