"""From settings to a recommender."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from pydantic import Field
from torch import nn

from pmmrec.context import Backbone, BuildContext, Catalogue
from pmmrec.models import ItemEncoderConfig, Scorer, item_encoders, scorers
from pmmrec.models.recommender import Recommender
from pmmrec.settings import Config, PartConfig
from pmmrec.users import user_encoders

if TYPE_CHECKING:
    ItemEncoderField: TypeAlias = ItemEncoderConfig
    UserEncoderField: TypeAlias = PartConfig
    ScorerField: TypeAlias = PartConfig
else:
    ItemEncoderField, UserEncoderField, ScorerField = item_encoders.field, user_encoders.field, scorers.field


class ModelConfig(Config):
    """Settings of a recommender."""

    width: int = Field(gt=0, description="Length of item vectors and hidden states (released code: 768).")
    item_encoder: ItemEncoderField
    user_encoder: UserEncoderField
    scorer: ScorerField = Field(default_factory=lambda: scorers.config({"type": "dot"}))


def build(config: ModelConfig, backbones: Mapping[str, Backbone], catalogues: Sequence[Catalogue] = ()) -> Recommender:
    """A recommender with pretrained backbones read and all else drawn fresh.

    Under `torch.device("meta")` nothing is drawn and no weights are read: shapes and counts only.

    Raises:
        RecipeError: settings that do not fit one another or a backbone.
        CheckpointError: a backbone's folder that is incomplete or unsafe.
    """
    context = BuildContext(config.width, backbones, catalogues)
    item_encoder_class: Any = item_encoders.part_class(config.item_encoder)
    user_encoder_class: Any = user_encoders.part_class(config.user_encoder)
    scorer_class: Any = scorers.part_class(config.scorer)
    return Recommender(
        item_encoder_class(config.item_encoder, context),
        user_encoder_class(config.user_encoder, context),
        scorer_class(config.scorer, context),
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
