"""Items by stored features and attributes, under trained layers."""
# Shapes: R rows of one field, U distinct items, T vectors of an item, F length of a stored vector, V values of an
# attribute, D width.

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Discriminator, Field, Tag, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from pmmrec.context import BuildContext
from pmmrec.contracts import FieldSpec, ItemInputs, ItemVectors, Modality, StoredInputs, ValueInputs, ValueSpec
from pmmrec.head import HeadConfig, head_of
from pmmrec.modality import VectorSpec
from pmmrec.models import ItemEncoder, ItemEncoderConfig, item_encoders
from pmmrec.rows import laid_out
from pmmrec.settings import Config, FeatureName

NO_VALUE = 2**63 - 1  # stands for no value of any attribute


class VectorsConfig(Config):
    """Settings of a stored feature that holds several vectors of each item."""

    vectors: int = Field(ge=1, description="How many vectors an item has.")
    length: int = Field(ge=1, description="The length of each of them.")
    pool: Literal["mean", "attention", "one"] = Field(
        "mean", description="Their mean, their mean weighted by a learned query, or the one that `index` names."
    )
    index: int | None = Field(None, ge=0, description="For `pool: one`: which vector is read, from 0.")

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if (self.index is None) != (self.pool != "one"):
            raise ValueError("index: says which vector `pool: one` reads; give it there and nowhere else")
        if self.index is not None and self.index >= self.vectors:
            raise ValueError(
                f"index: {self.index}, but an item has {self.vectors} vectors, the last being {self.vectors - 1}"
            )
        return self


Length = Annotated[int, Field(ge=1)]


def _kind(value: object) -> str:
    return "vectors" if isinstance(value, Mapping | VectorsConfig) else "length"


FeatureSettings = Annotated[
    Annotated[Length, Tag("length")] | Annotated[VectorsConfig, Tag("vectors")], Discriminator(_kind)
]


class FeaturesConfig(ItemEncoderConfig):
    """Settings of an item encoder that reads stored features."""

    type: Literal["features"] = "features"
    features: dict[FeatureName, FeatureSettings] = Field(
        default_factory=dict,
        description="Name -> length of its vector, or settings of several; `pmmrec data features` stores them. null: "
        "not read.",
    )
    attributes: dict[Annotated[str, Field(min_length=1)], Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict,
        description="Further column of the items -> how many of its most frequent values get a vector of their own.",
    )
    join: Literal["add", "attention"] = Field(
        "add",
        description="How the vectors of several fields become one: their sum, or their mean, weighted by a small "
        "network that reads each of them (FDSA).",
    )
    unit_length: bool = Field(
        False, description="Stored vectors are divided by their lengths before the linear layer (MMGCL)."
    )
    head: HeadConfig = HeadConfig()

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"features": {"clip": 5}},
        {"features": {"clip": 5, "audio": 3}, "head": {"layers": 2, "activation": "relu", "dropout": 0.2}},
        {"features": {"layers": {"vectors": 4, "length": 5, "pool": "attention"}, "clip": 3}},
        {"features": {"layers": {"vectors": 4, "length": 5, "pool": "one", "index": 3}}},
        {"features": {"clip": 5}, "attributes": {"brand": 4, "shop": 1}},
        {"attributes": {"brand": 2}},
        {"features": {"clip": 5}, "unit_length": True, "head": {"activation": "none"}},
        {"features": {"clip": 5, "audio": 3}, "attributes": {"brand": 4}, "join": "attention"},
    )

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nulls(cls, value: Any) -> Any:
        """`features: {NAME: null}` leaves a feature out that a recipe below it reads."""
        if not isinstance(value, Mapping):
            return value
        named = {key: value[key] for key in ("features", "attributes") if isinstance(value.get(key), Mapping)}
        kept = {key: {name: one for name, one in each.items() if one is not None} for key, each in named.items()}
        return {**value, **kept}

    @model_validator(mode="after")
    def _names_fields(self) -> Self:
        if not self.fields:
            raise ValueError("give `features`, `attributes` or both; an item encoder must read something")
        if raw := {modality.value for modality in Modality} & self.fields:
            raise ValueError(f"{', '.join(sorted(raw))}: neither a stored feature nor an attribute; towers read it")
        if both := set(self.features) & set(self.attributes):
            raise ValueError(f"{', '.join(sorted(both))}: is a feature and an attribute; read it as one of them")
        if self.unit_length and not self.features:
            raise ValueError("unit_length: has no effect without `features`; leave it out")
        if self.join == "attention" and len(self.fields) == 1:
            raise ValueError("join: attention weighs several fields, and there is one; leave it out")
        return self

    @property
    def fields(self) -> frozenset[str]:
        return frozenset([*self.features, *self.attributes])

    @property
    def reads_new_items(self) -> bool:
        return not self.features


class VectorPool(nn.Module):
    """Make one vector `(R, F)` of the T vectors `(R, T, F)` of each item.

    With `attention` vector t weighs exp(q . x_t / sqrt(F)); the query q starts at 0, which is the mean.
    """

    def __init__(self, config: VectorsConfig) -> None:
        super().__init__()
        self.pool, self.index = config.pool, config.index
        if self.pool == "attention":
            self.query = nn.Parameter(torch.zeros(config.length))

    def forward(self, vector_RTF: Tensor) -> Tensor:
        if self.index is not None:
            return vector_RTF[:, self.index]
        if self.pool == "mean":
            return vector_RTF.mean(dim=1)
        weight_RT = torch.softmax(vector_RTF @ self.query / vector_RTF.shape[2] ** 0.5, dim=1)
        return (weight_RT[:, :, None] * vector_RTF).sum(dim=1)


class ValueTable(nn.Module):
    """A vector for each of the most frequent values of an attribute, and one for all other values, which starts at 0.

    The values are part of the state, as the numbers that stand for them in every domain: a model that is moved to
    another domain knows its values there. `num_values` is the number of vectors, even where there are fewer values.
    """

    value_key_V: Tensor

    def __init__(self, attribute: str, num_values: int, context: BuildContext) -> None:
        super().__init__()
        counts = Counter[int]()
        for catalogue in context.catalogues:
            counts.update(catalogue.value_counts(attribute))
        frequent = sorted(counts, key=lambda key: (-counts[key], key))[:num_values]
        keys = sorted(frequent) + [NO_VALUE] * (num_values - len(frequent))
        self.register_buffer("value_key_V", torch.tensor(keys, dtype=torch.int64))
        self.vector = nn.Embedding(num_values + 1, context.width)
        nn.init.normal_(self.vector.weight, std=0.02)
        nn.init.zeros_(self.vector.weight[0])

    def forward(self, key_R: Tensor) -> Tensor:
        """Vectors of values, `(R, D)`."""
        place_R = torch.searchsorted(self.value_key_V, key_R).clamp(max=len(self.value_key_V) - 1)
        is_known_R = self.value_key_V[place_R] == key_R
        vectors_RD: Tensor = self.vector(torch.where(is_known_R, place_R + 1, 0))
        return vectors_RD


class FieldAttention(nn.Module):
    """The mean of the vectors of an item's fields, weighted by the softmax of `w . relu(W x + b)`.

    Fields that an item lacks weigh nothing. The last layer needs no bias, which would change no weight.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1, bias=False))

    def forward(self, x_UFD: Tensor, has_UF: Tensor) -> Tensor:
        """Vectors of fields `(U, F, D)` -> `(U, D)`; anything where an item has none of them."""
        is_absent_UF = ~has_UF & has_UF.any(dim=1, keepdim=True)
        weight_UF = self.weigh(x_UFD)[:, :, 0].masked_fill(is_absent_UF, -math.inf).softmax(dim=1)
        mean_UD: Tensor = (weight_UF[:, :, None] * x_UFD).sum(dim=1)
        return mean_UD


class FeatureEncoder(nn.Module):
    """A linear layer for each feature and a table for each attribute, whose outputs are joined, then the head.

    The head is an activation and its blocks.
    """

    def __init__(self, config: FeaturesConfig, context: BuildContext) -> None:
        super().__init__()
        self.names, self.attributes = tuple(sorted(config.features)), tuple(sorted(config.attributes))
        self.unit_length = config.unit_length
        ordered = [config.features[name] for name in self.names]
        self.tables = nn.ModuleList(ValueTable(name, config.attributes[name], context) for name in self.attributes)
        self.pools = nn.ModuleList(
            VectorPool(one) if isinstance(one, VectorsConfig) else nn.Identity() for one in ordered
        )
        self.projections = nn.ModuleList(nn.Linear(_shape(one)[-1], context.width) for one in ordered)
        self.join = FieldAttention(context.width) if config.join == "attention" else None
        self.head = head_of(config.head, context.width)

    def forward(self, items: ItemInputs) -> Tensor:
        """Stored vectors and values of U items -> `(U, D)`. A field that an item lacks adds nothing."""
        projected_UD, dtype = [], next(self.parameters()).dtype
        for name, pool, projection in zip(self.names, self.pools, self.projections, strict=True):
            rows = items.fields.get(name)
            if not isinstance(rows, StoredInputs):
                raise TypeError(f"items hold no {name}, but the model reads it; the batch builder must supply it")
            vector_RF = pool(rows.vector_RF.to(dtype))
            projected_RD = projection(F.normalize(vector_RF, dim=1) if self.unit_length else vector_RF)
            projected_UD.append(laid_out(projected_RD, rows.item_index_R, items.num_items))
        for name, table in zip(self.attributes, self.tables, strict=True):
            values = items.fields.get(name)
            if not isinstance(values, ValueInputs):
                raise TypeError(f"items hold no {name}, but the model reads it; the batch builder must supply it")
            projected_UD.append(laid_out(table(values.key_R), values.item_index_R, items.num_items))
        if self.join is None:
            joined_UD = torch.stack(projected_UD).sum(dim=0)
        else:
            has_UF = torch.stack([items.has_U[name] for name in (*self.names, *self.attributes)], dim=1)
            joined_UD = self.join(torch.stack(projected_UD, dim=1), has_UF)
        head_UD: Tensor = self.head(joined_UD)
        return head_UD


def _shape(feature: int | VectorsConfig) -> tuple[int, ...]:
    """What a domain stores of each item."""
    return (feature.vectors, feature.length) if isinstance(feature, VectorsConfig) else (feature,)


@item_encoders.register("features", FeaturesConfig)
class Features(ItemEncoder):
    """Stored vectors `(F,)` or `(T, F)` and values of attributes, below trained layers, make the vector of an item.

    The two-stage systems of MoRec (https://arxiv.org/abs/2303.13835): GELU(W x + b), which is TS, then `head.layers`
    blocks of dropout, linear layer and GELU, which makes it TS-DNN. Differs from the paper: several features may be
    read, as one linear layer over their concatenation would, and an item without any of them is the zero vector. Of
    several vectors, such as the hidden states of all layers of an encoder (https://arxiv.org/abs/2404.02059), `pool`
    makes one before the linear layer. `attributes` are further columns of the items, such as a brand, of which each
    frequent value has a vector, as a linear layer over one-hot values would give; it is added to those of features.
    With `join: attention` the vectors of fields are weighed instead of added, as the features of an item in FDSA
    (https://www.ijcai.org/proceedings/2019/600, RecBole).

    Example:
        model:
          item_encoder:
            type: features
            features:
              content: 768
              layers: {vectors: 13, length: 768, pool: attention}
            attributes: {brand: 1000}
            head: {layers: 6}
    """

    def __init__(self, config: FeaturesConfig, context: BuildContext) -> None:
        super().__init__()
        self._reads: dict[str, FieldSpec] = {name: VectorSpec(_shape(one)) for name, one in config.features.items()}
        self._reads |= dict.fromkeys(config.attributes, ValueSpec())
        self.feature_encoder = FeatureEncoder(config, context)

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        return {"feature_encoder": self.feature_encoder}

    @property
    def reads(self) -> Mapping[str, FieldSpec]:
        return self._reads

    def forward(self, items: ItemInputs) -> ItemVectors:
        """Vectors of U distinct items."""
        has_U = {name: items.has_U[name] for name in self._reads}
        is_readable_U1 = torch.stack(list(has_U.values()), dim=1).any(dim=1, keepdim=True)
        return ItemVectors(torch.where(is_readable_U1, self.feature_encoder(items), 0.0), {}, has_U)
