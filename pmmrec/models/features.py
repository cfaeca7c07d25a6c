"""Items by stored features: vectors that were computed once, under layers that are trained."""
# Shapes: R rows of one feature, U distinct items, F length of a stored vector, D width.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, StringConstraints, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from pmmrec.context import BuildContext
from pmmrec.contracts import FieldSpec, ItemInputs, ItemVectors, Modality, StoredInputs, VectorSpec
from pmmrec.models import ItemEncoder, ItemEncoderConfig, item_encoders
from pmmrec.models.rows import laid_out
from pmmrec.settings import Config

FeatureName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
ACTIVATIONS: Mapping[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


class HeadConfig(Config):
    """Settings of the layers above the projection of stored vectors."""

    layers: int = Field(0, ge=0, description="Blocks of dropout, linear layer and activation (MoRec TS-DNN: 2 to 12).")
    activation: Literal["gelu", "relu"] = Field("gelu", description="After the projection and in every block.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Of the blocks; without effect where there is none.")


class FeaturesConfig(ItemEncoderConfig):
    """Settings of an item encoder that reads stored features."""

    type: Literal["features"] = "features"
    features: dict[FeatureName, Annotated[int, Field(ge=1)]] = Field(
        min_length=1, description="Name -> length of its vectors; `pmmrec data features` stores them in a domain."
    )
    head: HeadConfig = HeadConfig()

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"features": {"clip": 5}},
        {"features": {"clip": 5, "audio": 3}, "head": {"layers": 2, "activation": "relu", "dropout": 0.2}},
    )

    @model_validator(mode="after")
    def _names_features(self) -> Self:
        if raw := {modality.value for modality in Modality} & set(self.features):
            raise ValueError(f"features: {', '.join(sorted(raw))} is no stored feature; towers read it")
        return self

    @property
    def fields(self) -> frozenset[str]:
        return frozenset(self.features)


class FeatureEncoder(nn.Module):
    """A linear layer for each feature, whose outputs are added, then an activation and the blocks of the head."""

    def __init__(self, lengths: Mapping[str, int], head: HeadConfig, width: int) -> None:
        super().__init__()
        activation = ACTIVATIONS[head.activation]
        self.names = tuple(sorted(lengths))
        self.projections = nn.ModuleList(nn.Linear(lengths[name], width) for name in self.names)
        blocks = [(nn.Dropout(head.dropout), nn.Linear(width, width), activation()) for _ in range(head.layers)]
        self.head = nn.Sequential(activation(), *(layer for block in blocks for layer in block))

    def forward(self, items: ItemInputs) -> Tensor:
        """Stored vectors of U items -> `(U, D)`. A feature that an item lacks adds nothing."""
        projected_UD, dtype = [], next(self.parameters()).dtype
        for name, projection in zip(self.names, self.projections, strict=True):
            rows = items.fields.get(name)
            if not isinstance(rows, StoredInputs):
                raise TypeError(f"items hold no {name}, but the model reads it; the batch builder must supply it")
            projected_RD = projection(rows.vector_RF.to(dtype))
            projected_UD.append(laid_out(projected_RD, rows.item_index_R, items.has_U[name]))
        head_UD: Tensor = self.head(torch.stack(projected_UD).sum(dim=0))
        return head_UD


@item_encoders.register("features", FeaturesConfig)
class Features(ItemEncoder):
    """Vectors `(F,)` that were computed once and stored, below trained layers, make the vector `(D,)` of an item.

    The two-stage systems of MoRec (https://arxiv.org/abs/2303.13835): GELU(W x + b), which is TS, then `head.layers`
    blocks of dropout, linear layer and GELU, which makes it TS-DNN. Differs from the paper: several features may be
    read, as one linear layer over their concatenation would, and an item without any of them is the zero vector.

    Example:
        model:
          item_encoder:
            type: features
            features: {content: 768}
            head: {layers: 6}
    """

    def __init__(self, config: FeaturesConfig, context: BuildContext) -> None:
        super().__init__()
        self._lengths = dict(config.features)
        self.feature_encoder = FeatureEncoder(config.features, config.head, context.width)

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        return {"feature_encoder": self.feature_encoder}

    @property
    def reads(self) -> Mapping[str, FieldSpec]:
        return {name: VectorSpec((length,)) for name, length in self._lengths.items()}

    def forward(self, items: ItemInputs) -> ItemVectors:
        """Vectors of U distinct items."""
        has_U = {name: items.has_U[name] for name in self.feature_encoder.names}
        is_readable_U1 = torch.stack(list(has_U.values()), dim=1).any(dim=1, keepdim=True)
        return ItemVectors(torch.where(is_readable_U1, self.feature_encoder(items), 0.0), {}, has_U)
