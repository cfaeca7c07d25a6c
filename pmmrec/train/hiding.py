"""Objectives that hide parts of items: they get their heads from the item encoder, and it learns nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from pmmrec.errors import RecipeError
from pmmrec.models import ItemEncoder
from pmmrec.objectives import Objective
from pmmrec.requests import LOSSES_OF_ITEMS

BACKBONE, POOLER = "backbone.", "pooler."  # of an encoder; nothing that is hidden is guessed by its pooler


def meet(terms: Mapping[str, Objective], encoder: ItemEncoder) -> None:
    """Let each objective take its head from the item encoder.

    RecipeError that names the objective where it cannot, where another one hides the same, and where nothing of the
    encoder learns.
    """
    for view in LOSSES_OF_ITEMS:
        names = [name for name, term in terms.items() if view in term.requests.views]
        if len(names) > 1:
            raise RecipeError(f"objectives: {' and '.join(names)} both hide {view.value}; keep one of them")
    for name, term in terms.items():
        try:
            term.meet(encoder)
        except RecipeError as error:
            raise RecipeError(f"objectives.{name}: {error}") from error
        if term.requests.views & LOSSES_OF_ITEMS and not all(map(_learns, encoder.restoring())):
            raise RecipeError(
                f"objectives.{name}: with trainable_blocks: 0 its head alone would learn, and that is left behind; "
                "take trainable_blocks: all"
            )


def freeze_beside_backbones(encoder: ItemEncoder) -> None:
    """Freeze all of the encoders but their backbones: no vector of an item is read, which projections would make."""
    for one in encoder.encoders.values():
        for path, parameter in one.named_parameters():
            if not path.startswith(BACKBONE) or POOLER in path:
                parameter.requires_grad_(False)


def _learns(encoder: nn.Module) -> bool:
    return any(one.requires_grad for path, one in encoder.named_parameters() if path.startswith(BACKBONE))
