"""One learned vector for each row of some domains: of its items, or of its users."""
# Shapes: K rows that are looked up, D width.

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pmmrec.context import Catalogue
from pmmrec.errors import CheckpointError, RecipeError

RowKind = Literal["items", "users"]
_PARTS = {"items": "item_table", "users": "user_encoder"}  # the part of a checkpoint that holds such a table


class RowTable(nn.Module):
    """One vector for each item, or each user, of some domains; its state says which, so that it serves no others.

    The domains travel as a tensor of bytes, because every way to save a model keeps tensors.
    """

    def __init__(self, catalogues: Sequence[Catalogue], width: int, kind: RowKind = "items") -> None:
        super().__init__()
        if not catalogues:
            raise RecipeError(
                f"{kind[:-1]}_encoder: ids need the catalogues of a run, whose {kind} they are; choose a "
                "part that reads what items are to do without"
            )
        self.catalogues, self.kind = tuple(catalogues), kind
        num_rows = [count for count, _ in self._rows_of(catalogues)]
        starts = [sum(num_rows[:place]) for place in range(len(num_rows))]
        self.vector = nn.Embedding(sum(num_rows), width)
        nn.init.normal_(self.vector.weight, std=0.02)
        self.register_buffer("start_of_domain", torch.tensor(starts), persistent=False)
        self.register_buffer("catalogue_bytes", _as_bytes(self.catalogues, kind))
        self.register_load_state_dict_pre_hook(_refuse_other_domains)  # type: ignore[no-untyped-call]  # in torch

    def forward(self, domain_K: Tensor, row_K: Tensor) -> Tensor:
        """Vectors of rows of domains, `(K, D)`."""
        vectors_KD: Tensor = self.vector(self.get_buffer("start_of_domain")[domain_K] + row_K)
        return vectors_KD

    def check_catalogues(self, saved: Tensor) -> None:
        """CheckpointError unless the bytes of a saved `catalogue_bytes` name the same rows in the same order."""
        theirs = catalogues_in(saved)
        if self._rows_of(self.catalogues) != self._rows_of(theirs):
            raise CheckpointError(
                f"{_PARTS[self.kind]}: was learned for the {self.kind} of {self._named(theirs)}, but this run has "
                f"those of {self._named(self.catalogues)}; an id means nothing elsewhere: start {_PARTS[self.kind]} "
                "fresh, or transfer a model that reads items"
            )

    def _rows_of(self, catalogues: Sequence[Catalogue]) -> list[tuple[int, str]]:
        if self.kind == "items":
            return [(catalogue.num_items, catalogue.fingerprint) for catalogue in catalogues]
        return [(catalogue.num_users, catalogue.users_fingerprint) for catalogue in catalogues]

    def _named(self, catalogues: Sequence[Catalogue]) -> str:
        counts = [count for count, _ in self._rows_of(catalogues)]
        named = zip(catalogues, counts, strict=True)
        return ", ".join(f"{catalogue.name} ({count:,} {self.kind})" for catalogue, count in named)


def catalogues_in(saved: Tensor) -> list[Catalogue]:
    """The domains that a saved `catalogue_bytes` names. Raises CheckpointError where it names none."""
    try:
        tree = json.loads(bytes(saved.tolist()).decode())
        return [
            Catalogue(str(name), int(num_items), str(fingerprint), *users)
            for name, num_items, fingerprint, *users in tree
        ]
    except (ValueError, TypeError) as error:
        raise CheckpointError("catalogue_bytes does not say which domains its rows were learned for") from error


def _as_bytes(catalogues: Sequence[Catalogue], kind: RowKind) -> Tensor:
    tree = [
        [c.name, c.num_items, c.fingerprint, *([c.num_users, c.users_fingerprint] if kind == "users" else [])]
        for c in catalogues
    ]
    return torch.tensor(list(json.dumps(tree).encode()), dtype=torch.uint8)


def _refuse_other_domains(table: RowTable, state: dict[str, Any], prefix: str, *_: Any) -> None:
    name = f"{prefix}catalogue_bytes"
    if name in state:
        table.check_catalogues(state[name])
        state[name] = table.get_buffer("catalogue_bytes")  # the same rows, perhaps under a name of another length
