"""The one module that training runs: a recommender and its objectives, from a batch to sums and counts."""
# Shapes: B users, S window positions, L = S - 1, U distinct items, D width.

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from pmmrec.context import BuildContext
from pmmrec.contracts import (
    Batch,
    History,
    ItemInputs,
    ItemVectors,
    Modality,
    Nodes,
    Query,
    Term,
    UserStates,
    Views,
    WindowPass,
    Windows,
)
from pmmrec.errors import RecipeError
from pmmrec.evaluation.eval_mode import evaluating
from pmmrec.models.build import ParameterRow, parameter_table
from pmmrec.models.recommender import Recommender
from pmmrec.objectives import Objective, ObjectiveConfig, objectives
from pmmrec.objectives.targets import Targets
from pmmrec.packing import HostArray
from pmmrec.requests import Masked, Others, Requests, Shown, View, WindowRequest
from pmmrec.train.accumulate import encode_in_parts
from pmmrec.train.gather import OtherUsers, items_of_all, summed
from pmmrec.train.hiding import freeze_beside_backbones, meet
from pmmrec.users import Attends

HINTS: Mapping[str, str] = {
    View.REWORDED.value: "model.item_encoder.reworded of type mixture",
    View.SYNTHETIC.value: "model.item_encoder of type codes",
    View.TOKENS.value: "model.item_encoder of type towers with text, vision and a fusion",
}
TARGETS_UNDER: Mapping[Attends, Targets] = {"past": "next", "all": "masked", "others": "each"}


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
        self.loaded: Collection[str] = ()  # the parts that come from a checkpoint

    @classmethod
    def of(cls, recommender: Recommender, configs: Mapping[str, ObjectiveConfig], width: int) -> TrainingTask:
        """The task that minimises the objectives of a recipe. RecipeError where the model cannot serve one of them."""
        context = BuildContext(width)
        terms = {name: objectives.part_class(config)(config, context) for name, config in configs.items()}
        for name, term in terms.items():
            _refuse_unfit(name, term, recommender, has_targets="targets" in type(configs[name]).model_fields)
            if term.shares_negatives:
                _refuse_own_negatives(name, terms)
        _refuse_missing_views(terms, gives_views=recommender.propagation.gives_views)
        meet(terms, recommender.item_encoder)
        recommender.item_encoder.asked = _asked_streams(terms, recommender)
        recommender.item_encoder.gives_vectors = any(term.reads_vectors for term in terms.values())
        task = cls(recommender, terms, {name: config.weight for name, config in configs.items()}, width)
        for name in task.unread:
            recommender.parts[name].requires_grad_(False)
        if not recommender.item_encoder.gives_vectors:
            freeze_beside_backbones(recommender.item_encoder)
        return task

    @property
    def requests(self) -> Requests:
        """All that the objectives ask for, and the whole catalogue where a graph passes its vectors on."""
        graph = Requests.of(views=(View.CATALOGUE,)) if self.recommender.propagation.reads_graph else Requests()
        return Requests.union([*self.requests_by_name.values(), graph])

    @property
    def requests_by_name(self) -> dict[str, Requests]:
        """What each objective asks for."""
        return {name: term.requests for name, term in self._terms().items()}

    @property
    def last_alone(self) -> frozenset[WindowRequest]:
        """The passes of which neither objectives nor scorer read more than the last state of each window."""
        return frozenset() if self.recommender.scorer.reads_histories else self.requests.last_alone

    @property
    def unread(self) -> list[str]:
        """Names of the parts that no objective reads. They do not learn: a process group would wait for gradients."""
        terms, encoder = self._terms().values(), self.recommender.item_encoder
        if any(term.requests.passes or View.NODES in term.requests.views for term in terms):
            return []
        reads_fused = any(term.reads_fused for term in terms)
        read: list[nn.Module] = list((encoder.parts if reads_fused else encoder.encoders).values())
        if not encoder.gives_vectors:
            read = list(encoder.restoring())
        return [name for name, part in self.recommender.parts.items() if part not in read]

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

    def begin_epoch(self, epoch: int, frozen: Collection[str] = ()) -> None:
        """Prepare graph and items for an epoch, numbered from 1, in which the parts named do not learn."""
        self.recommender.propagation.begin_epoch(epoch)
        self.recommender.item_encoder.begin_epoch(frozen)

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Let items settle what follows from the weights of an epoch, before they are validated and kept."""
        self.recommender.item_encoder.end_epoch()

    def keep_mask(self) -> None:
        """Keep the text of the mask, as the weights of now encode it, for ranking. Every process must call it."""
        encoder = self.recommender.item_encoder
        with evaluating(encoder):
            mask_D = encoder.mask_vector()
            if mask_D is not None:
                self.recommender.user_encoder.get_buffer("mask").copy_(mask_D)

    def awake(self) -> None:
        """Nothing; where weights are in shares (FSDP2), those outside of blocks are gathered by it."""

    def views(self, batch: Batch) -> Views:
        """What the objectives see. Items are encoded once, by one process; equal requests share a pass.

        Where items are encoded by all processes together, every process must call it.
        """
        items, whole = self._encode(batch.items), batch.global_items
        if whole is not None:
            items = items_of_all(items, whole, with_cls=View.MODALITIES in self.requests.views)
        asks_nodes = View.NODES in self.requests.views
        nodes = self.recommender.nodes(items, with_users=asks_nodes)
        if View.GRAPH_VIEWS in self.requests.views:
            nodes = dataclasses.replace(nodes, draw=batch.items.draw)
        propagated = self.recommender.propagate(nodes)
        views = self._views(propagated.items, batch, self._states(propagated, batch.windows))
        return dataclasses.replace(views, unpropagated=nodes, propagated=propagated) if asks_nodes else views

    def _encode(self, items: ItemInputs) -> ItemVectors:
        encoder = self.recommender.item_encoder
        vectors: ItemVectors = (
            encoder(items) if self.item_parts == 1 else encode_in_parts(encoder, items, self.item_parts)
        )
        return vectors

    def _states(self, nodes: Nodes, windows: Windows) -> dict[WindowRequest, UserStates]:
        """States of all passes, and those that rank where candidates are asked for.

        Passes of one length are computed together, those whose last states alone are read apart from the others.
        """
        users, states = windows.user_index_B, dict[WindowRequest, UserStates]()
        requests, last_alone = self.requests.passes, self.last_alone
        groups: dict[tuple[int, bool], list[WindowRequest]] = {}
        for request in requests:
            of_pass, is_last_alone = windows.passes[request], request in last_alone
            if isinstance(request, Shown):
                history = _history(nodes, [of_pass], users, last_alone=is_last_alone)
                states[request] = self.recommender.query(history).states
            else:
                groups.setdefault((of_pass.item_index_BL.shape[1], is_last_alone), []).append(request)
        for (_, is_last_alone), group in groups.items():
            passes = [windows.passes[request] for request in group]
            both = self.recommender.states(_history(nodes, passes, users, last_alone=is_last_alone))
            hidden, is_valid = both.hidden_BLD.chunk(len(group)), both.is_valid_BL.chunk(len(group))
            states |= {request: UserStates(hidden[n], is_valid[n]) for n, request in enumerate(group)}
        return states

    def _views(self, items: ItemVectors, batch: Batch, states: Mapping[WindowRequest, UserStates]) -> Views:
        fuse = partial(self.recommender.item_encoder.fused_pairs, items)
        views = Views(
            items, batch.windows, states, partial(self._score, items), batch.log_q_U, draw=batch.items.draw, fuse=fuse
        )
        whole = batch.global_items
        if whole is None:
            return views
        return dataclasses.replace(views, num_slots_U=whole.num_slots_U, peers=OtherUsers(whole.num_users))

    def _score(
        self, items: ItemVectors, query: Query, candidate_KC: Tensor | None = None, stream: str | None = None
    ) -> Tensor:
        if stream is not None:
            items = dataclasses.replace(items, fused_UD=items.streams_UD[stream])
        return self.recommender.score(query, items, candidate_KC)

    def terms(self, views: Views) -> dict[str, Term]:
        """Each objective's sum and count."""
        return {name: term(views) for name, term in self._terms().items()}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Name -> `(2,)` of 0 and the count of each objective, known before anything is encoded.

        Counts depend on windows and on what items have, not on vectors: the objectives are shown zeros. Where items are
        encoded by all processes together, every process must call it.
        """
        windows, whole = batch.windows, batch.global_items
        has_U = batch.items.has_U if whole is None else whole.has_U
        num_items = batch.items.num_items if whole is None else len(whole.num_slots_U)
        zeros_UD = torch.zeros(num_items, self.width, device=batch.device)
        encoder = self.recommender.item_encoder
        widths = {**encoder.streams, **{name: encoder.training_streams[name] for name in encoder.asked}}
        streams_UD = {name: zeros_UD.new_zeros(num_items, width) for name, width in widths.items()}
        items = ItemVectors(zeros_UD, dict.fromkeys(has_U, zeros_UD), has_U, streams_UD)
        states = {
            request: UserStates(zeros_UD.new_zeros(*of_pass.is_valid_BL.shape, self.width), of_pass.is_valid_BL)
            for request, of_pass in windows.passes.items()
        }
        views = dataclasses.replace(
            self._views(items, batch, states), fuse=lambda text_P, _: zeros_UD.new_zeros(len(text_P), self.width)
        )
        with torch.no_grad():
            counts = {name: term.count for name, term in self.terms(views).items()}
        return {name: torch.stack((torch.zeros_like(count), count)) for name, count in counts.items()}

    def gradient_norms(self, batch: Batch) -> dict[str, float]:
        """Norm of each objective's gradient at the item vectors: shows a term that is dead or rules the others.

        Where an objective asks for `View.NODES`, the vectors are those before propagation, on which all depend. Empty
        where item vectors are fixed. Where items are encoded together, every process must call it, and the gradient is
        that of the whole step.
        """
        views = self.views(batch)
        items = views.items if views.unpropagated is None else views.unpropagated.items
        # An item of one text may be its cls vector: a gradient that passes through that counts once.
        cls_UD = items.cls_UD if View.MODALITIES in self.requests.views else {}
        vectors = [items.fused_UD, *cls_UD.values(), *items.streams_UD.values()]
        vectors = [vector for vector in vectors if vector.requires_grad]
        if not vectors:
            return {}
        norms: dict[str, float] = {}
        for name, term in self.terms(views).items():
            count = term.count if batch.global_items is None else summed(term.count)
            loss = term.sum / count.clamp(min=1) * self.weights[name]
            gradients = torch.autograd.grad(loss, vectors, retain_graph=True, allow_unused=True)
            wholes = [gradient for gradient in gradients if gradient is not None]
            if batch.global_items is not None:
                wholes = [summed(gradient) for gradient in wholes]
            squares = [gradient.float().square().sum() for gradient in wholes]
            norms[name] = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
        return norms

    def _terms(self) -> dict[str, Objective]:
        return {name: term for name, term in self.objectives.items() if isinstance(term, Objective)}


def _refuse_own_negatives(name: str, terms: Mapping[str, Objective]) -> None:
    """RecipeError where an objective would draw negatives that no other one compares."""
    others = Requests.union(term.requests for other, term in terms.items() if other != name)
    for window, drawn in terms[name].requests.passes.items():
        if not drawn <= others.passes.get(window, frozenset()):
            raise RecipeError(
                f"objectives.{name}.negatives: no other objective draws these negatives for these targets; give those "
                "of an objective that draws some, or null for none"
            )


def _refuse_missing_views(terms: Mapping[str, Objective], *, gives_views: bool) -> None:
    """RecipeError where an objective contrasts views that the graph does not give, or none does those that it gives."""
    readers = [name for name, term in terms.items() if View.GRAPH_VIEWS in term.requests.views]
    if readers and not gives_views:
        raise RecipeError(
            f"objectives.{readers[0]}: contrasts views of the graph, which model.propagation does not give; set "
            f"model.propagation.views={{}} with type stream_graph, or take it away (objectives.{readers[0]}=null)"
        )
    if terms and gives_views and not readers:
        raise RecipeError(
            "model.propagation.views: has no effect, no objective contrasts them; set model.propagation.views=null, or "
            "add an objective of type graph_contrast"
        )


def _refuse_unfit(name: str, term: Objective, recommender: Recommender, *, has_targets: bool) -> None:
    """RecipeError where the model lacks what an objective compares, or shows it what it is to predict.

    `has_targets`: the objective has a setting that says what it predicts.
    """
    encoder, attends = recommender.item_encoder, recommender.user_encoder.attends
    if View.MODALITIES in term.requests.views and not {Modality.TEXT, Modality.IMAGE} <= encoder.cls_fields:
        found = f"reads {' and '.join(sorted(encoder.fields)) or 'ids'} only"
        if {Modality.TEXT, Modality.IMAGE} <= encoder.fields:
            found = "makes one vector of both"
        raise RecipeError(
            f"objectives.{name}: compares text with image, but the model {found}; take it away with "
            f"objectives.{name}=null"
        )
    targets = TARGETS_UNDER[attends]
    if term.needs_past and attends != "past":
        other = f"set objectives.{name}.targets={targets}" if has_targets else f"take it away (objectives.{name}=null)"
        raise RecipeError(
            f"objectives.{name}: predicts the next item, which a user encoder with attends: {attends} has already "
            f"seen; {other}, or set model.user_encoder.attends=past"
        )
    if term.reads_inputs and attends == "others":
        raise RecipeError(
            f"objectives.{name}: tells of each input whether it is noise, by a state that does not read it with "
            f"attends: others; take it away (objectives.{name}=null), or set model.user_encoder.attends=past"
        )
    if attends != "all" and any(isinstance(request, Masked) for request in term.requests.passes):
        raise RecipeError(
            f"objectives.{name}: predicts masked items, which needs a user encoder that reads the items on both sides, "
            f"such as a transformer with attends: all; or set objectives.{name}.targets={targets} and leave out "
            "mask_share"
        )
    if attends != "others" and any(isinstance(request, Others) for request in term.requests.passes):
        raise RecipeError(
            f"objectives.{name}: predicts each item from the others of its window, which needs a user encoder without "
            f"order, such as mean_mlp with attends: others; or set objectives.{name}.targets={targets}"
        )


def _asked_streams(terms: Mapping[str, Objective], recommender: Recommender) -> frozenset[str]:
    """The training streams that objectives ask for. RecipeError where the item encoder does not give one."""
    encoder = recommender.item_encoder
    there = {**encoder.streams, **encoder.training_streams}
    for name, term in terms.items():
        for stream in sorted(term.requests.asked_streams - there.keys()):
            raise RecipeError(
                f"objectives.{name}: asks for {stream} vectors of items, which the item encoder does not give (there "
                f"are: {', '.join(there) or 'none'}); take away the objective, or its setting that asks; see "
                f"{HINTS.get(stream, 'model.item_encoder of type with_streams')}"
            )
    asked = Requests.union(term.requests for term in terms.values()).asked_streams
    return asked - encoder.streams.keys()


def _history(nodes: Nodes, passes: Sequence[WindowPass], user_index_B: Tensor | None, *, last_alone: bool) -> History:
    """The inputs of several passes of one length, one pass after another."""
    is_masked_BL = None
    if any(one.is_masked_BL is not None for one in passes):
        is_masked_BL = torch.cat(
            [torch.zeros_like(one.is_valid_BL) if one.is_masked_BL is None else one.is_masked_BL for one in passes]
        )
    if len(passes) == 1:
        index_BL, is_valid_BL = passes[0].item_index_BL, passes[0].is_valid_BL
    else:
        index_BL = torch.cat([one.item_index_BL for one in passes])
        is_valid_BL = torch.cat([one.is_valid_BL for one in passes])
    items = nodes.items
    if any(one.is_reworded_BL is not None for one in passes):
        items, index_BL = _with_reworded(items, index_BL, passes)
    users = None if user_index_B is None else user_index_B.repeat(len(passes))
    lengths = [one.length_B.values for one in passes if one.length_B is not None]
    length_B = HostArray(np.concatenate(lengths)) if len(lengths) == len(passes) else None
    history = History.of(items, index_BL, is_valid_BL, is_masked_BL, users, nodes.user_MD, length_B)
    return dataclasses.replace(history, last_alone=last_alone)


def _with_reworded(items: ItemVectors, index_BL: Tensor, passes: Sequence[WindowPass]) -> tuple[ItemVectors, Tensor]:
    """The items, and behind them the same items by their second texts; inputs that are read so refer to the latter."""
    is_reworded_BL = torch.cat(
        [torch.zeros_like(one.is_valid_BL) if one.is_reworded_BL is None else one.is_reworded_BL for one in passes]
    )
    reworded_UD = items.streams_UD[View.REWORDED.value]
    streams_UD = {name: torch.cat((stream_UD, stream_UD)) for name, stream_UD in items.streams_UD.items()}
    both = ItemVectors(torch.cat((items.fused_UD, reworded_UD)), streams_UD=streams_UD)
    return both, index_BL + len(reworded_UD) * is_reworded_BL
