"""Items by who they are: one learned vector for each row of each catalogue."""
# Shapes: U distinct items, D width.

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pmmrec.context import BuildContext, Catalogue
from pmmrec.contracts import ItemInputs, ItemVectors
from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.models import ItemEncoder, ItemEncoderConfig, item_encoders


class IdsConfig(ItemEncoderConfig):
    """Settings of an item encoder that knows items by id; there are none."""

    type: Literal["ids"] = "ids"


class ItemTable(nn.Module):
    """One vector for each item of some catalogues; its state says which, so that it serves no others.

    The catalogues travel as a tensor of bytes, because every way to save a model keeps tensors.
    """

    def __init__(self, catalogues: Sequence[Catalogue], width: int) -> None:
        super().__init__()
        if not catalogues:
            raise RecipeError("item_encoder: ids need the catalogues of a run; choose towers to read items without one")
        self.catalogues = tuple(catalogues)
        num_items = [catalogue.num_items for catalogue in catalogues]
        starts = [sum(num_items[:place]) for place in range(len(num_items))]
        self.vector = nn.Embedding(sum(num_items), width)
        nn.init.normal_(self.vector.weight, std=0.02)
        self.register_buffer("start_of_domain", torch.tensor(starts), persistent=False)
        self.register_buffer("catalogue_bytes", _as_bytes(self.catalogues))
        self.register_load_state_dict_pre_hook(_refuse_other_catalogue)  # type: ignore[no-untyped-call]  # in torch

    def forward(self, domain_U: Tensor, row_U: Tensor) -> Tensor:
        """Places of U items -> `(U, D)`."""
        vectors_UD: Tensor = self.vector(self.get_buffer("start_of_domain")[domain_U] + row_U)
        return vectors_UD

    def check_catalogues(self, saved: Tensor) -> None:
        """CheckpointError unless the bytes of a saved `catalogue_bytes` name the same items in the same order."""
        ours = [(catalogue.num_items, catalogue.fingerprint) for catalogue in self.catalogues]
        theirs = catalogues_in(saved)
        if ours != [(catalogue.num_items, catalogue.fingerprint) for catalogue in theirs]:
            raise CheckpointError(
                f"item_table: was learned for the items of {_named(theirs)}, but this run has "
                f"those of {_named(self.catalogues)}; an id means nothing elsewhere: start item_table fresh, or "
                "transfer a model that reads items"
            )


@item_encoders.register("ids", IdsConfig)
class Ids(ItemEncoder):
    """One learned vector for each item: the id-only twin of every system, which cannot be carried elsewhere."""

    def __init__(self, config: IdsConfig, context: BuildContext) -> None:  # noqa: ARG002  # every part is built so
        super().__init__()
        self.modalities = frozenset()
        self.item_table = ItemTable(context.catalogues, context.width)

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        return {"item_table": self.item_table}

    def forward(self, items: ItemInputs) -> ItemVectors:
        """Vectors of U distinct items."""
        return ItemVectors(self.item_table(items.domain_U, items.row_U))


def _refuse_other_catalogue(table: ItemTable, state: dict[str, Any], prefix: str, *_: Any) -> None:
    name = f"{prefix}catalogue_bytes"
    if name in state:
        table.check_catalogues(state[name])
        state[name] = table.get_buffer("catalogue_bytes")  # the same items, perhaps under a name of another length


def _as_bytes(catalogues: Sequence[Catalogue]) -> Tensor:
    tree = [[catalogue.name, catalogue.num_items, catalogue.fingerprint] for catalogue in catalogues]
    return torch.tensor(list(json.dumps(tree).encode()), dtype=torch.uint8)


def catalogues_in(saved: Tensor) -> list[Catalogue]:
    """The catalogues that a saved `catalogue_bytes` names. Raises CheckpointError where it names none."""
    try:
        tree = json.loads(bytes(saved.tolist()).decode())
        return [Catalogue(str(name), int(num_items), str(fingerprint)) for name, num_items, fingerprint in tree]
    except (ValueError, TypeError) as error:
        raise CheckpointError("item_table: catalogue_bytes does not say which items it was learned for") from error


def _named(catalogues: Sequence[Catalogue]) -> str:
    return ", ".join(f"{catalogue.name} ({catalogue.num_items:,} items)" for catalogue in catalogues)
