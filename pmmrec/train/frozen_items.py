"""Train on items that no longer change: their vectors are computed once, or were kept by an earlier run."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pmmrec.data.items import ItemReader
from pmmrec.errors import RecipeError
from pmmrec.evaluation.encoded import encoder_name, kept_vectors
from pmmrec.evaluation.share import Share
from pmmrec.homes import expanded
from pmmrec.models.build import ModelConfig
from pmmrec.models.computed import Computed
from pmmrec.models.recommender import Recommender
from pmmrec.requests import View
from pmmrec.train.prepare import Readable, Sources
from pmmrec.train.run import Run
from pmmrec.train.task import TrainingTask


def compute_items(
    sources: Sources, task: TrainingTask, reader: ItemReader, recipe: Readable, model: ModelConfig, run: Run
) -> ItemReader:
    """Compute the item vectors once if nothing of the item encoder is trained, unless `prefix_cache: off`.

    They are kept in the cache, where a second start finds them, and `evaluate` and `score` as well. `model`: the
    settings of the recommender. Returns the reader for training. Raises as `stays_as_it_is`.
    """
    recommender = task.recommender
    if not stays_as_it_is(task) or recipe.prefix.use == "off":
        return reader
    started_s, weights = time.monotonic(), encoder_name(recommender, model)
    recommender.to(run.processes.device)
    task.keep_mask()
    vectors_ND = [
        kept_in_run(recommender, reader, place, name, weights, expanded(recipe.cache), run)
        for place, name in enumerate(sources.names)
    ]
    recommender.item_encoder = Computed(recommender.item_encoder, vectors_ND)
    num_items = sum(map(len, vectors_ND))
    run.log.say(
        f"items: none of their parts learns, so their {num_items:,} vectors were computed once, in "
        f"{time.monotonic() - started_s:.1f} s"
    )
    return reader.names_alone()


def kept_in_run(
    recommender: Recommender, reader: ItemReader, place: int, name: str, weights: str, cache: Path, run: Run
) -> Tensor:
    """The vectors of one domain, which the processes of a run encode together; says how many were encoded.

    `name`: of the domain, `weights`: the `encoder_name`. Every process must call it.
    """
    processes = run.processes
    share = Share(processes.rank, processes.world)
    rules: dict[str, Any] = {"weights": weights, "cache": cache, "device": processes.device, "share": share}
    kept = kept_vectors(recommender, reader, place, **rules, say=run.log.say)
    num_items = kept.num_encoded + kept.num_kept
    num_encoded = int(processes.summed(torch.tensor(kept.num_encoded, device=processes.device)))
    run.log.say(f"{name}: {replace(kept, num_encoded=num_encoded, num_kept=num_items - num_encoded).counts()}")
    return kept.vectors_ND


def stays_as_it_is(task: TrainingTask) -> bool:
    """Whether an item encoder reads fields and nothing of it is trained, so that vectors can be computed once.

    Raises RecipeError if an objective needs more than the vectors of the items.
    """
    encoder = task.recommender.item_encoder
    if not encoder.fields or any(tensor.requires_grad for tensor in encoder.parameters()):
        return False
    if encoder.asked:
        raise RecipeError(
            f"objectives: one asks for {', '.join(sorted(encoder.asked))} vectors of items, but nothing of the item "
            "encoder learns; take it away (objectives.NAME=null), or let a part of the item encoder train"
        )
    if View.MODALITIES in task.requests.views:
        raise RecipeError(
            "objectives: one compares texts with images, but nothing of the item encoder learns, so it has nothing to "
            "improve; take it away (objectives.NAME=null), or let a part of the item encoder train"
        )
    return True
