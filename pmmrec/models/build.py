"""From settings to a recommender."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from pydantic import Field
from torch import nn

from pmmrec.context import Backbone, BuildContext, Catalogue, InteractionGraph
from pmmrec.errors import RecipeError
from pmmrec.models import ItemEncoder, ItemEncoderConfig, Scorer, item_encoders, scorers
from pmmrec.models.recommender import Recommender
from pmmrec.propagations import Propagation, propagations
from pmmrec.settings import Config, PartConfig
from pmmrec.users import UserEncoder, user_encoders

if TYPE_CHECKING:
    ItemEncoderField: TypeAlias = ItemEncoderConfig
    UserEncoderField: TypeAlias = PartConfig
    ScorerField: TypeAlias = PartConfig
    PropagationField: TypeAlias = PartConfig
else:
    ItemEncoderField, UserEncoderField, ScorerField = item_encoders.field, user_encoders.field, scorers.field
    PropagationField = propagations.field


class ModelConfig(Config):
    """Settings of a recommender."""

    width: int = Field(gt=0, description="Length of item vectors and hidden states (released code: 768).")
    item_encoder: ItemEncoderField
    user_encoder: UserEncoderField
    scorer: ScorerField = Field(default_factory=lambda: scorers.config({"type": "dot"}))
    propagation: PropagationField = Field(default_factory=lambda: propagations.config({"type": "identity"}))

    @property
    def knows_graph(self) -> bool:
        """Whether the model reads the training interactions of its domain as a graph."""
        return propagations.part_class(self.propagation).reads_graph

    @property
    def knows_ids(self) -> bool:
        """Whether the model has rows for items or users of its domains, and serves these alone."""
        reads_users = user_encoders.part_class(self.user_encoder).reads_users
        return self.item_encoder.knows_ids or reads_users or self.knows_graph


def build(
    config: ModelConfig,
    backbones: Mapping[str, Backbone],
    catalogues: Sequence[Catalogue] = (),
    graphs: Sequence[InteractionGraph] = (),
    seed: int = 0,
    item_encoder: ItemEncoder | None = None,
) -> Recommender:
    """A recommender with pretrained backbones read and all else drawn fresh, from torch's generator.

    `catalogues`, `graphs` and `seed` are as in `BuildContext`. `item_encoder`: in place of a new one. Under
    `torch.device("meta")` nothing is drawn and no weights are read: shapes and counts only.

    Raises:
        RecipeError: settings that do not fit one another or a backbone.
        CheckpointError: a backbone's folder that is incomplete or unsafe.
    """
    context = BuildContext(config.width, backbones, catalogues, graphs, seed)
    item_encoder_class: Any = item_encoders.part_class(config.item_encoder)
    user_encoder_class: Any = user_encoders.part_class(config.user_encoder)
    scorer_class: Any = scorers.part_class(config.scorer)
    propagation_class: Any = propagations.part_class(config.propagation)
    if config.knows_graph and not user_encoder_class.reads_users:
        raise RecipeError(
            f"model.propagation: {config.propagation.type} passes on vectors of users, and model.user_encoder: "
            f"{config.user_encoder.type} has none; choose user_table, or leave the propagation out"
        )
    if scorer_class.reads_histories and not user_encoder_class.reads_history:
        raise RecipeError(
            f"model.scorer: {config.scorer.type} attends to the states of a history, and model.user_encoder: "
            f"{config.user_encoder.type} reads none; choose scorer dot, or a user encoder that reads histories"
        )
    # In this order: weights are drawn one part after another.
    item_encoder = item_encoder or item_encoder_class(config.item_encoder, context)
    user_encoder: UserEncoder = user_encoder_class(config.user_encoder, context)
    if not isinstance(getattr(user_encoder, "max_inputs", None), int):
        raise RecipeError(
            f"model.user_encoder: {config.user_encoder.type} has no max_inputs, the longest history that it reads; its "
            "class must set it, a whole number, when it is built"
        )
    scorer: Scorer = scorer_class(config.scorer, context)
    propagation: Propagation = propagation_class(config.propagation, context)
    item_encoder.graph_streams = propagation.streams
    _refuse_unread_streams(config, item_encoder, user_encoder.streams | scorer.streams | propagation.streams)
    readers = {f"user_encoder: {config.user_encoder.type}": user_encoder.streams}
    readers[f"propagation: {config.propagation.type}"] = propagation.streams
    for reader, streams in readers.items():
        _refuse_missing_streams(config, item_encoder, reader, streams)
    if user_encoder.mask_text is not None and not config.item_encoder.reads_mask_text:
        raise RecipeError(
            f"model.user_encoder.mask_text: model.item_encoder: {config.item_encoder.type} encodes no text alone; take "
            "towers that read one text and no image, or leave it out: then the mask is a learned vector"
        )
    item_encoder.mask_text = user_encoder.mask_text
    return Recommender(item_encoder, user_encoder, scorer, propagation)


def _refuse_unread_streams(config: ModelConfig, item_encoder: ItemEncoder, read: frozenset[str]) -> None:
    """RecipeError where the item encoder gives a stream that nothing reads."""
    unread = sorted(set(item_encoder.streams) - read)
    if unread:
        raise RecipeError(
            f"model.item_encoder: {config.item_encoder.type} gives the stream {unread[0]}, which model.user_encoder: "
            f"{config.user_encoder.type} does not read; choose one that does, such as two_stream, or another join"
        )


def _refuse_missing_streams(
    config: ModelConfig, item_encoder: ItemEncoder, reader: str, streams: frozenset[str]
) -> None:
    """RecipeError where a part reads a stream that the item encoder does not give, or not in the model's width."""
    where = f"model.{reader} reads the stream"
    for name in sorted(streams):
        if name not in item_encoder.streams:
            raise RecipeError(
                f"{where} {name}, which model.item_encoder: {config.item_encoder.type} does not give; choose an item "
                "encoder that does, such as with_ids with join: stream, or with_streams"
            )
        if item_encoder.streams[name] != config.width:
            raise RecipeError(
                f"{where} {name}, whose vectors are {item_encoder.streams[name]} long, and not {config.width} as "
                "model.width says; leave out what sets their length"
            )


def scorer_with(config: ModelConfig, popularity: float) -> Scorer:
    """The scorer of a model with another weight of popularity. RecipeError where its scorer has none."""
    tree = {**config.scorer.model_dump(mode="json"), "popularity": popularity}
    if not popularity:
        tree.pop("temperature", None)  # without popularity it changes no ranking
    part_class: Any = scorers.part_class(scorers.config(tree))
    scorer: Scorer = part_class(scorers.config(tree), BuildContext(config.width))
    return scorer


class ParameterRow(NamedTuple):
    """How many numbers a part holds."""

    part: str
    all: int
    trainable: int


def parameter_table(parts: Mapping[str, nn.Module]) -> list[ParameterRow]:
    """Parameters of each part, all and trainable, in the order given."""
    rows = []
    for name, part in parts.items():
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in part.parameters()]
        total, trainable = sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)
        rows.append(ParameterRow(name, total, trainable))
    return rows
