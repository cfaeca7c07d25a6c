"""Text and vision encoders: each turns the rows it is given into one vector a token and one for the whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from torch import Tensor, nn

from pmmrec.contracts import PixelSpec, Tokenizer, TokenStates
from pmmrec.family import Family


class TextEncoder(nn.Module, ABC):
    """Reads token ids. Built as `part_class(config, width, folder, pretrained)`.

    `folder` holds the backbone's configuration and tokenizer; its weights are read when `pretrained`, and drawn
    fresh otherwise (a checkpoint's weights are then loaded, tensor by tensor, by `pmmrec.zoo`).
    """

    tokenizer: Tokenizer

    @abstractmethod
    def forward(self, token_id_RT: Tensor, is_valid_RT: Tensor) -> TokenStates:
        """`(R, T)` ids -> states of the common width."""

    @abstractmethod
    def save_backbone(self, folder: Path, state: dict[str, Tensor]) -> None:
        """Write the backbone as its library would read it: configuration, weights in `state`, tokenizer."""


class VisionEncoder(nn.Module, ABC):
    """Reads pixels. Built as `part_class(config, width, folder, pretrained)`, see `TextEncoder`."""

    pixel_spec: PixelSpec

    @abstractmethod
    def forward(self, pixels_RCHW: Tensor) -> TokenStates:
        """`(R, 3, H, W)` uint8 pixels -> states of the common width."""

    @abstractmethod
    def save_backbone(self, folder: Path, state: dict[str, Tensor]) -> None:
        """Write the backbone as its library would read it: configuration and the weights in `state`."""


text_encoders: Family[TextEncoder] = Family("text encoder", home=__name__)
vision_encoders: Family[VisionEncoder] = Family("vision encoder", home=__name__)
