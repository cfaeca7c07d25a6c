"""How often the host waits for a GPU in a whole training step: forward, backward, clipping, guard and update."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from pmmrec.data.batches import DataConfig
from pmmrec.objectives import objectives
from pmmrec.train.config import TrainConfig
from pmmrec.train.log import RunLog
from pmmrec.train.loop import Loop
from pmmrec.train.prepare import Batches
from pmmrec.train.processes import MachineConfig, Processes
from pmmrec.train.syncs import HostSyncs
from pmmrec.train.task import TrainingTask

SILENT = RunLog(None, is_main=False)
FOUR = {
    "dap": {"type": "next_item"},
    "nicl": {"type": "alignment"},
    "nid": {"type": "noise_detection"},
    "rcl": {"type": "robustness"},
}
BY_IDS: dict[str, dict[str, Any]] = {
    "PMMRec": {name: tree for name, tree in FOUR.items() if name != "nicl"},
    "log q": {"dap": {"type": "next_item", "logq": "all_columns", "negatives": "other_users"}},
    "last": {"dap": {"type": "next_item", "targets": "last"}},
    "catalogue": {"all": {"type": "catalogue_ce"}},
    "catalogue in chunks": {"all": {"type": "catalogue_ce", "scores_at_once": 100}},
    "drawn": {"bce": {"type": "bce"}, "l2": {"type": "embedding_l2"}},
    "pairs": {"bpr": {"type": "bpr", "negatives": {"count": 3}}},
    "sequences": {"dap": {"type": "next_item"}, "views": {"type": "sequence_contrast"}},
    "both ways": {"rcl": {"type": "robustness", "symmetric": True, "normalize": True}},
}
BY_CONTENT: dict[str, dict[str, Any]] = {
    "PMMRec": FOUR,
    "VCL": {"vcl": {"type": "alignment", "next_item_positives": False, "intra_negatives": False}},
    "CLIP": {"itc": {"type": "item_contrast"}},
}


def waits_of(loop: Loop, batches: Batches) -> Counter[str]:
    """What the host waited for in the third step."""
    loop.task.train()
    for number, batch in zip(range(3), batches.epoch(1), strict=False):
        syncs = HostSyncs()
        with syncs:
            loop._train_step(batch, batches.to_device(batch, torch.device("cpu")))
        assert loop.step == number + 1
    return syncs.found


@pytest.mark.parametrize("name", BY_IDS)
def test_no_step_by_ids_waits(workshop, name: str) -> None:
    shop = workshop(BY_IDS[name])
    assert not waits_of(shop.loop(batch_users=8), shop.batches(8))


@pytest.mark.parametrize("parts", [1, 2])
def test_no_step_in_parts_waits(workshop, parts: int) -> None:
    shop = workshop()
    accumulate = {"mode": "plain" if parts > 1 else "exact", "parts": parts}
    loop = shop.loop(batch_users=12, accumulate=accumulate, on_nonfinite={"skip": 2})
    assert not waits_of(loop, shop.batches(12, parts))


@pytest.mark.parametrize("name", BY_CONTENT)
def test_no_step_that_reads_texts_and_images_waits(reading, name: str) -> None:
    configs = {term: objectives.config(tree) for term, tree in BY_CONTENT[name].items()}
    task = TrainingTask.of(reading.task.recommender, configs, reading.task.width)
    processes = Processes(MachineConfig(device="cpu"))
    batches = Batches(DataConfig(), reading.sources, reading.reader, task, 12, 1, processes, SILENT)
    loop = Loop(TrainConfig(batch_users=12, epochs=1), task, batches, processes, SILENT)
    assert not waits_of(loop, batches)


def test_what_waits_is_counted_with_the_line_that_asked() -> None:
    x, is_chosen = torch.arange(6.0).requires_grad_(), torch.arange(6) > 2
    with HostSyncs() as syncs:
        x[is_chosen].sum().backward()  # one in each direction
        is_chosen.nonzero()
        float(x.detach().sum())
        x.unique()
        torch.arange(3).repeat_interleave(torch.arange(3))
        x.detach().masked_select(is_chosen)
    assert syncs.count == 7
    assert {name.split(" in ")[0] for name in syncs.found} >= {"nonzero", "index", "_local_scalar_dense"}
    with HostSyncs() as syncs:
        x[torch.tensor([0, 3])].sum().backward()
        torch.where(is_chosen, x, 0.0).sum().backward()
        torch.arange(3).repeat_interleave(torch.arange(3), output_size=3)
    assert syncs.count == 0
