"""Text and vision encoders: each turns the rows it is given into one vector a token and one for the whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from pmmrec.adapters import Host
from pmmrec.contracts import PixelInputs, PixelSpec, Prefix, PrefixInputs, TokenInputs, Tokenizer, TokenStates
from pmmrec.family import Family
from pmmrec.settings import PartConfig


class EncoderConfig(PartConfig):
    """Settings that every encoder with a backbone has."""

    weights: str | None = None  # name or folder of a pretrained backbone; None: it starts from a configuration


class Encoder(nn.Module, ABC):
    """An encoder around a backbone of some library. Built as `part_class(config, context)`, with `context.backbone`.

    All tensors of the backbone stand under `backbone.`; the projection to the common width is ours.
    """

    warnings: tuple[str, ...] = ()  # where the folder of the backbone and what is done here differ

    @property
    def prefix(self) -> Prefix | None:
        """The part below the lowest trainable block, whose states may be kept; None where there is none."""
        return None

    @property
    def host(self) -> Host | None:
        """The blocks that may carry adapters; None where there are none."""
        return None

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


class VisionEncoder(Encoder):
    """Reads pixels."""

    pixel_spec: PixelSpec

    @abstractmethod
    def forward(self, inputs: PixelInputs | PrefixInputs) -> TokenStates:
        """uint8 pixels, or the kept states of the frozen part, -> states of the common width."""


text_encoders: Family[TextEncoder] = Family("text encoder", home=__name__, group="items")
vision_encoders: Family[VisionEncoder] = Family("vision encoder", home=__name__, group="items")
