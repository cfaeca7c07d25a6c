"""A tiny world for objectives: learned items, a user encoder, and batches with every pass that is asked for."""
# Shapes: B users, S window positions, L = S - 1, U items, D width, C negatives of a target.

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pmmrec.context import BuildContext
from pmmrec.contracts import Batch, Candidates, ItemInputs, ItemVectors, Modality, WindowPass, Windows
from pmmrec.models import ItemEncoder
from pmmrec.models.dot import Dot, DotConfig
from pmmrec.models.recommender import Recommender
from pmmrec.objectives import Objective
from pmmrec.propagations.identity import Identity, IdentityConfig
from pmmrec.requests import (
    LOSSES_OF_ITEMS,
    STREAMS_OF_TRAINING,
    DrawnNegatives,
    Dropped,
    Masked,
    NextItems,
    Noise,
    Noised,
    Others,
    Requests,
    Shown,
    WindowRequest,
)
from pmmrec.train.task import TrainingTask
from pmmrec.users import UserEncoder
from pmmrec.users.mean_mlp import MeanMLP, MeanMLPConfig
from pmmrec.users.transformer import TransformerConfig, TransformerUserEncoder

WIDTH = 8
NUM_ITEMS = 7
NUM_POSITIONS = 4
LACKING: Mapping[str, Sequence[int]] = {"text": (3, 5), "image": (4, 5)}  # items by field; one has neither
WINDOWS: Mapping[str, Sequence[Sequence[int]]] = {
    "shared items": [[0, 1, 2], [2, 3, 3], [3, 4, 0], [5, 5, 1], [1, 2]],
    "an empty window": [[], [0, 1, 2], [3, 4, 5], [1, 0]],
    "one user with an input": [[0], [1], [2, 3, 4]],
    "users who saw everything": [[0, 1, 2], [1, 2], [2, 1, 0]],
}


class LearnedItems(ItemEncoder):
    """A learned vector for the text and one for the image of each item; their sum is the item.

    Further vectors of items are made from these, by factors that tell them apart.
    """

    fields = cls_fields = frozenset(modality.value for modality in Modality)

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({modality.value: nn.Embedding(NUM_ITEMS, WIDTH) for modality in Modality})

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        return dict(self.tables.items())

    @property
    def training_streams(self) -> Mapping[str, int]:
        widths = {view.value: 1 if view in LOSSES_OF_ITEMS else WIDTH for view in STREAMS_OF_TRAINING}
        return {**widths, "text": WIDTH, "image": WIDTH}

    def forward(self, items: ItemInputs) -> ItemVectors:
        """Vectors of U items."""
        cls_UD: dict[str, Tensor] = {}
        for field, has_U in items.has_U.items():
            cls_UD[field] = torch.where(has_U[:, None], self.tables[field](items.row_U), 0.0)
        fused_UD = torch.stack(list(cls_UD.values())).sum(dim=0)
        widths = self.training_streams
        streams_UD = {
            name: (fused_UD * (2 + place))[:, : widths[name]] for place, name in enumerate(sorted(self.asked))
        }
        return ItemVectors(fused_UD, cls_UD, dict(items.has_U), streams_UD)

    def fused_pairs(self, items: ItemVectors, text_P: Tensor, image_P: Tensor) -> Tensor:
        """The product of the text of one item and the image of another."""
        return items.cls_UD[Modality.TEXT][text_P] * items.cls_UD[Modality.IMAGE][image_P]


def task_of(objective: Objective) -> TrainingTask:
    """A task that minimises this objective alone, under the name `objective`."""
    context = BuildContext(WIDTH)
    torch.manual_seed(0)
    parts = _users_for(objective.requests, context), Dot(DotConfig(), context), Identity(IdentityConfig(), context)
    items = LearnedItems()
    items.asked = objective.requests.asked_streams
    recommender = Recommender(items, *parts)
    return TrainingTask(recommender, {"objective": objective}, {"objective": 1.0}, WIDTH)


def _users_for(requests: Requests, context: BuildContext) -> UserEncoder:
    """A user encoder that attends as the passes ask for."""
    if any(isinstance(request, Others) for request in requests.passes):
        return MeanMLP(MeanMLPConfig(attends="others"), context)
    is_masked = any(isinstance(request, Masked) for request in requests.passes)
    config = TransformerConfig(num_layers=1, dropout=0.0, attends="all" if is_masked else "past")
    return TransformerUserEncoder(config, context)


def batch_of(requests: Requests, rows: Sequence[Sequence[int]] = WINDOWS["shared items"]) -> Batch:
    """Windows of these items with every pass that is asked for; some items lack their text or image."""
    windows = _windows(rows)
    draw = torch.Generator().manual_seed(0)
    passes = {
        request: _with_negatives(_pass(request, windows, draw), drawn, rows, draw)
        for request, drawn in requests.passes.items()
    }
    row_U = torch.arange(NUM_ITEMS)
    has_U = {field: ~torch.isin(row_U, torch.tensor(lacking)) for field, lacking in LACKING.items()}
    log_q_U = torch.rand(NUM_ITEMS, generator=draw).clamp(min=1e-3).log()
    items = ItemInputs(torch.zeros_like(row_U), row_U, has_U, draw=torch.tensor(3))
    return Batch(items, dataclasses.replace(windows, passes=passes), log_q_U)


def _windows(rows: Sequence[Sequence[int]]) -> Windows:
    index_BS = torch.tensor([[0] * (NUM_POSITIONS - len(row)) + list(row) for row in rows])
    is_valid_BS = torch.tensor([[False] * (NUM_POSITIONS - len(row)) + [True] * len(row) for row in rows])
    return Windows(index_BS, is_valid_BS)


def _pass(request: WindowRequest, windows: Windows, draw: torch.Generator) -> WindowPass:
    plain = windows.next_items
    if isinstance(request, NextItems):
        return plain
    nothing_BL, nowhere_BL = torch.zeros_like(plain.target_index_BL), torch.zeros_like(plain.is_target_BL)
    without_targets = dataclasses.replace(plain, target_index_BL=nothing_BL, is_target_BL=nowhere_BL)
    if isinstance(request, Noised):
        noise_BL = torch.randint(0, len(Noise), plain.is_valid_BL.shape, generator=draw) * plain.is_valid_BL
        other_BL = torch.randint(0, NUM_ITEMS, plain.is_valid_BL.shape, generator=draw)
        index_BL = torch.where(noise_BL > 0, other_BL, plain.item_index_BL)
        return dataclasses.replace(without_targets, item_index_BL=index_BL, noise_BL=noise_BL)
    if isinstance(request, Masked):
        index_BS, is_valid_BS = windows.item_index_BS, windows.is_valid_BS
        is_masked_BS = is_valid_BS & (torch.rand(is_valid_BS.shape, generator=draw) < 0.5)
        return WindowPass(index_BS, is_valid_BS, index_BS, is_masked_BS, is_masked_BL=is_masked_BS)
    if isinstance(request, Others):
        index_BS, is_valid_BS = windows.item_index_BS, windows.is_valid_BS
        has_others_BS = is_valid_BS & (is_valid_BS.sum(dim=1, keepdim=True) > 1)
        return WindowPass(index_BS, is_valid_BS, index_BS, has_others_BS)
    if isinstance(request, Shown):
        return _with_candidates(windows, draw)
    if isinstance(request, Dropped):
        is_first_BL = plain.is_valid_BL.cumsum(dim=1) == 1
        has_more_B1 = plain.is_valid_BL.sum(dim=1, keepdim=True) > 1
        is_reworded_BL = torch.rand(plain.is_valid_BL.shape, generator=draw) < request.reworded
        return dataclasses.replace(
            without_targets,
            is_valid_BL=plain.is_valid_BL & ~(is_first_BL & has_more_B1),
            is_reworded_BL=is_reworded_BL if request.reworded else None,
        )
    raise TypeError(f"no example of a pass {request!r}; teach it to pmmrec.testing.world")


def _with_candidates(windows: Windows, draw: torch.Generator) -> WindowPass:
    """A pass over whole windows with up to five candidates each, of which none, some or all are clicked."""
    index_BS, is_valid_BS = windows.item_index_BS, windows.is_valid_BS
    index_BC = torch.stack([torch.randperm(NUM_ITEMS, generator=draw)[:5] for _ in index_BS])
    is_shown_BC = torch.rand(index_BC.shape, generator=draw) < 0.9
    is_clicked_BC = is_shown_BC & (torch.rand(index_BC.shape, generator=draw) < 0.4)
    candidates = Candidates(index_BC, is_shown_BC, is_clicked_BC)
    no_target_BS = torch.zeros_like(is_valid_BS)
    return WindowPass(index_BS, is_valid_BS, torch.zeros_like(index_BS), no_target_BS, candidates=candidates)


def _with_negatives(
    of_pass: WindowPass, drawn: frozenset[DrawnNegatives], rows: Sequence[Sequence[int]], draw: torch.Generator
) -> WindowPass:
    """The pass with negatives that its user did not touch and that can be read."""
    index_BLC = {}
    for config in drawn:
        is_open_BU = torch.ones(len(rows), NUM_ITEMS)
        for user, row in enumerate(rows):
            is_open_BU[user, [*row, *set(LACKING["text"]).intersection(LACKING["image"])]] = 0
        shape = (*of_pass.is_target_BL.shape, config.count)
        index_BLC[config] = torch.multinomial(is_open_BU, shape[1] * shape[2], replacement=True, generator=draw).view(
            shape
        )
    return dataclasses.replace(of_pass, negative_index_BLC=index_BLC)
