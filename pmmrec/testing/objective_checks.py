"""The checks that objectives inherit."""
# Shapes: B users, S window positions, U items, D width.

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pmmrec.context import BuildContext
from pmmrec.contracts import Batch, Candidates, ItemVectors, Term, UserStates, Views, WindowPass, Windows
from pmmrec.models.dot import Dot, DotConfig
from pmmrec.objectives import Objective, objectives
from pmmrec.objectives.negatives import Columns
from pmmrec.requests import WindowRequest
from pmmrec.testing.checks import Inapplicable, assert_close, check, require
from pmmrec.testing.subjects import Numbers, Subject
from pmmrec.testing.twins import NO_TWIN, find_twin
from pmmrec.testing.world import WIDTH, WINDOWS, LearnedItems, batch_of, task_of
from pmmrec.train.syncs import HostSyncs
from pmmrec.train.task import TrainingTask

STEP = 1e-2  # length of the plain gradient step


def _batches(objective: Objective) -> dict[str, Batch]:
    return {name: _in_float64(batch_of(objective.requests, rows)) for name, rows in WINDOWS.items()}


def _in_float64(batch: Batch) -> Batch:
    return batch if batch.log_q_U is None else dataclasses.replace(batch, log_q_U=batch.log_q_U.double())


@check("count", objectives)
def the_count_depends_on_windows_alone(subject: Subject) -> Inapplicable:
    """The count is the same for other vectors and states; it is asked for before anything is encoded."""
    objective = subject.build().double()
    task = task_of(objective).double()
    for name, batch in _batches(objective).items():
        counted = task.counts(batch)["objective"][1]
        for _ in range(2):
            count = task(batch)["objective"][1]
            require(torch.equal(count, counted), f"{name}: counts {counted:g} before encoding, {count:g} after")
            with torch.no_grad():
                for parameter in task.parameters():
                    parameter.mul_(-3.0)
    return None


@check("twin", objectives)
def it_equals_its_twin(subject: Subject) -> Inapplicable:
    """Sum, count and gradients are those of its twin, which goes through positions one by one."""
    twin = find_twin(subject.family, subject.config.type)
    if twin is None:
        return NO_TWIN
    objective = subject.build().double()
    task = task_of(objective).double()
    for name, batch in _batches(objective).items():
        views, leaves = _leaves(task.views(batch))
        leaves |= dict(objective.named_parameters())
        term, (total, count) = objective(views), twin(objective, views)
        expected = Term(total, torch.tensor(count, dtype=term.count.dtype))
        _assert_same_term(term, expected, leaves, f"{name}: against its twin")
    return None


@check("step lowers loss", objectives)
def a_plain_gradient_step_lowers_the_loss(subject: Subject) -> Inapplicable:
    """One short step down the gradient of all parameters lowers the loss."""
    objective = subject.build().double()
    task, batch = task_of(objective).double(), _in_float64(batch_of(objective.requests))

    before = _loss(task, batch)
    gradients = torch.autograd.grad(before, list(task.parameters()), materialize_grads=True, allow_unused=True)
    length = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    require(length > 0, "has a gradient of 0 on a fresh model")
    with torch.no_grad():
        for parameter, gradient in zip(task.parameters(), gradients, strict=True):
            parameter.sub_(STEP * gradient / length)
        after = _loss(task, batch)
    require(after < before, f"the loss went from {before:.6f} to {after:.6f} in a step down its gradient")
    return None


def _loss(task: TrainingTask, batch: Batch) -> Tensor:
    total, count = task(batch)["objective"]
    mean: Tensor = total / count.clamp(min=1)
    return mean


@check("targets", objectives)
def targets_are_read_where_it_is_said(subject: Subject) -> Inapplicable:
    """Under `reads_targets = False` other targets, and another last item of each window, change nothing."""
    objective = subject.build().double()
    if objective.reads_targets:
        return "reads targets"
    task = task_of(objective).double()
    for name, batch in _batches(objective).items():
        views = task.views(batch)
        before, after = objective(views), objective(dataclasses.replace(views, windows=_other_targets(views)))
        require(torch.equal(after.count, before.count), f"{name}: counts {after.count:g} with other targets")
        for what, found, wanted in (
            ("the sum", after.sum, before.sum),
            *((metric, after.metrics[metric], before.metrics[metric]) for metric in before.metrics),
        ):
            assert_close(found, wanted, f"{name}: {what} with other targets; set reads_targets = True")
    return None


def _other_targets(views: Views) -> Windows:
    """Windows whose last item, and whose targets in every pass, are others."""

    def other(index: Tensor) -> Tensor:
        return (index + 1) % len(views.items.fused_UD)

    windows = views.windows
    index_BS = torch.cat((windows.item_index_BS[:, :-1], other(windows.item_index_BS[:, -1:])), dim=1)
    passes = {
        request: dataclasses.replace(
            one, target_index_BL=other(one.target_index_BL), is_target_BL=one.is_valid_BL & ~one.is_target_BL
        )
        for request, one in windows.passes.items()
    }
    return dataclasses.replace(windows, item_index_BS=index_BS, passes=passes)


@check("last alone", objectives)
def the_last_state_is_read_alone_where_it_is_said(subject: Subject) -> Inapplicable:
    """Where last states alone are asked for, other states, and negatives of other targets, change nothing."""
    objective = subject.build().double()
    if not objective.requests.last_alone:
        return "reads states at all positions, or none"
    task = task_of(objective).double()
    leaves = dict(task.named_parameters())
    for name, batch in _batches(objective).items():
        views = task.views(batch)
        every = dataclasses.replace(views, states=_all_states(views))
        _assert_same_term(objective(every), objective(views), leaves, f"{name}: beside other states")
        drawn_for_last = dataclasses.replace(views, windows=_without_earlier_negatives(views.windows))
        _assert_same_term(objective(drawn_for_last), objective(views), leaves, f"{name}: without earlier negatives")
    return None


def _without_earlier_negatives(windows: Windows) -> Windows:
    """The windows with item 0 in place of the negatives of all targets but the last."""
    passes = {}
    for request, one in windows.passes.items():
        drawn = {}
        for config, index_BLC in one.negative_index_BLC.items():
            drawn[config] = torch.zeros_like(index_BLC)
            drawn[config][:, -1] = index_BLC[:, -1]
        passes[request] = dataclasses.replace(one, negative_index_BLC=drawn)
    return dataclasses.replace(windows, passes=passes)


@check("shares = whole", objectives)
def shares_of_a_batch_add_up_to_the_whole(subject: Subject) -> Inapplicable:
    """Users may be shared out to processes, or to parts of a step: sums, counts, metrics and gradients add up."""
    objective = subject.build().double()
    task = task_of(objective).double()
    for name, batch in _batches(objective).items():
        views, leaves = _leaves(task.views(batch))
        leaves |= dict(objective.named_parameters())
        whole = objective(views)
        num_users = len(batch.windows.item_index_BS)
        for sizes in ([num_users - 1, 1], [1] * num_users):
            _assert_same_term(_together(objective, _shares(views, sizes)), whole, leaves, f"{name}: shares {sizes}")
    return None


@check("no waiting", objectives)
def the_host_waits_for_no_number(subject: Subject) -> Inapplicable:
    """Forward and backward ask for no number that a GPU would hold, where a batch brings its places along."""
    objective = subject.build()
    task = task_of(objective)
    for name, batch in _batches(objective).items():
        passes = {request: of_pass.placed() for request, of_pass in batch.windows.passes.items()}
        windows = dataclasses.replace(batch.windows, passes=passes).placed()
        views = task.views(dataclasses.replace(batch, windows=windows))
        with HostSyncs() as syncs:
            term = objective(views)
            if term.sum.requires_grad:
                torch.autograd.backward(term.sum)
        require(syncs.count == 0, f"{name}: the host waits for {', '.join(syncs.found)}")
    return None


def _leaves(views: Views) -> tuple[Views, dict[str, Tensor]]:
    """The same views over tensors that gradients can be asked for, by name."""
    leaves: dict[str, Tensor] = {}

    def leaf(name: str, tensor: Tensor) -> Tensor:
        leaves[name] = tensor.detach().requires_grad_()
        return leaves[name]

    items = views.items
    cls_UD = {field: leaf(field, vectors_UD) for field, vectors_UD in items.cls_UD.items()}
    streams_UD = {name: leaf(f"stream {name}", stream_UD) for name, stream_UD in items.streams_UD.items()}
    items = ItemVectors(leaf("items", items.fused_UD), cls_UD, items.has_U, streams_UD)
    states = {
        request: UserStates(leaf(f"states of {request!r}", one.hidden_BLD), one.is_valid_BL)
        for request, one in _all_states(views).items()
    }
    scorer, fuse = Dot(DotConfig(), BuildContext(WIDTH)), partial(LearnedItems().fused_pairs, items)
    return dataclasses.replace(views, items=items, states=states, score=_Scores(scorer, items), fuse=fuse), leaves


def _all_states(views: Views) -> dict[WindowRequest, UserStates]:
    """The states of each pass; where the last ones alone are there, numbers stand before them."""
    states = dict(views.states)
    for request, one in views.states.items():
        is_valid_BL, hidden_BLD = views.windows.passes[request].is_valid_BL, one.hidden_BLD
        num_missing = is_valid_BL.shape[1] - hidden_BLD.shape[1]
        if num_missing > 0:
            others_BLD = Numbers(seed=4, dtype=hidden_BLD.dtype).normal(len(hidden_BLD), num_missing, WIDTH)
            states[request] = UserStates(torch.cat((others_BLD, hidden_BLD), dim=1), is_valid_BL)
    return states


@dataclasses.dataclass(frozen=True)
class _Scores:
    """Scores of these items."""

    scorer: Dot
    items: ItemVectors

    def __call__(self, query: Any, candidate_KC: Tensor | None = None, stream: str | None = None) -> Tensor:
        fused_UD = self.items.fused_UD if stream is None else self.items.streams_UD[stream]
        scores: Tensor = self.scorer(query, ItemVectors(fused_UD), candidate_KC)
        return scores


class _AllRows:
    """`Peers` in one process: the rows of every share are collected first, then handed out together."""

    def __init__(self, first: int, given: list[Tensor]) -> None:
        self.first, self._given = first, given
        self.is_collecting = True

    def of_all(self, rows_BD: Tensor) -> Tensor:
        if self.is_collecting:
            self._given.append(rows_BD)
        return torch.cat(self._given)


def _shares(views: Views, sizes: Sequence[int]) -> list[Views]:
    """The views of each process: its users' rows, the items and slots of all."""
    num_slots_U = Columns.of(views.windows, len(views.items.fused_UD)).num_slots_U
    given: list[Tensor] = []
    shares, first = [], 0
    for size in sizes:
        own = slice(first, first + size)
        states = {r: UserStates(one.hidden_BLD[own], one.is_valid_BL[own]) for r, one in views.states.items()}
        peers = _AllRows(first, given)
        shares.append(
            dataclasses.replace(
                views, windows=_users_of(views.windows, own), states=states, num_slots_U=num_slots_U, peers=peers
            )
        )
        first += size
    return shares


def _users_of(windows: Windows, own: slice) -> Windows:
    def chosen(of_pass: WindowPass) -> WindowPass:
        tensors: dict[str, Any] = {
            field.name: value[own]
            for field in dataclasses.fields(of_pass)
            if isinstance(value := getattr(of_pass, field.name), Tensor)
        }
        drawn = {config: index_BLC[own] for config, index_BLC in of_pass.negative_index_BLC.items()}
        shown = of_pass.candidates
        if shown is not None:
            shown = Candidates(shown.item_index_BC[own], shown.is_shown_BC[own], shown.is_clicked_BC[own])
        return dataclasses.replace(of_pass, **tensors, negative_index_BLC=drawn, candidates=shown)

    passes = {request: chosen(of_pass) for request, of_pass in windows.passes.items()}
    return Windows(windows.item_index_BS[own], windows.is_valid_BS[own], passes)


def _together(objective: Objective, shares: Sequence[Views]) -> Term:
    """Sums, counts and metrics of all shares, added up."""
    for share in shares:
        objective(share)
    for share in shares:
        if isinstance(share.peers, _AllRows):
            share.peers.is_collecting = False
    terms = [objective(share) for share in shares]
    metrics = {name: torch.stack([term.metrics[name] for term in terms]).sum(dim=0) for name in terms[0].metrics}
    total, count = (torch.stack(list(column)).sum() for column in zip(*((t.sum, t.count) for t in terms), strict=True))
    return Term(total, count, metrics)


def _assert_same_term(actual: Term, expected: Term, leaves: Mapping[str, Tensor], where: str) -> None:
    require(torch.equal(actual.count, expected.count), f"{where}: count {actual.count:g}, not {expected.count:g}")
    pairs = {"sum": (actual.sum, expected.sum)}
    pairs |= {name: (actual.metrics[name], expected.metrics[name]) for name in expected.metrics}
    after, before = _gradients(actual.sum, leaves), _gradients(expected.sum, leaves)
    pairs |= {f"gradient of {name}": (after[name], before[name]) for name in leaves}
    for name, (found, wanted) in pairs.items():
        assert_close(found, wanted, f"{where}: {name}")


def _gradients(total: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of each leaf; zeros where the sum does not depend on it."""
    found: Sequence[Tensor | None] = [None] * len(leaves)
    if total.requires_grad:
        found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, retain_graph=True)
    return {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
    }
