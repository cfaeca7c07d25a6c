"""Views made by hand, as objectives see them: plain windows, their noised twin, and scores by dot products."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from pmmrec.context import BuildContext
from pmmrec.contracts import ItemVectors, UserStates, Views, WindowPass, Windows
from pmmrec.models.dot import Dot, DotConfig
from pmmrec.requests import DrawnNegatives, Masked, NextItems, Noised

PLAIN, NOISED = NextItems(), Noised()


def dot_of(items: ItemVectors) -> partial[Tensor]:
    """Scores of these items by dot products."""
    scorer = Dot(DotConfig(), BuildContext(items.fused_UD.shape[1]))

    def score(query, candidate_KC=None, stream: str | None = None, *, items: ItemVectors) -> Tensor:
        if stream is not None:
            items = dataclasses.replace(items, fused_UD=items.streams_UD[stream])
        return scorer(query, items, candidate_KC)

    return partial(score, items=items)


def noised(windows: Windows, item_index_BL: Tensor, noise_BL: Tensor) -> Windows:
    """The windows with the plain pass and one with noise."""
    plain = windows.next_items
    with_noise = dataclasses.replace(plain, item_index_BL=item_index_BL, noise_BL=noise_BL)
    return dataclasses.replace(windows, passes={PLAIN: plain, NOISED: with_noise})


def views_of(
    items: ItemVectors, windows: Windows, hidden_BLD: Tensor, noised_BLD: Tensor | None = None, **more: object
) -> Views:
    """Views whose passes have these hidden states."""
    passes: Mapping = {PLAIN: windows.next_items} | dict(windows.passes)
    windows = dataclasses.replace(windows, passes=passes)
    states = {PLAIN: UserStates(hidden_BLD, passes[PLAIN].is_valid_BL)}
    if noised_BLD is not None:
        states[NOISED] = UserStates(noised_BLD, passes[PLAIN].is_valid_BL)
    return Views(items, windows, states, dot_of(items), **more)


def hidden_of(views: Views) -> Tensor:
    return views.states[PLAIN].hidden_BLD


def noised_of(views: Views) -> Tensor:
    return views.states[NOISED].hidden_BLD


def with_masked(views: Views, request: Masked, seed: int = 0) -> Views:
    """The same views with a pass whose masked items are targets, and random states for it."""
    draw, windows = torch.Generator().manual_seed(seed), views.windows
    is_masked_BS = (torch.rand(windows.is_valid_BS.shape, generator=draw) < 0.4) & windows.is_valid_BS
    masked = WindowPass(
        windows.item_index_BS, windows.is_valid_BS, windows.item_index_BS, is_masked_BS, is_masked_BL=is_masked_BS
    )
    width = views.items.fused_UD.shape[1]
    hidden_BSD = torch.randn(*is_masked_BS.shape, width, generator=draw, dtype=torch.float64).requires_grad_()
    return dataclasses.replace(
        views,
        windows=dataclasses.replace(windows, passes={**windows.passes, request: masked}),
        states={**views.states, request: UserStates(hidden_BSD, windows.is_valid_BS)},
    )


def with_items(views: Views, items: ItemVectors) -> Views:
    return dataclasses.replace(views, items=items, score=dot_of(items))


def with_windows(views: Views, windows: Windows) -> Views:
    """Other windows, with the passes that they give, under the same states."""
    passes = {PLAIN: windows.next_items}
    if NOISED in views.states:
        old = views.windows.passes[NOISED]
        passes[NOISED] = dataclasses.replace(windows.next_items, item_index_BL=old.item_index_BL, noise_BL=old.noise_BL)
    return dataclasses.replace(views, windows=dataclasses.replace(windows, passes=passes))


def with_states(views: Views, hidden_BLD: Tensor | None = None, noised_BLD: Tensor | None = None) -> Views:
    """The same views with other hidden states."""
    states = dict(views.states)
    for request, given in ((PLAIN, hidden_BLD), (NOISED, noised_BLD)):
        if given is not None:
            states[request] = dataclasses.replace(states[request], hidden_BLD=given)
    return dataclasses.replace(views, states=states)


def rows_of(windows: Windows, own: slice | Tensor) -> Windows:
    """Some users of windows, with their passes."""

    def chosen(of_pass: WindowPass) -> WindowPass:
        tensors = {
            field.name: value[own]
            for field in dataclasses.fields(of_pass)
            if isinstance(value := getattr(of_pass, field.name), torch.Tensor)
        }
        drawn = {config: index[own] for config, index in of_pass.negative_index_BLC.items()}
        return dataclasses.replace(of_pass, **tensors, negative_index_BLC=drawn)

    passes = {request: chosen(of_pass) for request, of_pass in windows.passes.items()}
    return Windows(windows.item_index_BS[own], windows.is_valid_BS[own], passes)


def states_of_rows(views: Views, own: slice | Tensor) -> dict:
    return {
        request: UserStates(states.hidden_BLD[own], states.is_valid_BL[own]) for request, states in views.states.items()
    }


def with_negatives(views: Views, config: DrawnNegatives, seed: int = 0) -> Views:
    """Negatives for every target of the plain pass; which items they are does not matter to the loss."""
    plain = views.windows.next_items
    shape = (*plain.item_index_BL.shape, config.count)
    draw = torch.Generator().manual_seed(seed)
    negative_index_BLC = torch.randint(0, len(views.items.fused_UD), shape, generator=draw)
    of_pass = dataclasses.replace(plain, negative_index_BLC={config: negative_index_BLC})
    windows = dataclasses.replace(views.windows, passes={**views.windows.passes, PLAIN: of_pass})
    return dataclasses.replace(views, windows=windows)
