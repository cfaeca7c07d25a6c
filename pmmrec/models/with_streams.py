"""Items by who they are, and beside it by what they hold: named streams that a graph or objectives read."""
# Shapes: U distinct items, D width.

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from pmmrec.context import BuildContext
from pmmrec.contracts import FieldSpec, IdSpec, ItemInputs, ItemVectors
from pmmrec.encoders import Encoder, EncoderConfig
from pmmrec.modality import ITEM_ID
from pmmrec.models import ItemEncoder, ItemEncoderConfig, item_encoders
from pmmrec.models.features import FeaturesConfig
from pmmrec.models.towers import TowersConfig
from pmmrec.row_table import RowTable

StreamName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)]


def _kind(value: object) -> str:
    named = value.get("type", "features") if isinstance(value, Mapping) else getattr(value, "type", "features")
    return str(named)


StreamSettings = Annotated[
    Annotated[FeaturesConfig, Tag("features")] | Annotated[TowersConfig, Tag("towers")], Discriminator(_kind)
]


class WithStreamsConfig(ItemEncoderConfig):
    """Settings of an item encoder that knows items by id and has streams of what they hold beside."""

    type: Literal["with_streams"] = "with_streams"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"streams": {"image": {"features": {"clip": 5}}}},
        {"streams": {"image": {"features": {"clip": 5}}, "sound": {"features": {"audio": 3}, "unit_length": True}}},
        {"streams": {"text": {"type": "towers", **TowersConfig.examples[0]}, "image": {"features": {"clip": 5}}}},
    )
    streams: dict[StreamName, StreamSettings] = Field(
        min_length=1,
        description="Name -> settings of `features`, or with `type: towers` of an encoder that the losses reach. null: "
        "no such stream.",
    )

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nulls(cls, value: Any) -> Any:
        """`streams: {NAME: null}` leaves a stream out that a recipe below it has."""
        if not isinstance(value, Mapping) or not isinstance(value.get("streams"), Mapping):
            return value
        return {**value, "streams": {name: one for name, one in value["streams"].items() if one is not None}}

    @model_validator(mode="after")
    def _reads_each_field_once(self) -> Self:
        fields = [ITEM_ID, *(field for one in self.streams.values() for field in sorted(one.fields))]
        if twice := sorted({field for field in fields if fields.count(field) > 1}):
            raise ValueError(f"streams: {twice[0]} is read twice, or stands for the id; read it in one stream")
        parts = [part for name in self.streams for part in self._parts(name)]
        if twice := sorted({part for part in parts if parts.count(part) > 1}):
            raise ValueError(f"streams: {twice[0]} is in two of them; let one stream read all of its fields")
        return self

    def _parts(self, name: str) -> list[str]:
        """The parts of a checkpoint that make a stream."""
        one = self.streams[name]
        if isinstance(one, FeaturesConfig):
            return [part_of(name)]
        return [*one.encoders, *(["fusion"] if one.fusion is not None else [])]

    @property
    def encoders(self) -> Mapping[str, EncoderConfig]:
        return {part: encoder for one in self.streams.values() for part, encoder in one.encoders.items()}

    @property
    def texts(self) -> tuple[str, ...]:
        towers = [one for one in self.streams.values() if isinstance(one, TowersConfig)]
        return tuple(field for one in towers for field in one.texts) if towers else super().texts

    @property
    def fields(self) -> frozenset[str]:
        return frozenset({ITEM_ID}).union(*(one.fields for one in self.streams.values()))

    @property
    def knows_ids(self) -> bool:
        return True

    @property
    def for_objectives(self) -> Mapping[str, str]:
        return {f"streams.{name}": name for name in self.streams}

    def keeping(self, parts: Collection[str]) -> ItemEncoderConfig:
        """With the named streams alone; without `item_table` nothing that ranks is left."""
        if "item_table" not in parts:
            raise ValueError("with_streams ranks items by item_table; keep it, or choose an item encoder that reads")
        kept = {name: one.keeping(parts) for name, one in self.streams.items() if {*self._parts(name)} & {*parts}}
        if not kept:
            raise ValueError("with_streams has no stream left; keep one, or choose ids")
        return self.model_copy(update={"streams": kept})


@item_encoders.register("with_streams", WithStreamsConfig)
class WithStreams(ItemEncoder):
    """A learned vector `(D,)` for each item, and named vectors `(D,)` of what it holds, which stay apart.

    The items of graph systems over texts and images (FREEDOM, LATTICE, BM3, MMGCN, MMGCL, SLMRec): the vector that
    ranks is that of the id, as a graph changes it; a stream is a linear layer, or more, over stored vectors, and an
    item that lacks them has zeros. A graph reads streams in training and in ranking, objectives in training alone; one
    that nobody reads is refused. What is learned serves the items of the run alone. Vectors of ids start as
    normal(0.02).

    A stream of `type: towers` encodes the texts or images themselves, and the losses reach its encoders (end to end,
    arXiv 2310.20343). A graph reads all items in each step: with `train.accumulate: {parts: P}` they are encoded
    in P parts, each once more when gradients reach its vectors, so that the activations of one part are held at a time.
    Where losses alone read a stream, it is still made for all items that a step holds.

    Example:
        model:
          item_encoder:
            type: with_streams
            streams:
              text: {features: {content: 384}, head: {activation: none}}
              image: {features: {image_content: 4096}, head: {activation: none}}
    """

    def __init__(self, config: WithStreamsConfig, context: BuildContext) -> None:
        super().__init__()
        self._width = context.width
        self.item_table = RowTable(context.catalogues, context.width)
        self.contents = nn.ModuleDict(
            {name: item_encoders.part_class(one)(one, context) for name, one in sorted(config.streams.items())}
        )

    @property
    def reads(self) -> Mapping[str, FieldSpec]:
        read: dict[str, FieldSpec] = {ITEM_ID: IdSpec()}
        for content in self._streams().values():
            read |= content.reads
        return read

    @property
    def knows_ids(self) -> bool:
        return True

    @property
    def streams(self) -> Mapping[str, int]:
        return {name: self._width for name in self.contents if name in self.graph_streams}

    @property
    def training_streams(self) -> Mapping[str, int]:
        return {name: self._width for name in self.contents if name not in self.graph_streams}

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        parts: dict[str, nn.Module] = {"item_table": self.item_table}
        for name, content in self._streams().items():
            parts |= content.parts if content.encoders else {part_of(name): content}
        return parts

    @property
    def encoders(self) -> Mapping[str, Encoder]:
        return {field: encoder for one in self._streams().values() for field, encoder in one.encoders.items()}

    def _streams(self) -> dict[str, ItemEncoder]:
        return {name: one for name, one in self.contents.items() if isinstance(one, ItemEncoder)}

    def forward(self, items: ItemInputs) -> ItemVectors:
        """Vectors of U distinct items, each encoded once."""
        asked = self.asked | self.graph_streams
        streams_UD = {name: content(items).fused_UD for name, content in self.contents.items() if name in asked}
        id_UD: Tensor = self.item_table(items.domain_U, items.row_U)
        has_U = {name: items.has_U[name] for name in self.reads}
        is_readable_U1 = torch.stack(list(has_U.values()), dim=1).any(dim=1, keepdim=True)
        return ItemVectors(torch.where(is_readable_U1, id_UD, 0.0), {}, has_U, streams_UD)


def part_of(stream: str) -> str:
    """The name of the part that makes a stream."""
    return f"{stream}_stream"
