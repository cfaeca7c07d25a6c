"""Ids are looked up by row in columns of any number of chunks."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch

from pmmrec.evaluation.ids import ids_at

CHUNKED = pa.chunked_array([["a", "b"], [], ["c"], ["d", "e", "f"]], pa.large_string())


@pytest.mark.parametrize("rows", [[5, 0, 2, 2, 4, 1, 3], [3], []])
def test_ids_come_in_the_order_asked(rows: list[int]) -> None:
    assert ids_at(CHUNKED, torch.tensor(rows, dtype=torch.int64)).to_pylist() == ["abcdef"[row] for row in rows]


@pytest.mark.parametrize("row", [-1, 6])
def test_rows_that_do_not_exist_are_an_error(row: int) -> None:
    with pytest.raises(IndexError, match=r"rows must lie in 0\.\.5"):
        ids_at(CHUNKED, torch.tensor([0, row]))
