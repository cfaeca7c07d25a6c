"""The checks that user encoders inherit."""
# Shapes: B users, L positions, D width.

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pmmrec.contracts import History
from pmmrec.testing.checks import ATOL, Inapplicable, assert_close, check, require
from pmmrec.testing.subjects import Numbers, Subject, history_of
from pmmrec.testing.world import WIDTH
from pmmrec.users import user_encoders

MORE_PADDING = 3


def _opened(subject: Subject) -> tuple[Any, History]:
    part = subject.build().double().eval()
    return part, history_of(Numbers(), part)


def _with_items(history: History, change: Callable[[Tensor], Tensor]) -> History:
    """The history with a change of its items: of their vectors and of every stream, `(B, L, D)`."""
    streams_BLD = {name: change(stream_BLD) for name, stream_BLD in history.streams_BLD.items()}
    return dataclasses.replace(history, item_BLD=change(history.item_BLD), streams_BLD=streams_BLD)


def _with_others_at(history: History, is_changed_BL: Tensor) -> History:
    """The history with other items at some positions."""
    change_D = Numbers(seed=2).normal(WIDTH).detach()
    return _with_items(history, lambda x_BLD: torch.where(is_changed_BL[:, :, None], x_BLD + change_D, x_BLD))


def _with_zeros_at(history: History, is_zero_BL: Tensor) -> History:
    """The history with zeros for the items at some positions."""
    return _with_items(history, lambda x_BLD: torch.where(is_zero_BL[:, :, None], 0.0, x_BLD))


def _states(part: Any, history: History) -> Tensor:
    hidden_BLD: Tensor = part(history).hidden_BLD
    return hidden_BLD.detach()


@check("padding", user_encoders)
def more_padding_changes_nothing(subject: Subject) -> Inapplicable:
    """More padding on the left changes no state of a valid position, masked or not, and no query."""
    part, history = _opened(subject)
    is_valid_BL = history.is_valid_BL
    masks = _masks(history) if part.attends != "past" else ()
    for given in (history, *(dataclasses.replace(history, is_masked_BL=is_masked_BL) for is_masked_BL in masks)):
        padded, where = _padded(given), "with more padding on the left"
        after = _states(part, padded)[:, MORE_PADDING:]
        assert_close(after[is_valid_BL], _states(part, given)[is_valid_BL], where)
        before_KD, after_KD = (part.query(one).hidden_KD.detach() for one in (given, padded))
        assert_close(after_KD, before_KD, f"the query {where}")
    return None


def _padded(history: History) -> History:
    longer = _with_items(history, lambda x_BLD: F.pad(x_BLD, (0, 0, MORE_PADDING, 0)))
    is_masked_BL = None if history.is_masked_BL is None else F.pad(history.is_masked_BL, (MORE_PADDING, 0))
    is_valid_BL = F.pad(history.is_valid_BL, (MORE_PADDING, 0))
    return dataclasses.replace(longer, is_valid_BL=is_valid_BL, is_masked_BL=is_masked_BL)


def _masks(history: History) -> list[Tensor]:
    """For each position, a mask `(B, L)` of it alone, for every user who has an item there."""
    is_valid_BL, place_L = history.is_valid_BL, torch.arange(history.is_valid_BL.shape[1])
    return [is_valid_BL & (place_L == place) for place in place_L]


@check("causal", user_encoders)
def a_state_depends_on_the_past_alone(subject: Subject) -> Inapplicable:
    """Under `attends == "past"` another item at position l changes no state before l."""
    part, history = _opened(subject)
    if part.attends != "past":
        return f"attends: {part.attends}"
    before = _states(part, history)
    for position in range(1, history.item_BLD.shape[1]):
        is_changed_BL = torch.zeros_like(history.is_valid_BL)
        is_changed_BL[:, position] = True
        after = _states(part, _with_others_at(history, is_changed_BL))
        is_before_BL = history.is_valid_BL.clone()
        is_before_BL[:, position:] = False
        assert_close(after[is_before_BL], before[is_before_BL], f"with another item at position {position}")
    return None


@check("masks", user_encoders)
def a_mask_replaces_the_item(subject: Subject) -> Inapplicable:
    """Unless `attends == "past"` the item at a masked position is not read; a mask is not an item of zeros either."""
    part, history = _opened(subject)
    if part.attends == "past":
        return f"attends: {part.attends}"
    valid_BL = history.is_valid_BL
    for place, is_masked_BL in enumerate(_masks(history)):
        masked = dataclasses.replace(history, is_masked_BL=is_masked_BL)
        hidden_BLD = _states(part, masked)
        assert_close(
            _states(part, _with_others_at(masked, is_masked_BL))[valid_BL],
            hidden_BLD[valid_BL],
            f"with another item under the mask at position {place}",
        )
        zeroed = _with_zeros_at(history, is_masked_BL)
        is_same = torch.allclose(_states(part, zeroed)[valid_BL], hidden_BLD[valid_BL], rtol=0, atol=ATOL)
        require(not is_same, "a masked position is read as an item of zeros; give the mask a vector, or leave it out")
    return None


@check("not its own", user_encoders)
def a_state_depends_on_the_others_alone(subject: Subject) -> Inapplicable:
    """Under `attends == "others"` another item at position l changes the states of all others, and not that at l."""
    part, history = _opened(subject)
    if part.attends != "others":
        return f"attends: {part.attends}"
    before = _states(part, history)
    for place, is_changed_BL in enumerate(_masks(history)):
        after = _states(part, _with_others_at(history, is_changed_BL))
        assert_close(after[is_changed_BL], before[is_changed_BL], f"with another item at position {place}, its state")
        is_reader_BL = history.is_valid_BL & is_changed_BL.any(dim=1, keepdim=True) & ~is_changed_BL
        is_same_BL = ((after - before).abs() <= ATOL).all(dim=2)
        require(not (is_same_BL & is_reader_BL).any(), f"a state does not depend on the item at position {place}")
    return None


@check("alone = in batch", user_encoders)
def a_user_alone_is_what_it_is_in_a_batch(subject: Subject) -> Inapplicable:
    """The states of a user do not depend on the other users of the batch."""
    part, history = _opened(subject)
    whole = _states(part, history)
    for user in range(len(whole)):
        alone, is_valid_L = _users_of(history, slice(user, user + 1)), history.is_valid_BL[user]
        assert_close(_states(part, alone)[0, is_valid_L], whole[user, is_valid_L], f"user {user} alone")
    return None


def _users_of(history: History, some: slice) -> History:
    """The history of some users."""
    streams_BLD = {name: stream_BLD[some] for name, stream_BLD in history.streams_BLD.items()}
    users = None if history.user_index_B is None else history.user_index_B[some]
    return History(history.item_BLD[some], history.is_valid_BL[some], streams_BLD, user_index_B=users)


@check("shares = whole", user_encoders)
def gradients_of_shares_add_up_to_the_whole(subject: Subject) -> Inapplicable:
    """Users may be shared out to processes, in training but for dropout: gradients of parameters and items add up."""
    part = subject.build().double()
    history = history_of(Numbers(), part)
    _train_without_dropout(part, history)
    leaves = {"items": history.item_BLD, **history.streams_BLD}
    leaves |= {name: one for name, one in part.named_parameters() if one.requires_grad}
    num_users, weight_BLD = len(history.item_BLD), Numbers(seed=3).normal(*history.item_BLD.shape).detach()

    def loss_of(some: slice) -> Tensor:
        own = _users_of(history, some)
        hidden_BLD: Tensor = part(own).hidden_BLD
        return torch.where(own.is_valid_BL[:, :, None], hidden_BLD * weight_BLD[some], 0.0).sum()

    shares = [loss_of(slice(0, num_users - 1)), loss_of(slice(num_users - 1, num_users))]
    whole, added = (
        torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True, allow_unused=True)
        for loss in (loss_of(slice(0, num_users)), torch.stack(shares).sum())
    )
    for name, one, other in zip(leaves, added, whole, strict=True):
        assert_close(one, other, f"shares of users: gradient of {name}")
    return None


def _train_without_dropout(part: Any, history: History) -> None:
    """Training mode; evaluation mode where something other than dropout modules is random."""
    for module in part.train().modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    first, second = _states(part, history), _states(part, history)
    part.train(torch.equal(first, second))


@check("last alone", user_encoders)
def the_last_state_alone_is_that_of_all(subject: Subject) -> Inapplicable:
    """Where the last state alone is read, it is what it is among all, and so are the gradients of what it reads."""
    part = subject.build().double()
    history = history_of(Numbers(), part)
    _train_without_dropout(part, history)
    leaves = {"items": history.item_BLD, **history.streams_BLD}
    leaves |= {name: one for name, one in part.named_parameters() if one.requires_grad}
    weight_BD = Numbers(seed=3).normal(len(history.item_BLD), WIDTH).detach()
    alone_BD, whole_BD = (
        part.query(dataclasses.replace(history, last_alone=last_alone)).hidden_KD for last_alone in (True, False)
    )
    assert_close(alone_BD, whole_BD, "the last state alone")
    alone, whole = (
        torch.autograd.grad(
            (state_BD * weight_BD).sum(), list(leaves.values()), materialize_grads=True, allow_unused=True
        )
        for state_BD in (alone_BD, whole_BD)
    )
    for name, one, other in zip(leaves, alone, whole, strict=True):
        assert_close(one, other, f"the last state alone: gradient of {name}")
    return None


@check("query", user_encoders)
def the_query_is_the_last_state(subject: Subject) -> Inapplicable:
    """The state that ranks is finite, at the greatest length too; under `attends == "past"` it is the last state."""
    part = subject.build().double().eval()
    length = min(part.max_inputs, 64)
    history = history_of(Numbers(), part, lengths=(length, 1))
    hidden_KD = part.query(history).hidden_KD.detach()
    require(hidden_KD.shape == (2, history.item_BLD.shape[2]), f"gives a query of shape {tuple(hidden_KD.shape)}")
    require(hidden_KD.isfinite().all(), "the query holds NaN or infinity")
    if part.attends == "past":
        assert_close(hidden_KD, _states(part, history)[:, -1], "the query against the last state")
    return None
