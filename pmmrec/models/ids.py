"""Items by who they are: one learned vector for each row of each catalogue."""
# Shapes: U distinct items, D width.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from pmmrec.context import BuildContext
from pmmrec.contracts import ItemInputs, ItemVectors
from pmmrec.head import blocks_of
from pmmrec.models import ItemEncoder, ItemEncoderConfig, item_encoders
from pmmrec.row_table import RowTable


class IdsConfig(ItemEncoderConfig):
    """Settings of an item encoder that knows items by id."""

    type: Literal["ids"] = "ids"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"layers": 2})
    layers: int = Field(0, ge=0, description="Blocks of dropout, linear layer and GELU above the table (DSSM: 0 to 5).")
    dropout: float = Field(0.1, ge=0, lt=1, description="Of the blocks; without effect where there is none.")


@item_encoders.register("ids", IdsConfig)
class Ids(ItemEncoder):
    """One learned vector `(D,)` for each item of the run's domains.

    The items of SASRec, GRU4Rec and BERT4Rec, and the id-only twin of systems that read items. What is learned serves
    these items alone. Vectors start as normal(0.02). DSSM in MoRec (https://arxiv.org/abs/2303.13835) has `layers`
    above them, in the part `item_layers`: 0, 1, 3 or 5, of which 0 was best.

    Example:
        model: {item_encoder: {type: ids}}
    """

    def __init__(self, config: IdsConfig, context: BuildContext) -> None:
        super().__init__()
        width = context.width
        self.item_table = RowTable(context.catalogues, width)
        self.item_layers = nn.Sequential(*blocks_of(config.layers, width, width, "gelu", config.dropout))

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        return {"item_table": self.item_table, **({"item_layers": self.item_layers} if self.item_layers else {})}

    def forward(self, items: ItemInputs) -> ItemVectors:
        """Vectors of U distinct items."""
        return ItemVectors(self.item_layers(self.item_table(items.domain_U, items.row_U)))
