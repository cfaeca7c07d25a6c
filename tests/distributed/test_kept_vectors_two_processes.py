"""Two processes of a frozen run encode each item once, and keep what one process would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import Pmmrec, launch_pmmrec, working_in


def test_two_processes_encode_each_item_once_and_leave_the_store_of_one(
    small_run: Path, world: Path, tmp_path: Path, pmmrec: Pmmrec
) -> None:
    start = ("finetune", "finetune/frozen", "--from", small_run / "hub" / "small", "--on", world / "boutique")
    settings = ("train.epochs=1", "train.batch_users=16", "machine.device=cpu")
    stores = []
    with working_in(tmp_path):
        alone = pmmrec(*start, *settings, "name=alone", "cache=one")
        both = launch_pmmrec(*start, *settings, "name=both", "cache=two", "--launch", "two_cpu")
        again = launch_pmmrec(*start, *settings, "name=again", "cache=two", "--launch", "two_cpu")
        for cache in ("one", "two"):
            pieces = sorted(Path(cache).glob("vectors-*/*/vectors.npy"))
            stores.append(np.concatenate([np.load(piece, allow_pickle=False) for piece in pieces]))
    total = len(stores[0])
    for result, encoded in ((alone, total), (both, total), (again, 0)):
        assert result.code == 0, result.output
        assert f"boutique: {encoded} of {total} items encoded, {total - encoded} kept" in result.output
    assert stores[0] == pytest.approx(stores[1], rel=1e-5, abs=1e-6)  # threads may round differently
