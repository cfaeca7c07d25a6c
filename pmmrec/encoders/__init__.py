"""Encoders of texts, of images, or of both: rows of a field become a vector a token and one for the whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from pmmrec.adapters import Host
from pmmrec.contracts import (
    FieldInputs,
    FieldSpec,
    PixelInputs,
    PixelSpec,
    Prefix,
    PrefixInputs,
    TokenInputs,
    TokenStates,
)
from pmmrec.errors import RecipeError
from pmmrec.family import Family
from pmmrec.modality import Modality, Tokenizer
from pmmrec.settings import PartConfig

VISUAL = "visual"  # what stands for images where a joint encoder reads tokens of another part


class EncoderConfig(PartConfig):
    """Settings that every encoder with a backbone has."""

    weights: str | None = None  # name or folder of a pretrained backbone; None: it starts from a configuration


class Encoder(nn.Module, ABC):
    """An encoder around a backbone of some library. Built as `part_class(config, context)`, with `context.backbone`.

    All tensors of the backbone stand under `backbone.`; the projection to the common width is ours.
    """

    warnings: tuple[str, ...] = ()  # where the folder of the backbone and what is done here differ
    gives_tokens: bool = True  # False: nobody reads tokens, so `forward` may give the whole of each row alone
    is_restored: bool = False  # True: words or patches are hidden from it, others at each step

    @property
    def prefix(self) -> Prefix | None:
        """The part below the lowest trainable block, whose states may be kept; None where there is none."""
        return None

    @property
    def host(self) -> Host | None:
        """The blocks that may carry adapters; None where there are none."""
        return None

    @property
    def backbone_facts(self) -> Mapping[str, Any]:
        """What decides the states of the backbone beside its tensors, its inputs and the settings of the encoder."""
        return {}

    def pooled(self, inputs: FieldInputs) -> Tensor:
        """The whole of each row as the backbone gives it, `(R, H)`: pooled as ever, without projection.

        RecipeError where the encoder gives no such vector.
        """
        del inputs
        raise RecipeError(f"pooled: {type(self).__name__} does not give what its backbone says of a row")

    def layers(self, inputs: FieldInputs) -> Tensor:
        """The whole of each row at every layer, `(R, T, H)`: what enters the lowest block, and what leaves each block.

        Pooled as the encoder pools, without projection. RecipeError where the encoder has no such states.
        """
        del inputs
        raise RecipeError(f"layers: {type(self).__name__} does not give the hidden states of its layers")

    @abstractmethod
    def checkpoint_activations(self) -> None:
        """From now on the blocks that learn keep no activations: they are computed once more on the way back."""

    @classmethod
    @abstractmethod
    def start(cls, config: EncoderConfig, folder: Path, texts: Iterable[str]) -> None:
        """Fill `folder` for a backbone without weights: its configuration, and a tokenizer learned from `texts`."""

    @abstractmethod
    def save_backbone(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write the backbone as its library reads it; `state` holds its tensors, without the prefix `backbone.`."""

    @abstractmethod
    def read_backbone(self, folder: Path) -> dict[str, Tensor]:
        """The tensors that `save_backbone` wrote, by the same names."""


class TextEncoder(Encoder):
    """Reads token ids."""

    tokenizer: Tokenizer

    @abstractmethod
    def forward(self, inputs: TokenInputs | PrefixInputs) -> TokenStates:
        """Token ids, or the kept states of the frozen part, -> states of the common width."""

    def word_head(self) -> nn.Module:
        """What guesses hidden words out of the states of the backbone: the folder's own head, or a fresh one.

        RecipeError where no word can be hidden.
        """
        raise RecipeError(f"{type(self).__name__} hides no words; use hf_text")

    def word_loss(self, inputs: TokenInputs, seed_R: Tensor, head: nn.Module, share: float) -> Tensor:
        """The mean loss `(R,)` of each text's hidden words; `seed_R` decides which these are, and what stands there."""
        raise NotImplementedError


class VisionEncoder(Encoder):
    """Reads pixels."""

    pixel_spec: PixelSpec

    @abstractmethod
    def forward(self, inputs: PixelInputs | PrefixInputs) -> TokenStates:
        """uint8 pixels, or the kept states of the frozen part, -> states of the common width."""

    def patch_head(self, share: float) -> nn.Module:
        """What paints hidden patches out of the states of the others: the folder's own decoder, or a fresh one.

        RecipeError where no patch can be hidden, or `share` leaves none.
        """
        del share
        raise RecipeError(f"{type(self).__name__} hides no patches; use hf_vision over a masked autoencoder (vit_mae)")

    def patch_loss(
        self, inputs: PixelInputs, seed_R: Tensor, head: nn.Module, share: float, *, normalize: bool
    ) -> Tensor:
        """The mean loss `(R,)` of each image's hidden patches; `seed_R` decides which these are."""
        raise NotImplementedError


class JointEncoder(Encoder):
    """Reads several fields of the same items with one backbone.

    Attributes:
        fields: The names of the fields that it reads.
        reads: How it reads each of them.
        reads_visual: Whether it also reads tokens of an image that another part gives, as `fields[VISUAL]`.
        visual_width: The width of these tokens.
    """

    fields: ClassVar[frozenset[str]] = frozenset({Modality.TEXT.value, Modality.IMAGE.value})
    reads_visual: ClassVar[bool] = False
    reads: Mapping[str, FieldSpec]
    visual_width: int = 0

    @abstractmethod
    def forward(self, fields: Mapping[str, FieldInputs | TokenStates], has_U: Mapping[str, Tensor]) -> TokenStates:
        """Rows of each field, and which of U items have it, -> states of U items.

        An item has no tokens of a field that it lacks. Tokens of an image are states of U items.
        """


text_encoders: Family[TextEncoder] = Family("text encoder", home=__name__, group="items")
vision_encoders: Family[VisionEncoder] = Family("vision encoder", home=__name__, group="items")
joint_encoders: Family[JointEncoder] = Family("joint encoder", home=__name__, group="items")


def encoder_class(config: EncoderConfig) -> type[Encoder]:
    """The class of the encoder that has these settings. RecipeError where it is registered in no family."""
    families: tuple[Family[Any], ...] = (text_encoders, vision_encoders, joint_encoders)
    for entry in (entry for family in families for entry in family):
        if entry.config_class is type(config):
            found: type[Encoder] = entry.part_class
            return found
    raise RecipeError(f"{type(config).__name__}: no encoder has such settings; register it in a family of encoders")
