"""The one module that training runs: a recommender and its objectives, from a batch to sums and counts."""
# Shapes: B users, S window positions, L = S - 1, U distinct items, D width.

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pmmrec.context import BuildContext
from pmmrec.contracts import Batch, ItemInputs, ItemVectors, Term, View, Views
from pmmrec.errors import RecipeError
from pmmrec.models.build import ParameterRow, parameter_table
from pmmrec.models.recommender import Recommender
from pmmrec.objectives import Objective, ObjectiveConfig, objectives
from pmmrec.train.accumulate import encode_in_parts
from pmmrec.train.gather import OtherUsers, items_of_all, summed


class TrainingTask(nn.Module):
    """Recommender and objectives under one root, so that a step is one forward of one module."""

    def __init__(
        self, recommender: Recommender, terms: Mapping[str, Objective], weights: Mapping[str, float], width: int
    ) -> None:
        super().__init__()
        self.width = width
        self.recommender = recommender
        self.objectives = nn.ModuleDict(terms)
        self.weights = dict(weights)
        self.item_parts = 1  # in how many parts the items of a batch pass their encoder

    @classmethod
    def of(cls, recommender: Recommender, configs: Mapping[str, ObjectiveConfig], width: int) -> TrainingTask:
        """The task that minimises the objectives of a recipe."""
        terms = {name: objectives.part_class(config)(config, BuildContext(width)) for name, config in configs.items()}
        modalities = recommender.item_encoder.modalities
        blind = [name for name, term in terms.items() if View.MODALITIES in term.needs and len(modalities) < 2]
        if blind:
            raise RecipeError(
                f"objectives.{blind[0]}: compares text with image, but the model reads "
                f"{' and '.join(modalities) or 'ids'} only; take it away with objectives.{blind[0]}=null"
            )
        return cls(recommender, terms, {name: config.weight for name, config in configs.items()}, width)

    @property
    def needs(self) -> frozenset[View]:
        """All views that some objective asks for."""
        wanted: frozenset[View] = frozenset()
        return wanted.union(*(term.needs for term in self._terms().values()))

    @property
    def heads(self) -> dict[str, nn.Module]:
        """The objectives as modules; some have parameters of their own."""
        return dict(self.objectives.items())

    @property
    def sizes(self) -> list[ParameterRow]:
        """Parameters of each part, and of each objective that has some; together all of the task."""
        heads = {f"objectives/{name}": head for name, head in self.heads.items()}
        rows = parameter_table({**self.recommender.parts, **heads})
        return [row for row in rows if row.all or row.part not in heads]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Name -> `(2,)` sum and count: each objective under its name, its metrics as `name/metric`.

        Plain tensors leave this module, so that wrappers which look for them (FSDP) find them.
        """
        figures: dict[str, Tensor] = {}
        for name, term in self.terms(self.views(batch)).items():
            figures[name] = torch.stack((term.sum, term.count.to(term.sum.dtype)))
            figures |= {f"{name}/{metric}": value for metric, value in term.metrics.items()}
        return figures

    def awake(self) -> None:
        """Nothing; where weights are in shares (FSDP2), those outside of blocks are gathered by it."""

    def views(self, batch: Batch) -> Views:
        """What the objectives see. Items are encoded once, by one process; clean and corrupted windows share a pass.

        Where items are encoded together, every process must call it.
        """
        items, together = self._encode(batch.items), batch.together
        if together is None:
            return self._views(items, batch)
        items = items_of_all(items, together, with_cls=View.MODALITIES in self.needs)
        views = self._views(items, batch)
        return dataclasses.replace(views, num_slots_U=together.num_slots_U, peers=OtherUsers(together.num_users))

    def _encode(self, items: ItemInputs) -> ItemVectors:
        encoder = self.recommender.item_encoder
        vectors: ItemVectors = (
            encoder(items) if self.item_parts == 1 else encode_in_parts(encoder, items, self.item_parts)
        )
        return vectors

    def _views(self, items: ItemVectors, batch: Batch) -> Views:
        windows = batch.windows
        index_BL, is_input_BL = windows.item_index_BS[:, :-1], windows.is_input_BL
        corruption = windows.corruption if View.CORRUPTED in self.needs else None
        if corruption is None:
            hidden_BLD = self.recommender.user_states(items.fused_UD, index_BL, is_input_BL)
            return Views(items, windows, hidden_BLD, None, batch.log_q_U)
        both_index = torch.cat((index_BL, corruption.item_index_BL))
        both_hidden = self.recommender.user_states(items.fused_UD, both_index, torch.cat((is_input_BL, is_input_BL)))
        hidden_BLD, corrupted_BLD = both_hidden.chunk(2)
        return Views(items, windows, hidden_BLD, corrupted_BLD, batch.log_q_U)

    def terms(self, views: Views) -> dict[str, Term]:
        """Each objective's sum and count."""
        return {name: term(views) for name, term in self._terms().items()}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Name -> `(2,)` of 0 and the count of each objective, known before anything is encoded.

        Counts depend on windows and on what items have, not on vectors: the objectives are shown zeros. Where items are
        encoded together, every process must call it.
        """
        windows, together = batch.windows, batch.together
        has_U = batch.items.has_U if together is None else together.has_U
        num_items = batch.items.num_items if together is None else len(together.num_slots_U)
        device = windows.is_valid_BS.device
        zeros_UD = torch.zeros(num_items, self.width, device=device)
        zeros_BLD = torch.zeros(*windows.is_input_BL.shape, self.width, device=device)
        items = ItemVectors(zeros_UD, dict.fromkeys(has_U, zeros_UD), has_U)
        views = Views(items, windows, zeros_BLD, zeros_BLD, batch.log_q_U)
        if together is not None:
            peers = OtherUsers(together.num_users)
            views = dataclasses.replace(views, num_slots_U=together.num_slots_U, peers=peers)
        with torch.no_grad():
            counts = {name: term.count for name, term in self.terms(views).items()}
        return {name: torch.stack((torch.zeros_like(count), count)) for name, count in counts.items()}

    def gradient_norms(self, batch: Batch) -> dict[str, float]:
        """Norm of each objective's gradient at the item vectors: shows a term that is dead or rules the others.

        Empty where item vectors are fixed. Where items are encoded together, every process must call it, and the
        gradient is that of the whole step.
        """
        views = self.views(batch)
        vectors = [views.items.fused_UD, *views.items.cls_UD.values()]
        vectors = [vector for vector in vectors if vector.requires_grad]
        if not vectors:
            return {}
        norms: dict[str, float] = {}
        for name, term in self.terms(views).items():
            count = term.count if batch.together is None else summed(term.count)
            loss = term.sum / count.clamp(min=1) * self.weights[name]
            gradients = torch.autograd.grad(loss, vectors, retain_graph=True, allow_unused=True)
            wholes = [gradient for gradient in gradients if gradient is not None]
            if batch.together is not None:
                wholes = [summed(gradient) for gradient in wholes]
            squares = [gradient.float().square().sum() for gradient in wholes]
            norms[name] = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
        return norms

    def _terms(self) -> dict[str, Objective]:
        return {name: term for name, term in self.objectives.items() if isinstance(term, Objective)}
