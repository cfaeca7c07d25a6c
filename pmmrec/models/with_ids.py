"""Items by who they are and by what they hold: a learned vector for each, joined with that of another item encoder."""
# Shapes: U distinct items, D width, C width of the content.

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from pmmrec.context import BuildContext
from pmmrec.contracts import FieldSpec, IdSpec, ItemInputs, ItemVectors
from pmmrec.encoders import Encoder, EncoderConfig
from pmmrec.errors import RecipeError
from pmmrec.head import HeadActivation, blocks_of
from pmmrec.modality import ITEM_ID
from pmmrec.models import ItemEncoder, ItemEncoderConfig, item_encoders
from pmmrec.row_table import RowTable

if TYPE_CHECKING:
    ContentField: TypeAlias = ItemEncoderConfig
else:
    ContentField = item_encoders.field

STREAM = "content"
_CLIP: Mapping[str, Any] = {"type": "features", "features": {"clip": 5}}


class WithIdsConfig(ItemEncoderConfig):
    """Settings of an item encoder that knows items by id and reads them as well."""

    type: Literal["with_ids"] = "with_ids"
    content: ContentField = Field(description="The item encoder that reads items: towers, features, ...")
    join: Literal["add", "concat", "beside", "stream"] = Field(
        "add",
        description="How the vector of the id and that of the content become one. beside: they stand side by side, and "
        "share the width (VBPR). stream: they do not; the item is its id, and the content is the stream `content` of a "
        "user encoder that reads it.",
    )
    layers: int | None = Field(
        None,
        ge=0,
        description="Blocks of dropout, linear layer and activation behind the join; null: 1 for concat, whose first "
        "block makes one width of two, else 0.",
    )
    activation: HeadActivation = Field("gelu", description="Of the blocks; none: they are linear.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Of the blocks; without effect where there is none.")
    scale_ids: Literal["none", "sqrt_width"] = Field(
        "none", description="sqrt_width: vectors of ids are multiplied by the root of the width, as in CARCA."
    )
    content_width: int | None = Field(
        None,
        ge=1,
        description="Length of the content's vector; null: the width of the model, which `add` needs, and for beside "
        "half of it.",
    )

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"content": _CLIP},
        {"content": _CLIP, "layers": 2},
        {"content": _CLIP, "join": "concat", "scale_ids": "sqrt_width", "content_width": 7, "activation": "none"},
        {"content": _CLIP, "join": "concat", "layers": 3, "activation": "relu"},
        {"content": _CLIP, "join": "beside"},
        {"content": _CLIP, "join": "beside", "content_width": 3},
        {"content": _CLIP, "join": "stream", "content_width": 7},
    )

    @model_validator(mode="after")
    def _fits_the_join(self) -> Self:
        if not isinstance(self.content, ItemEncoderConfig) or self.content.knows_ids:
            raise ValueError(f"content: {self.content.type} knows items by id already; give an item encoder that reads")
        if ITEM_ID in self.content.fields:
            raise ValueError(f"content: {ITEM_ID} stands for the id of an item; read the field under another name")
        if self.join == "add" and self.content_width is not None:
            raise ValueError("content_width: vectors that are added have the width of the model; leave it out")
        if self.join == "concat" and self.layers == 0:
            raise ValueError("layers: 0 would leave two vectors side by side; concat needs 1 or more")
        if self.join in ("beside", "stream") and self.layers:
            raise ValueError(f"layers: has no effect with join: {self.join}, which joins nothing; leave it out")
        return self

    @property
    def num_layers(self) -> int:
        """How many blocks stand behind the join."""
        return self.layers if self.layers is not None else int(self.join == "concat")

    @property
    def encoders(self) -> Mapping[str, EncoderConfig]:
        return self.content.encoders

    @property
    def fields(self) -> frozenset[str]:
        return self.content.fields | {ITEM_ID}

    @property
    def knows_ids(self) -> bool:
        return True

    @property
    def texts(self) -> tuple[str, ...]:
        return self.content.texts

    @property
    def for_objectives(self) -> Mapping[str, str]:
        return {f"content.{setting}": stream for setting, stream in self.content.for_objectives.items()}

    def keeping(self, parts: Collection[str]) -> ItemEncoderConfig:
        """With the named parts of the content alone; without `item_table` it is the content that is left."""
        content = self.content.keeping(parts)
        return self.model_copy(update={"content": content}) if "item_table" in parts else content


@item_encoders.register("with_ids", WithIdsConfig)
class WithIds(ItemEncoder):
    """Join a learned vector `(D,)` of each item's id with the vector of its content, which another item encoder gives.

    With e of the id and c of the content, `add` is e + c, `concat` is MLP([e; c]), whose blocks are dropout, linear
    layer and activation, and `beside` is [e; c], of which c has `content_width` numbers and e the rest of D; with
    `stream` the item is e, and c goes to the user encoder beside it. An item without content
    has c = 0, and one that training never meets keeps the e that it began with. Blocks start as torch's, vectors of ids
    as normal(0.02). No two items are the same, and what is learned serves the items of the run alone; the plan
    `transfer: {load: ["*"], fresh: [item_table], drop: [item_table]}` takes the rest to another domain.

    | setting | system |
    |---|---|
    | `join: add` | ID + modality of MoRec (https://arxiv.org/abs/2303.13835, released code); UniSRec, transductive |
    | `join: concat`, `layers: 1` or `3` | the same, with an MLP |
    | `join: concat`, `activation: none`, `dropout: 0`, `scale_ids: sqrt_width`, `content_width` 5 D | CARCA |
    | `join: beside`, content a linear layer, users of a table | VBPR (https://arxiv.org/abs/1510.01784) |
    | `join: stream` | FDSA (https://www.ijcai.org/proceedings/2019/600) |

    Example:
        model:
          item_encoder:
            type: with_ids
            content: {type: features, features: {clip: 512}}
            join: concat
            layers: 3
    """

    def __init__(self, config: WithIdsConfig, context: BuildContext) -> None:
        super().__init__()
        width = context.width
        content_width = config.content_width or (width // 2 if config.join == "beside" else width)
        if config.join == "beside" and not 0 < content_width < width:
            raise RecipeError(
                f"model.item_encoder: the content takes {content_width} of the {width} numbers of model.width, and "
                "join: beside needs some for the id as well; choose a larger width, or a smaller content_width"
            )
        content_class: Any = item_encoders.part_class(config.content)
        self.how, self.content_width = config.join, content_width
        self.scale = math.sqrt(width) if config.scale_ids == "sqrt_width" else 1.0
        self.item_table = RowTable(context.catalogues, width - content_width if config.join == "beside" else width)
        self.content: ItemEncoder = content_class(config.content, dataclasses.replace(context, width=content_width))
        width_in = width + content_width if config.join == "concat" else width
        self.join = nn.Sequential(*blocks_of(config.num_layers, width_in, width, config.activation, config.dropout))

    @property
    def reads(self) -> Mapping[str, FieldSpec]:
        return {**self.content.reads, ITEM_ID: IdSpec()}

    @property
    def knows_ids(self) -> bool:
        return True

    @property
    def cls_fields(self) -> frozenset[str]:
        return self.content.cls_fields

    @property
    def streams(self) -> Mapping[str, int]:
        return {**self.content.streams, **({STREAM: self.content_width} if self.how == "stream" else {})}

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        joins = {"join": self.join} if len(self.join) else {}
        return {"item_table": self.item_table, **self.content.parts, **joins}

    @property
    def encoders(self) -> Mapping[str, Encoder]:
        return self.content.encoders

    def begin_epoch(self, frozen: Collection[str]) -> None:
        self.content.begin_epoch(frozen)

    def end_epoch(self) -> None:
        self.content.end_epoch()

    def forward(self, items: ItemInputs) -> ItemVectors:
        """Vectors of U distinct items, each encoded once."""
        content: ItemVectors = self.content(items)
        id_UD: Tensor = self.item_table(items.domain_U, items.row_U) * self.scale
        joined_UD = self._joined(id_UD, content.fused_UD)
        has_U = {**content.has_U, ITEM_ID: items.has_U[ITEM_ID]}
        is_readable_U1 = torch.stack(list(has_U.values()), dim=1).any(dim=1, keepdim=True)
        streams = {STREAM: content.fused_UD} if self.how == "stream" else {}
        return ItemVectors(
            torch.where(is_readable_U1, joined_UD, 0.0), content.cls_UD, has_U, {**content.streams_UD, **streams}
        )

    def _joined(self, id_UD: Tensor, content_UC: Tensor) -> Tensor:
        if self.how == "stream":
            return id_UD
        both = id_UD + content_UC if self.how == "add" else torch.cat((id_UD, content_UC), dim=1)
        joined_UD: Tensor = self.join(both)
        return joined_UD
