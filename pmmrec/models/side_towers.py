"""Items by the stored hidden states of frozen encoders, below small towers that stand beside their layers (IISAN)."""
# Shapes: R rows of one field, U distinct items, T stored vectors of an item, F length of a stored vector, D width.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from pmmrec.blocks import ACTIVATIONS, Activation
from pmmrec.context import BuildContext
from pmmrec.contracts import FieldSpec, ItemInputs, ItemVectors, StoredInputs
from pmmrec.modality import Modality, VectorSpec
from pmmrec.models import ItemEncoder, ItemEncoderConfig, item_encoders
from pmmrec.rows import laid_out
from pmmrec.settings import FeatureName

GATE_TEMPERATURE = 0.1


class SideTowersConfig(ItemEncoderConfig):
    """Settings of side towers over stored hidden states."""

    type: Literal["side_towers"] = "side_towers"
    text: FeatureName | None = Field(
        None, description="Stored feature with the hidden states of a text encoder (vectors: text.layers); null: none."
    )
    image: FeatureName | None = Field(
        None, description="Stored feature with the hidden states of an image encoder (image.layers); null: none."
    )
    vectors: int = Field(13, ge=1, description="How many hidden states are stored of an item: of the embedding first.")
    length: int = Field(768, ge=1, description="The length of each of them.")
    layers: tuple[int, ...] | None = Field(
        None, min_length=1, description="Which of them the towers read, from 0, rising; null: every second one."
    )
    bottleneck: int = Field(64, ge=1, description="Width of the bottleneck of each adapter.")
    activation: Activation = Field("relu", description="In the bottlenecks.")

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"text": "words", "image": "looks", "vectors": 5, "length": 4, "bottleneck": 3},
        {"text": "words", "vectors": 3, "length": 4, "bottleneck": 3, "layers": [1, 2], "activation": "gelu"},
    )

    @model_validator(mode="after")
    def _reads_what_is_stored(self) -> Self:
        if not self.fields:
            raise ValueError("give `text`, `image` or both; an item encoder must read something")
        if self.text == self.image:
            raise ValueError(f"text, image: both are {self.text}; give the states of two encoders")
        if raw := {modality.value for modality in Modality} & self.fields:
            raise ValueError(f"{', '.join(sorted(raw))}: is no stored feature; give the name under which states lie")
        chosen = self.layers or ()
        if any(later <= earlier for earlier, later in pairwise(chosen)):
            raise ValueError(f"layers: {list(chosen)} must rise, as the layers of the encoder do")
        if chosen and (chosen[0] < 0 or chosen[-1] >= self.vectors):
            raise ValueError(f"layers: {list(chosen)} must lie in 0 to {self.vectors - 1}: an item has {self.vectors}")
        return self

    @property
    def read_layers(self) -> tuple[int, ...]:
        """Which of the stored vectors the towers read."""
        return self.layers if self.layers is not None else tuple(range(0, self.vectors, 2))

    @property
    def fields(self) -> frozenset[str]:
        return frozenset(name for name in (self.text, self.image) if name is not None)

    @property
    def reads_new_items(self) -> bool:
        return False


class SideAdapter(nn.Module):
    """x + up(activation(down(x))), of vectors `(U, F)`; weights start as normal(0.01), biases at 0."""

    def __init__(self, length: int, bottleneck: int, activation: Activation) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(length, bottleneck), nn.Linear(bottleneck, length)
        self.activation = ACTIVATIONS[activation]
        for layer in (self.down, self.up):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, x_UF: Tensor) -> Tensor:
        adapted_UF: Tensor = x_UF + self.up(self.activation(self.down(x_UF)))
        return adapted_UF


class Tower(nn.Module):
    """One adapter for each layer that is read, with a gate for each, then a linear map to the common width."""

    def __init__(self, config: SideTowersConfig, width: int) -> None:
        super().__init__()
        num_layers = len(config.read_layers)
        self.adapters = nn.ModuleList(
            SideAdapter(config.length, config.bottleneck, config.activation) for _ in range(num_layers)
        )
        self.gate = nn.Parameter(torch.zeros(num_layers))
        self.out = nn.Linear(config.length, width)

    def within(self, states_UTF: Tensor) -> Tensor:
        """Of one encoder: s <- adapter(g h + (1 - g) s), `(U, D)`."""
        side_UF = torch.zeros_like(states_UTF[:, 0])
        for adapter, gate, state_UF in zip(self.adapters, self._gates(), states_UTF.unbind(1), strict=True):
            side_UF = adapter(gate * state_UF + (1 - gate) * side_UF)
        out_UD: Tensor = self.out(side_UF)
        return out_UD

    def between(self, image_UTF: Tensor, text_UTF: Tensor) -> Tensor:
        """Of two encoders: s <- adapter(s + g h_image + (1 - g) h_text), `(U, D)`."""
        side_UF = torch.zeros_like(text_UTF[:, 0])
        pairs = zip(image_UTF.unbind(1), text_UTF.unbind(1), strict=True)
        for adapter, gate, (image_UF, text_UF) in zip(self.adapters, self._gates(), pairs, strict=True):
            side_UF = adapter(side_UF + gate * image_UF + (1 - gate) * text_UF)
        out_UD: Tensor = self.out(side_UF)
        return out_UD

    def _gates(self) -> tuple[Tensor, ...]:
        return (self.gate / GATE_TEMPERATURE).sigmoid().unbind(0)


class TowersBeside(nn.Module):
    """A tower for each encoder, one between two encoders, and a linear map over what they give side by side."""

    def __init__(self, config: SideTowersConfig, width: int) -> None:
        super().__init__()
        self.names = {name: getattr(config, name) for name in ("image", "text") if getattr(config, name) is not None}
        kinds = [*self.names, *(["both"] if len(self.names) > 1 else [])]
        self.register_buffer("layer_T", torch.tensor(config.read_layers), persistent=False)
        self.towers = nn.ModuleDict({kind: Tower(config, width) for kind in kinds})
        self.out = nn.Linear(len(kinds) * width, width)

    def forward(self, items: ItemInputs) -> Tensor:
        """Stored states of U items -> `(U, D)`. Of an encoder without states of an item, states and tower are 0."""
        states = {kind: self._states(items, name) for kind, name in self.names.items()}
        given = []
        towers: dict[str, Any] = dict(self.towers.items())
        for kind, states_UTF in states.items():
            has_U1 = items.has_U[self.names[kind]][:, None]
            given.append(torch.where(has_U1, towers[kind].within(states_UTF), 0.0))
        if len(states) > 1:
            given.append(towers["both"].between(states["image"], states["text"]))
        item_UD: Tensor = self.out(torch.cat(given, dim=1))
        return item_UD

    def _states(self, items: ItemInputs, name: str) -> Tensor:
        rows = items.fields.get(name)
        if not isinstance(rows, StoredInputs):
            raise TypeError(f"items hold no {name}, but the model reads it; the batch builder must supply it")
        read_RTF = rows.vector_RF.index_select(1, self.get_buffer("layer_T")).to(self.out.weight.dtype)
        return laid_out(read_RTF, rows.item_index_R, items.num_items)


@item_encoders.register("side_towers", SideTowersConfig)
class SideTowers(ItemEncoder):
    """Small towers beside the layers of frozen encoders, whose hidden states `(T, F)` are stored, make the item `(D,)`.

    IISAN (https://arxiv.org/abs/2404.02059), cached: nothing of the encoders is computed in training. With h_l of the
    layers that are read, and a learned gate g = sigmoid(w / 0.1), w from 0: the towers of the text and of the image
    compute s <- A(g h_l + (1 - g) s), the one between both s <- A(s + g h_image_l + (1 - g) h_text_l), from s = 0;
    A(x) = x + W_up act(W_down x). The item is W [image; text; both]. Differs from the paper: an item may lack one
    encoder's states, which are then 0, and one encoder alone may be read; the released code has two linear maps
    behind a tower where there is one.

    `pmmrec data features DOMAIN --from RECIPE --vectors text.layers --name text_layers` stores the states.

    Example:
        model:
          item_encoder: {type: side_towers, text: text_layers, image: image_layers, vectors: 13, length: 768}
    """

    def __init__(self, config: SideTowersConfig, context: BuildContext) -> None:
        super().__init__()
        spec = VectorSpec((config.vectors, config.length))
        self._reads: dict[str, FieldSpec] = dict.fromkeys(sorted(config.fields), spec)
        self.side_towers = TowersBeside(config, context.width)

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        return {"side_towers": self.side_towers}

    @property
    def reads(self) -> Mapping[str, FieldSpec]:
        return self._reads

    def forward(self, items: ItemInputs) -> ItemVectors:
        """Vectors of U distinct items."""
        has_U = {name: items.has_U[name] for name in self._reads}
        is_readable_U1 = torch.stack(list(has_U.values()), dim=1).any(dim=1, keepdim=True)
        return ItemVectors(torch.where(is_readable_U1, self.side_towers(items), 0.0), {}, has_U)
