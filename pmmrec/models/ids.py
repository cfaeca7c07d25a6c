"""Items by who they are: one learned vector for each row of each catalogue."""
# Shapes: U distinct items, D width.

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import nn

from pmmrec.context import BuildContext
from pmmrec.contracts import ItemInputs, ItemVectors
from pmmrec.models import ItemEncoder, ItemEncoderConfig, item_encoders
from pmmrec.row_table import RowTable


class IdsConfig(ItemEncoderConfig):
    """Settings of an item encoder that knows items by id; there are none."""

    type: Literal["ids"] = "ids"


@item_encoders.register("ids", IdsConfig)
class Ids(ItemEncoder):
    """One learned vector `(D,)` for each item of the run's domains.

    The items of SASRec, GRU4Rec and BERT4Rec, and the id-only twin of systems that read items. What is learned serves
    these items alone. Vectors start as normal(0.02).

    Example:
        model: {item_encoder: {type: ids}}
    """

    def __init__(self, config: IdsConfig, context: BuildContext) -> None:  # noqa: ARG002  # every part is built so
        super().__init__()
        self.item_table = RowTable(context.catalogues, context.width)

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        return {"item_table": self.item_table}

    def forward(self, items: ItemInputs) -> ItemVectors:
        """Vectors of U distinct items."""
        return ItemVectors(self.item_table(items.domain_U, items.row_U))
