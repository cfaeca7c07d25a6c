"""The useful work of each objective."""
# Shapes: B users, S window positions, L = S - 1, U distinct items, K counted positions or users.

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pmmrec.bench.flops import Work, alignment_scores, product, scores
from pmmrec.contracts import Batch, Modality
from pmmrec.models.dot import Dot
from pmmrec.objectives import Objective
from pmmrec.objectives.alignment import Alignment
from pmmrec.objectives.catalogue_ce import CatalogueCE
from pmmrec.objectives.denoising import NoiseDetection, Robustness
from pmmrec.objectives.drawn_negatives import BCE, BPR
from pmmrec.objectives.embedding_l2 import EmbeddingL2
from pmmrec.objectives.item_contrast import ItemContrast
from pmmrec.objectives.next_item import NextItem
from pmmrec.objectives.sequence_contrast import SequenceContrast
from pmmrec.requests import Noise
from pmmrec.train.task import TrainingTask


@dataclass(frozen=True)
class TermSizes:
    """What the products of an objective depend on."""

    count: float  # positions or users that the objective counts
    items: int
    users: int
    width: int
    batch: Batch


def objective_works(task: TrainingTask, batch: Batch) -> tuple[dict[str, Work], tuple[str, ...]]:
    """The work of each objective, and the names of those without a formula, which are left out."""
    counts = {name: float(pair[1]) for name, pair in task.counts(batch).items()}
    num_items, num_users = batch.items.num_items, len(batch.windows.is_valid_BS)
    works: dict[str, Work] = {}
    unknown: list[str] = []
    for name, term in task.heads.items():
        formula = FORMULAS.get(type(term))
        if formula is None or (type(term) in _SCORED and not isinstance(task.recommender.scorer, Dot)):
            unknown.append(name)
            continue
        read = 4.0 * task.width * (counts[name] + num_items)
        work = formula(term, TermSizes(counts[name], num_items, num_users, task.width, batch))
        works[name] = work + Work(forward_bytes=read, backward_bytes=read)
    return works, tuple(unknown)


def _all_items(_: Objective, sizes: TermSizes) -> Work:
    return scores(sizes.count, sizes.items, sizes.width)


def _drawn(term: Any, sizes: TermSizes) -> Work:
    return scores(sizes.count, 1 + term.config.negatives.count, sizes.width)


def _classes(_: Objective, sizes: TermSizes) -> Work:
    return product(sizes.count, sizes.width, len(Noise), learning_sides=2)


def _other_users(term: Any, sizes: TermSizes) -> Work:
    num_ways: int = 1 + term.config.symmetric
    return scores(sizes.count, sizes.count, sizes.width) * num_ways


def _all_users(_: Objective, sizes: TermSizes) -> Work:
    return scores(sizes.count, sizes.users, sizes.width)


def _both_ways(_: Objective, sizes: TermSizes) -> Work:
    windows = sizes.batch.windows
    num_anchors = _num_with_both(sizes.batch, windows.item_index_BS, windows.is_counted_BS)
    return scores(num_anchors, sizes.items, sizes.width) * 2


def _alignment(term: Any, sizes: TermSizes) -> Work:
    num_kinds: int = 1 + (term.config.next_item_positives or term.config.intra_negatives)
    windows = sizes.batch.windows
    num_anchors = _num_with_both(sizes.batch, windows.item_index_BS[:, :-1], windows.has_next_BL)
    return alignment_scores(num_anchors, sizes.items, sizes.users, sizes.width, num_kinds)


def _nothing(_: Objective, __: TermSizes) -> Work:
    return Work()


def _num_with_both(batch: Batch, item_index_BL: Tensor, is_chosen_BL: Tensor) -> int:
    """Distinct items with text and image at some positions."""
    has_U = batch.items.has_U
    has_both_U = has_U[Modality.TEXT] & has_U[Modality.IMAGE]
    return len(set(item_index_BL[is_chosen_BL & has_both_U[item_index_BL]].tolist()))


_SCORED = (NextItem, CatalogueCE, BCE, BPR)  # by the model's scorer
FORMULAS: Mapping[type[Any], Callable[[Any, TermSizes], Work]] = {
    NextItem: _all_items,
    CatalogueCE: _all_items,
    BCE: _drawn,
    BPR: _drawn,
    NoiseDetection: _classes,
    Robustness: _other_users,
    SequenceContrast: _all_users,
    ItemContrast: _both_ways,
    Alignment: _alignment,
    EmbeddingL2: _nothing,
}
