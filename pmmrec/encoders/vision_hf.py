"""Images through an encoder of transformers (CLIP's vision half, ViT, Swin, DeiT, DINOv2, BEiT, ...)."""
# Shapes: R rows, C channels, H height, W breadth, P image tokens, D width.

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pmmrec.context import BuildContext
from pmmrec.contracts import FieldInputs, PixelInputs, PixelSpec, PrefixInputs, TokenInputs, TokenStates
from pmmrec.encoders import VisionEncoder, vision_encoders
from pmmrec.encoders.backbone import dtype_of, make_head, make_way, through_head
from pmmrec.encoders.huggingface import (
    checkpoint_blocks,
    new_config,
    new_model,
    open_model,
    read_config,
    read_state,
    save_model,
)
from pmmrec.encoders.masking import in_order, noise_of_images
from pmmrec.encoders.patches import as_patches, decoder_of, hiding, patch_losses
from pmmrec.encoders.pixels import (
    Normalise,
    VisionConfig,
    check_size,
    map_states,
    pooled_states,
    refuse_uneven,
    square_side,
)
from pmmrec.encoders.prefix import CanBeCut, FrozenPrefix
from pmmrec.encoders.preprocessor import read_scale, write_preprocessor
from pmmrec.encoders.trainable import find_layout, matching, pooled_by, pools_of
from pmmrec.encoders.vision_layouts import HALVES, LAYOUTS, REFUSED, VisionLayout
from pmmrec.errors import RecipeError
from pmmrec.hashed import uniform

SIZE_OF_MAPS = 224  # pixels a side, of backbones whose configuration says none


_TINY: Mapping[str, Any] = {
    "model_type": "vit",
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
_TINY_RESNET: Mapping[str, Any] = {
    "model_type": "resnet",
    "embedding_size": 4,
    "hidden_sizes": [4, 8],
    "depths": [1, 1],
    "layer_type": "basic",
}


class HFVisionConfig(VisionConfig):
    """Settings of a vision encoder of transformers."""

    type: Literal["hf_vision"] = "hf_vision"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"architecture": _TINY},
        {"architecture": _TINY, "pool": "mean", "head": {"layers": 1, "activation": "relu"}},
        {"architecture": {**_TINY, "model_type": "vit_mae"}, "mask_ratio": 0.5},
        {"architecture": _TINY_RESNET, "image_size": 32, "pool": "mean", "projection": "conv3x3"},
    )
    mask_ratio: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Of a masked autoencoder (vit_mae): the share of patches left out; null: 0 (MMSR: 0, 0.5, 0.75).",
    )
    num_blocks: int | None = Field(
        default=None,
        ge=0,
        description="How many blocks are computed, from the bottom; null: all; 0: none, what enters the lowest one.",
    )


@vision_encoders.register("hf_vision", HFVisionConfig)
class HFVision(CanBeCut, VisionEncoder):
    """Encode images `(R, 3, H, W)` with a model of transformers; a projection brings every token to the common width D.

    Eq. 2 of https://arxiv.org/abs/2312.09602, whose released code trains the two top blocks of CLIP ViT-B/32. Of a
    two-sided checkpoint (CLIP, SigLIP) the vision half is read. A pooler is left out unless it pools. The tokens are
    the patches, or the places of a ResNet's map (`projection: conv3x3` is the way that MMSR brings these to the common
    width): cls, distillation and register tokens are not among them. A masked autoencoder (vit_mae) sees a share of
    1 - `mask_ratio` of the patches: others at each step of training, and the same ones of an image whenever it is
    ranked, whichever items are encoded with it. transformers draws 75 % anew there too, unless told otherwise.

    Example:
        model:
          item_encoder:
            type: towers
            vision: {type: hf_vision, architecture: {model_type: vit, num_hidden_layers: 2}}
    """

    layouts = LAYOUTS
    _layout: VisionLayout

    def __init__(self, config: HFVisionConfig, context: BuildContext) -> None:
        super().__init__()
        self._origin = backbone = context.backbone
        where, warnings = str(backbone.folder), list[str]()
        self._settings = read_config(backbone.folder, HALVES)
        self._layout = find_layout(LAYOUTS, self._settings.model_type, where, REFUSED)
        self._mask_ratio = _set_mask_ratio(self._settings, config.mask_ratio, where)
        _set_num_blocks(self._settings, self._layout, config.num_blocks)
        self._pool, self.num_prefix_tokens = config.pool, _num_prefix_tokens(self._settings, self._layout)
        pools = pools_of(self._layout, has_cls=self.num_prefix_tokens > 0)
        if config.pool not in pools:
            missing = "cls token" if config.pool == "cls" else config.pool
            raise RecipeError(f"pool: {self._settings.model_type} has no {missing}; use {' or '.join(pools)}")
        with_pooler = config.pool == self._layout.pools_by
        self._layout = pooled_by(self._layout, config.pool)
        own_size = _own_size(self._settings, self._layout, where)
        self.pixel_spec = PixelSpec(config.image_size or own_size)
        if config.projection == "conv3x3" and not self._layout.is_map:
            raise RecipeError(f"projection: {self._settings.model_type} gives no feature map of channels; use linear")
        self._patch = patch = square_side(getattr(self._settings, "patch_size", 1), where)
        if not self._layout.has_windows or patch > self.pixel_spec.size:  # windows are over padded patches
            refuse_uneven(self.pixel_spec.size, patch)
        _refuse_no_patch(self._mask_ratio or 0.0, self._num_patches)
        if self._layout.has_windows:
            is_fresh = config.architecture is not None and self.pixel_spec.size == own_size
            _check_windows(self._settings, self.pixel_spec.size, patch, resizes=is_fresh)
        self._mean, self._std = read_scale(config, backbone, self.pixel_spec.size, warnings.append)
        if backbone.is_pretrained and config.pool == "cls" and getattr(self._settings, "use_mean_pooling", False):
            warnings.append(
                f"{where}: use_mean_pooling: true: its images were pooled by the mean of patches; pool: mean"
            )
        say_unused = warnings.append if config.num_blocks is None else _say_nothing
        self.backbone = open_model(backbone, self._settings, self._layout, say_unused, with_pooler=with_pooler)
        self.compute_cheaply()
        self.warnings = tuple(warnings)
        self._options: dict[str, bool] = {}
        if self.pixel_spec.size != own_size and not self._layout.is_map:
            self._options = _stretch_positions(self.backbone)
        self.normalise = Normalise(self._mean, self._std)
        self.projection = make_way(
            config.projection, _width(self._settings, self._layout), context.width, self._settings.model_type
        )
        self.head = make_head(config.head, context.width)
        self.train_top_blocks(self._layout, config.trainable_blocks)

    @classmethod
    def start(cls, config: HFVisionConfig, folder: Path, texts: Iterable[str]) -> None:  # type: ignore[override]  # noqa: ARG003
        """Write the configuration of `architecture`, and how images must look; texts play no part."""
        if config.architecture is None:
            raise RecipeError("weights: a pretrained backbone is opened, not started; give `architecture` instead")
        fitted: dict[str, Any] = {} if config.image_size is None else {"image_size": config.image_size}
        if "mask_ratio" in config.architecture:
            raise RecipeError("architecture.mask_ratio: is set by `mask_ratio` beside `architecture`")
        settings = new_config(config.architecture, **fitted)
        layout = find_layout(LAYOUTS, settings.model_type, "architecture.model_type", REFUSED)
        settings.save_pretrained(folder)
        size = config.image_size or _own_size(settings, layout, "architecture.image_size")
        write_preprocessor(folder, size, config.mean, config.std)

    def forward(self, inputs: PixelInputs | PrefixInputs) -> TokenStates:
        """uint8 pixels, or the kept states of the frozen part, -> states; wholes alone if no token is read."""
        last = self.last_states(inputs)
        if self.pools_first:
            is_pooled = isinstance(inputs, PrefixInputs) and self.pools_at_cut
            return self.wholes(last if is_pooled else self._whole(last))
        if isinstance(self.projection, nn.Conv2d):
            return through_head(map_states(last, self.projection, self._pool), self.head)
        whole_RD = None if self._pool in ("cls", "mean") else self.projection(self._whole(last))
        states = pooled_states(self.projection(self._tokens(last)), self.num_prefix_tokens, self._pool, whole_RD)
        return through_head(states, self.head)

    def _tokens(self, last: Tensor) -> Tensor:
        """The last hidden state as tokens, `(R, P, H)`."""
        return last.flatten(2).transpose(1, 2) if self._layout.is_map else last

    def pooled(self, inputs: FieldInputs) -> Tensor:
        """The whole of each image as the backbone gives it, `(R, H)`."""
        if not isinstance(inputs, PixelInputs):
            raise TypeError("a vision encoder reads pixels")
        return self._whole(self.hidden(inputs))

    def _whole(self, last: Tensor) -> Tensor:
        """The vector of each image out of the last hidden state, `(R, H)`."""
        tokens_RPH = self._tokens(last)
        if self._pool != self._layout.pools_by:
            return pooled_states(tokens_RPH, self.num_prefix_tokens, self._pool).cls_RD
        (name,) = matching(self.backbone, self._layout.pooler)
        pooler = self.backbone.get_submodule(name)
        if self._layout.pooler_reads == "states":
            pooled_RH: Tensor = pooler(tokens_RPH)
            return pooled_RH
        whole_RH: Tensor = pooler(pooled_states(tokens_RPH, self.num_prefix_tokens, self._layout.pooler_reads).cls_RD)
        return whole_RH

    def layers(self, inputs: FieldInputs) -> Tensor:
        """The whole of each image at every layer, `(R, T, H)`."""
        if not isinstance(inputs, PixelInputs):
            raise TypeError("a vision encoder reads pixels")
        if self._pool == self._layout.pools_by:
            raise RecipeError(
                f"layers: {self._pool} pools the last one alone; use pool: mean, or cls where there is one"
            )
        states = self.layer_states(inputs)
        return torch.stack([pooled_states(one, self.num_prefix_tokens, self._pool).cls_RD for one in states], dim=1)

    def hidden(self, inputs: TokenInputs | PixelInputs) -> Tensor:
        """The library's own last hidden state, `(R, P, H)`, or `(R, C, H, W)` of a map."""
        if isinstance(inputs, TokenInputs):
            raise TypeError("a vision encoder reads pixels, not token ids")
        normal_RCHW = self.normalise(inputs.pixels_RCHW, dtype_of(self.backbone))
        options: dict[str, Any] = {**self._options, **self._masks(inputs.pixels_RCHW)}
        if self._layout.reads_patches:
            normal_RCHW, options = _as_patches(normal_RCHW, self._patch)
        hidden: Tensor = self.backbone(pixel_values=normal_RCHW, **options).last_hidden_state
        return hidden

    def _masks(self, pixels_RCHW: Tensor) -> dict[str, Tensor]:
        """What chooses the patches that a masked autoencoder sees; nothing for others, and where it is to be drawn."""
        if self._mask_ratio is None or (self._mask_ratio and self.training):
            return {}
        if not self._mask_ratio:
            return {"noise": in_order(len(pixels_RCHW), self._num_patches, pixels_RCHW.device)}
        return {"noise": noise_of_images(pixels_RCHW, self._num_patches)}

    def patch_head(self, share: float) -> nn.Module:
        """As of any vision encoder. RecipeError where the backbone is no masked autoencoder, or reads another size."""
        if self._mask_ratio is None:
            raise RecipeError(
                f"{self._settings.model_type} is no masked autoencoder, so no patch can be hidden; choose vit_mae"
            )
        if self._options:
            raise RecipeError(
                f"image_size: {self.pixel_spec.size} is not the size that the decoder paints; leave it out"
            )
        _refuse_no_patch(share, self._num_patches, "share")
        decoder, is_own = decoder_of(self._settings, self._origin)
        if self._origin.is_pretrained and not is_own:
            self.warnings += (f"{self._origin.folder}: has no decoder for hidden patches; a fresh one learns",)
        return decoder

    def patch_loss(
        self, inputs: PixelInputs, seed_R: Tensor, head: nn.Module, share: float, *, normalize: bool
    ) -> Tensor:
        """As of any vision encoder."""
        normal_RCHW = self.normalise(inputs.pixels_RCHW, self.projection.weight.dtype)
        with hiding(self.backbone, share):
            seen = self.backbone(pixel_values=normal_RCHW, noise=uniform(seed_R, self._num_patches))
        painted_RPQ = head(seen.last_hidden_state, seen.ids_restore).logits
        return patch_losses(painted_RPQ, as_patches(normal_RCHW, self._patch), seen.mask, normalize=normalize)

    @property
    def _num_patches(self) -> int:
        return (self.pixel_spec.size // self._patch) ** 2

    @property
    def prefix(self) -> FrozenPrefix | None:
        """As of any encoder. RecipeError where training draws other patches at each step, and no state can be kept."""
        if self._mask_ratio and self.training:
            raise RecipeError("mask_ratio: training sees other patches at each step; say mask_ratio: 0 to keep states")
        return super().prefix

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        return {"size": self.pixel_spec.size, "mean": list(self._mean), "std": list(self._std)}

    def checkpoint_activations(self) -> None:
        """Of the blocks that learn: those in training mode."""
        checkpoint_blocks(self.backbone)

    def save_backbone(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write what `AutoModel` and `AutoImageProcessor` read."""
        save_model(self.backbone, folder, state)
        write_preprocessor(folder, self.pixel_spec.size, self._mean, self._std)

    def read_backbone(self, folder: Path) -> dict[str, Tensor]:
        """The tensors that `save_backbone` wrote, by the same names."""
        return read_state(folder, read_config(folder, HALVES), self._layout, self.backbone)


def _set_mask_ratio(settings: Any, mask_ratio: float | None, where: str) -> float | None:
    """Put it into the configuration of a masked autoencoder; None for others. RecipeError where it has no effect."""
    if not hasattr(settings, "mask_ratio"):
        if mask_ratio is not None:
            raise RecipeError(f"mask_ratio: has no effect, {where} holds no masked autoencoder; leave it out")
        return None
    settings.mask_ratio = mask_ratio or 0.0
    return mask_ratio or 0.0


def _set_num_blocks(settings: Any, layout: VisionLayout, num_blocks: int | None) -> None:
    """Leave out the blocks above. RecipeError where there are fewer, or stages in place of equal blocks."""
    if num_blocks is None:
        return
    if layout.is_map or layout.has_windows or not hasattr(settings, "num_hidden_layers"):
        raise RecipeError(f"num_blocks: {settings.model_type} has stages, not equal blocks; leave it out")
    if num_blocks > settings.num_hidden_layers:
        raise RecipeError(
            f"num_blocks: {num_blocks} asked for, but there are {settings.num_hidden_layers}; take no more than these"
        )
    settings.num_hidden_layers = num_blocks


def _say_nothing(_: str) -> None:
    """Of blocks that are left out because the recipe says so."""


def _refuse_no_patch(mask_ratio: float, num_patches: int, setting: str = "mask_ratio") -> None:
    """RecipeError where transformers, which rounds down, would leave none of the patches of an image."""
    if int(num_patches * (1 - mask_ratio)) < 1:
        raise RecipeError(
            f"{setting}: {mask_ratio} leaves none of the {num_patches} patches of an image; take a smaller share, or "
            "larger images"
        )


def _as_patches(pixels_RCHW: Tensor, patch: int) -> tuple[Tensor, dict[str, Any]]:
    """The patches of images, `(R, P, patch * patch * C)`, and what SigLIP 2 must be told of them."""
    num_rows, _, height, width = pixels_RCHW.shape
    shape_R2 = torch.tensor([[height // patch, width // patch]], device="cpu").expand(num_rows, 2)  # read by the host
    return as_patches(pixels_RCHW, patch), {"pixel_attention_mask": None, "spatial_shapes": shape_R2}


def _own_size(settings: Any, layout: VisionLayout, where: str) -> int:
    if layout.reads_patches:
        return math.isqrt(settings.num_patches) * square_side(settings.patch_size, where)
    if layout.is_map and not hasattr(settings, "image_size"):
        return SIZE_OF_MAPS
    return square_side(settings.image_size, where)


def _width(settings: Any, layout: VisionLayout) -> int:
    """Of the last hidden state."""
    found = getattr(settings, layout.width_name)
    width: int = found if isinstance(found, int) else found[-1]
    return width


def _num_prefix_tokens(settings: Any, layout: VisionLayout) -> int:
    return layout.num_prefix_tokens + (settings.num_register_tokens if layout.has_registers else 0)


def _stretch_positions(backbone: Any) -> dict[str, bool]:
    """What makes a backbone read images of another size than its own; DINO does so unasked."""
    takes = inspect.signature(backbone.forward).parameters
    return {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}


def _check_windows(settings: Any, size: int, patch: int, *, resizes: bool) -> None:
    """RecipeError unless windows fit images of `size`; `resizes`: the configuration takes on a size that is tried."""

    def run(tried: int) -> None:
        trial = copy.deepcopy(settings)
        if resizes:
            trial.image_size = tried
        with torch.device("meta"):
            backbone = new_model(trial, "architecture").eval()
            options = {} if tried == square_side(trial.image_size, "image_size") else _stretch_positions(backbone)
            backbone(pixel_values=torch.zeros(1, settings.num_channels, tried, tried), **options)

    check_size(settings.model_type, size, patch, run)
