"""Items without a text or an image are counted and named where texts are compared with images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pmmrec.data.batches import DataConfig
from pmmrec.errors import DataError, RecipeError
from pmmrec.modality import Modality
from pmmrec.objectives import objectives
from pmmrec.train.log import RunLog
from pmmrec.train.pair_checks import check_pairs
from pmmrec.train.task import TrainingTask

ITEMS = DataConfig.model_validate({"examples": "items"})


@pytest.fixture
def task(reading) -> TrainingTask:
    torch.manual_seed(0)
    configs = {name: objectives.config({"type": kind}) for name, kind in (("itc", "item_contrast"), ("itm", "itm"))}
    return TrainingTask.of(reading.task.recommender, configs, reading.task.width)


def test_items_that_are_no_pair_are_counted_and_named(
    reading, task: TrainingTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLog(tmp_path, is_main=True) as log:
        check_pairs(task, ITEMS, reading.sources.domains, 8, 1, log)
    said = " ".join(capsys.readouterr().err.split())
    num_lacking = 0
    for domain in reading.sources.domains:
        has_N = domain.has[Modality.TEXT] & domain.has[Modality.IMAGE]
        lacking = [domain.item_ids[row].as_py() for row in range(domain.num_items) if not has_N[row]]
        num_lacking += len(lacking)
        start = f"{domain.name}: {len(lacking)} of {domain.num_items} items lack a text or an image"
        assert (f"{start}, and are no pair for objectives.itc and objectives.itm: {lacking[0]}" in said) == bool(
            lacking
        )
    assert num_lacking > 0


@pytest.mark.parametrize(("batch_users", "num_shares", "least"), [(1, 1, 2), (3, 2, 4)])
def test_a_batch_of_one_pair_is_refused(
    reading, task: TrainingTask, batch_users: int, num_shares: int, least: int
) -> None:
    with pytest.raises(RecipeError, match=rf"train\.batch_users: {batch_users} leaves one pair.*take {least} or more"):
        check_pairs(task, ITEMS, reading.sources.domains, batch_users, num_shares, RunLog(None, is_main=False))


def test_domains_without_pairs_are_refused(reading, task: TrainingTask) -> None:
    with pytest.raises(DataError, match=r"0 items have a text and an image, and objectives\.itc and objectives\.itm"):
        check_pairs(task, ITEMS, [], 8, 1, RunLog(None, is_main=False))
