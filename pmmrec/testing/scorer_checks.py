"""The checks that scorers inherit."""
# Shapes: B users, L positions, K queries, N items, C candidates, D width.

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pmmrec.contracts import ItemVectors, Places, Query, UserStates
from pmmrec.models import scorers
from pmmrec.testing.checks import Inapplicable, assert_close, check, require
from pmmrec.testing.subjects import Numbers, Subject, is_valid
from pmmrec.testing.twins import NO_TWIN, find_twin
from pmmrec.testing.world import WIDTH

NUM_ITEMS, NUM_USERS, LENGTH, MORE_PADDING = 6, 5, 4, 3


def _asked(subject: Subject) -> tuple[Any, Query, ItemVectors, Tensor]:
    """A scorer, queries of several users at several positions, items, and how often each was touched."""
    numbers = Numbers()
    is_valid_BL = is_valid((4, 3, 2, 1, 4), LENGTH, left=True)
    query = Query.at(UserStates(numbers.normal(NUM_USERS, LENGTH, WIDTH), is_valid_BL), Places.where(is_valid_BL))
    items = ItemVectors(numbers.normal(NUM_ITEMS, WIDTH))
    return subject.build().double().eval(), query, items, torch.arange(NUM_ITEMS)


@check("all = one by one", scorers)
def candidates_score_what_they_score_among_all(subject: Subject) -> Inapplicable:
    """The score of a candidate is its score among all items, whichever candidates stand beside it."""
    part, query, items, _ = _asked(subject)
    whole_KN = part(query, items)
    draw = torch.Generator().manual_seed(3)
    candidate_KC = torch.randint(0, NUM_ITEMS, (len(query), 3), generator=draw)
    score_KC = part(query, items, candidate_KC)
    assert_close(score_KC, whole_KN.gather(1, candidate_KC), "candidates against all items")
    for place in range(3):
        alone = part(query, items, candidate_KC[:, place : place + 1])
        assert_close(alone[:, 0], score_KC[:, place], "a candidate alone")
    return None


@check("twin", scorers)
def it_equals_its_twin(subject: Subject) -> Inapplicable:
    """Ranked scores and their gradients are those of its twin, which goes through queries and items one by one."""
    twin = find_twin(subject.family, subject.config.type)
    if twin is None:
        return NO_TWIN
    part, query, items, count_N = _asked(subject)
    found_KN, wanted_KN = part.ranked(part(query, items), count_N), twin(part, query, items, count_N)
    assert_close(found_KN, wanted_KN, "against its twin")
    weight_KN = Numbers(seed=3).normal(*found_KN.shape).detach()
    leaves = {"states": query.states.hidden_BLD, "items": items.fused_UD, **dict(part.named_parameters())}
    found, wanted = (
        torch.autograd.grad((score_KN * weight_KN).sum(), list(leaves.values()), allow_unused=True)
        for score_KN in (found_KN, wanted_KN)
    )
    for name, one, other in zip(leaves, found, wanted, strict=True):
        require((one is None) == (other is None), f"only one of it and its twin has a gradient of {name}")
        if one is not None:
            assert_close(one, other, f"against its twin: gradient of {name}")
    return None


@check("chunks = whole", scorers)
def chunks_score_what_the_whole_scores(subject: Subject) -> Inapplicable:
    """Queries and items may come in chunks, as ranking reads a large catalogue."""
    part, query, items, count_N = _asked(subject)
    whole_KN = part.ranked(part(query, items), count_N)
    for few in (1, 4):
        rows = []
        for start in range(0, len(query), few):
            some = query[start : start + few]
            columns = [slice(first, first + few) for first in range(0, NUM_ITEMS, few)]
            scores = [
                part.ranked(part(some, _part_of(items, some_items)), count_N[some_items]) for some_items in columns
            ]
            rows.append(torch.cat(scores, dim=1))
        assert_close(torch.cat(rows), whole_KN, f"chunks of {few}")
    return None


def _part_of(items: ItemVectors, some: slice) -> ItemVectors:
    return dataclasses.replace(items, fused_UD=items.fused_UD[some])


@check("causal", scorers)
def a_score_depends_on_the_past_alone(subject: Subject) -> Inapplicable:
    """Other states behind the queried position change no score: those are made of the items to be predicted."""
    part, query, items, _ = _asked(subject)
    before_KN = part(query, items)
    for position in range(LENGTH - 1):
        is_later_BL = torch.arange(LENGTH).expand(NUM_USERS, LENGTH) > position
        after_KN = part(_with_other_states(query, is_later_BL), items)
        is_early_K = query.position_K <= position
        assert_close(after_KN[is_early_K], before_KN[is_early_K], f"with other states behind position {position}")
    return None


@check("padding", scorers)
def padding_changes_no_score(subject: Subject) -> Inapplicable:
    """States of padding are not read, and more padding on the left changes nothing."""
    part, query, items, _ = _asked(subject)
    before_KN = part(query, items)
    spoiled = _with_other_states(query, ~query.states.is_valid_BL)
    assert_close(part(spoiled, items), before_KN, "with other states of padding")
    hidden_BLD = F.pad(query.states.hidden_BLD, (0, 0, MORE_PADDING, 0))
    states = UserStates(hidden_BLD, F.pad(query.states.is_valid_BL, (MORE_PADDING, 0)))
    longer = Query(states, query.user_K, query.position_K + MORE_PADDING)
    assert_close(part(longer, items), before_KN, "with more padding on the left")
    return None


@check("alone = in batch", scorers)
def a_query_alone_scores_what_it_scores_in_a_batch(subject: Subject) -> Inapplicable:
    """The scores of a query do not depend on the other users of the batch."""
    part, query, items, _ = _asked(subject)
    whole_KN = part(query, items)
    for user in range(NUM_USERS):
        states = UserStates(query.states.hidden_BLD[user, None], query.states.is_valid_BL[user, None])
        own = Query.at(states, Places.where(states.is_valid_BL))
        assert_close(part(own, items), whole_KN[query.user_K == user], f"user {user} alone")
    return None


def _with_other_states(query: Query, is_other_BL: Tensor) -> Query:
    other_BLD = Numbers(seed=2).normal(*query.states.hidden_BLD.shape)
    hidden_BLD = torch.where(is_other_BL[:, :, None], 10 * other_BLD, query.states.hidden_BLD)
    return dataclasses.replace(query, states=dataclasses.replace(query.states, hidden_BLD=hidden_BLD))


@check("keys", scorers)
def keys_give_the_ranked_scores(subject: Subject) -> Inapplicable:
    """The inner products of keys with the queried states are the scores that a ranking sorts by."""
    part, query, items, count_N = _asked(subject)
    key_NE = part.keys(items, count_N)
    if key_NE is None:
        return "is not an inner product"
    asked_KE = part.asked(query.hidden_KD)
    if key_NE.shape[1] == WIDTH + 1:
        asked_KE = F.pad(asked_KE, (0, 1), value=1.0)
    assert_close(asked_KE @ key_NE.T, part.ranked(part(query, items), count_N), "keys against ranked scores")
    return None
