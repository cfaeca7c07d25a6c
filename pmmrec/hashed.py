"""Random numbers that depend on an item and on the step alone: the same in every process, whatever else is there."""
# Shapes: U distinct items, R rows, P numbers of a row.

from __future__ import annotations

import torch
from torch import Tensor

from pmmrec.contracts import ItemInputs

# Multipliers of splitmix64, as signed numbers of 64 bits; products wrap around.
_STEP, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685
_BITS = 53  # that a float64 holds exactly


def mixed(x: Tensor) -> Tensor:
    """A hash of each whole number (splitmix64)."""
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def uniform(seed_R: Tensor, num_numbers: int) -> Tensor:
    """Numbers `(R, P)` in 0..1, float64; a row depends on its seed alone."""
    place_P = torch.arange(num_numbers, device=seed_R.device)
    bits_RP = mixed(seed_R[:, None] + place_P * _STEP)
    return (bits_RP & ((1 << _BITS) - 1)).double() / (1 << _BITS)


def item_seeds(items: ItemInputs, salt: int = 0) -> Tensor:
    """A seed for each item, `(U,)`: of its domain, its row, what the step draws, and what the seed is for (`salt`)."""
    draw = items.row_U.new_zeros(()) if items.draw is None else items.draw
    return mixed(mixed(items.domain_U + draw) + items.row_U * _STEP + salt)


def left_in(draw: Tensor, num_rows: int, share: float, salt: int) -> Tensor:
    """`(R,)` bool: False for a share of the rows, drawn without replacement by what the step draws (`draw`).

    `salt`: what they are drawn for.
    """
    seed_R = mixed(mixed(draw + salt) + torch.arange(num_rows, device=draw.device) * _STEP)
    left_out = uniform(seed_R, 1)[:, 0].topk(round(share * num_rows), sorted=False).indices
    return torch.ones(num_rows, dtype=torch.bool, device=draw.device).index_fill(0, left_out, value=False)


def one_of(draw: Tensor, num_choices: int, salt: int) -> Tensor:
    """A whole number from 0 to `num_choices` - 1, a scalar, each as likely as the others."""
    number = uniform(mixed(draw + salt)[None], 1)[0, 0]
    return (number * num_choices).long().clamp(max=num_choices - 1)


def _shifted(x: Tensor, places: int) -> Tensor:
    """Shifted to the right, filled with zeros."""
    return (x >> places) & ((1 << (64 - places)) - 1)
