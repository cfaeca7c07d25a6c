"""Packed inputs and states as lists, row by row, in the order of their items."""

from __future__ import annotations

import torch

from pmmrec.contracts import PrefixInputs, TokenInputs, TokenStates


def texts_of(inputs: TokenInputs) -> dict[int, list[int]]:
    """The token ids of each item that has a text, by its place."""
    rows = inputs.token_id_K.split(inputs.packing.length_R.tolist())
    places = inputs.item_index_R.values.tolist()
    return {place: rows[places.index(place)].tolist() for place in sorted(places)}


def states_of(inputs: PrefixInputs) -> dict[int, torch.Tensor]:
    """The kept states of each item, by its place."""
    places = inputs.item_index_R.values.tolist()
    rows = inputs.state if inputs.packing is None else inputs.state.split(inputs.packing.length_R.tolist())
    return {place: rows[places.index(place)] for place in sorted(places)}


def token_states(rows: list[torch.Tensor], cls_RD: torch.Tensor) -> TokenStates:
    """States whose rows have these tokens, `(T, D)` each."""
    lengths = torch.tensor([len(row) for row in rows])
    return TokenStates(torch.cat(rows), (lengths.cumsum(0) - lengths).numpy(), lengths.numpy(), cls_RD)
