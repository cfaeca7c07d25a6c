"""Images through an encoder of timm (ResNet, Swin, ConvNeXt, EfficientNet, ViT, ...)."""
# Shapes: R rows, C channels, H height, W breadth, P image tokens, D width.

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typing_extensions import Self

from pmmrec.context import BuildContext
from pmmrec.contracts import FieldInputs, PixelInputs, PixelSpec, PrefixInputs, TokenInputs, TokenStates
from pmmrec.encoders import VisionEncoder, vision_encoders
from pmmrec.encoders.backbone import dtype_of, is_dry_run, make_head, make_way, through_head
from pmmrec.encoders.huggingface import check_names, in_one_line, read_json, write_json
from pmmrec.encoders.pixels import (
    Channels,
    Normalise,
    VisionConfig,
    check_size,
    chosen_scale,
    map_states,
    pooled_states,
    read_channels,
    say_resampling,
    say_scale,
    square_side,
)
from pmmrec.encoders.prefix import CanBeCut
from pmmrec.encoders.timm_layouts import LAYOUTS, REFUSED, TimmLayout
from pmmrec.encoders.trainable import find_layout, pooled_by, pools_of
from pmmrec.encoders.weights import WEIGHTS, refuse_broken_numbers, refuse_integers, refuse_leftovers
from pmmrec.errors import CheckpointError, RecipeError

_SMALL: Mapping[str, Any] = {
    "architecture": {"name": "resnet18", "channels": [4, 4, 8, 8], "zero_init_last": False},
    "image_size": 64,
    "pool": "mean",
}
# Arguments of timm.create_model that would read other files than the folder's, or change what comes out.
NOT_OURS = frozenset(
    {
        "cache_dir",
        "checkpoint_path",
        "exportable",
        "features_only",
        "in_chans",
        "no_jit",
        "num_classes",
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "pretrained_strict",
        "scriptable",
    }
)


@dataclass(frozen=True)
class _Found:
    """What a folder in timm's layout says of a backbone."""

    architecture: str
    model_args: Mapping[str, Any]
    size: int | None = None
    mean: Channels | None = None
    std: Channels | None = None
    interpolation: Any = None
    global_pool: Any = None

    @classmethod
    def read(cls, folder: Path) -> _Found:
        """Read `config.json`; the older layout holds everything at the top."""
        path = folder / "config.json"
        tree = read_json(path)
        pretrained = tree.get("pretrained_cfg", tree)
        name, args = tree.get("architecture"), tree.get("model_args") or {}
        if not isinstance(name, str) or not isinstance(pretrained, Mapping) or not isinstance(args, Mapping):
            raise CheckpointError(f"{path}: not in timm's layout; needs `architecture` and `pretrained_cfg`")
        args = dict(args)
        args.pop("num_classes", None)  # of the classifier, which is left out
        if args.pop("in_chans", 3) != 3:
            raise CheckpointError(f"{path}: model_args.in_chans: only backbones that read RGB are opened")
        unwelcome = sorted(NOT_OURS & set(args))
        if unwelcome:
            raise CheckpointError(f"{path}: model_args.{unwelcome[0]} is never taken from a file; remove it")
        if "img_size" in args:
            args["img_size"] = square_side(args["img_size"], f"{path}: model_args.img_size")
        input_size = pretrained.get("input_size")
        size = square_side(input_size[-2:], f"{path}: input_size") if input_size else None
        scale = read_channels(pretrained, "mean", str(path)), read_channels(pretrained, "std", str(path))
        pool = args.get("global_pool", tree.get("global_pool", pretrained.get("global_pool")))
        return cls(name, args, size, *scale, pretrained.get("interpolation"), pool)

    def compare(self, config: TimmConfig, where: str, warn: Callable[[str], object]) -> None:
        """Say what the backbone met otherwise in its training."""
        say_scale(config, (self.mean, self.std), where, warn)
        if self.interpolation is not None:
            say_resampling(str(self.interpolation), where, warn)
        if config.pool == "cls" and str(self.global_pool).startswith("avg"):
            warn(f"{where}: global_pool: {self.global_pool}: its images were pooled by the mean of patches; pool: mean")


@dataclass(frozen=True)
class _Settings:
    """What a backbone has become, fit to be written."""

    architecture: str
    model_args: Mapping[str, Any]
    size: int
    mean: Channels
    std: Channels

    def write(self, folder: Path, num_features: int) -> None:
        """Write `config.json` in timm's layout."""
        looks = {
            "input_size": [3, self.size, self.size],
            "fixed_input_size": "img_size" in self.model_args,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": self.mean,
            "std": self.std,
            "num_classes": 0,
        }
        model = {"architecture": self.architecture, "num_classes": 0, "num_features": num_features}
        tree = {**model, "model_args": dict(self.model_args), "pretrained_cfg": looks}
        write_json(folder / "config.json", tree)


class TimmConfig(VisionConfig):
    """Settings of a vision encoder of timm; `architecture` is `{name: resnet18, ...}` with arguments of its class."""

    type: Literal["timm"] = "timm"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (_SMALL, {**_SMALL, "projection": "conv3x3"})

    @model_validator(mode="after")
    def _architecture_is_named(self) -> Self:
        tree = self.architecture
        if tree is None:
            return self
        if "name" not in tree:
            raise ValueError("architecture: needs `name`, a model of timm such as resnet18")
        unwelcome = sorted(NOT_OURS & set(tree))
        if unwelcome:
            raise ValueError(f"architecture: {unwelcome[0]} cannot be chosen here; remove it")
        if "img_size" in tree:
            raise ValueError("architecture: img_size is set by `image_size` beside `architecture`")
        return self


@vision_encoders.register("timm", TimmConfig)
class TimmVision(CanBeCut, VisionEncoder):
    """Encode images `(R, 3, H, W)` with a model of timm; a projection brings every token to the common width D.

    Eq. 2 of https://arxiv.org/abs/2312.09602, whose released code reads CLIP ViT-B/32. A feature map becomes one token
    a place. Only transformers with a cls token can be pooled by it.

    Example:
        model:
          item_encoder:
            type: towers
            vision: {type: timm, architecture: {name: resnet18}, image_size: 224, pool: mean}
    """

    layouts = LAYOUTS
    backbone: Any  # timm's models share methods, not a type
    _layout: TimmLayout

    def __init__(self, config: TimmConfig, context: BuildContext) -> None:
        super().__init__()
        backbone = context.backbone
        where = str(backbone.folder)
        found = _Found.read(backbone.folder)
        self.backbone = _create(found.architecture, found.model_args, where)
        self._layout = find_layout(LAYOUTS, type(self.backbone).__name__, where, REFUSED)
        self._pool, self._num_prefix_tokens = config.pool, 0
        if self._layout.output == "tokens":
            self._num_prefix_tokens = self.backbone.num_prefix_tokens
        self._layout = _pooled_by(self.backbone, self._layout, config.pool, found.architecture)
        if backbone.is_pretrained:
            refuse_leftovers(backbone.folder)
        if backbone.is_pretrained and not is_dry_run():
            _load(self.backbone, backbone.folder, self._layout)
            refuse_integers(backbone.folder)
            refuse_broken_numbers(self.backbone, backbone.folder)
        warnings: list[str] = []
        if backbone.is_pretrained:
            found.compare(config, f"{where}/config.json", warnings.append)
        self._settings = _resized(self.backbone, self._layout, found, config)
        self.warnings = tuple(warnings)
        self.pixel_spec = PixelSpec(self._settings.size)
        self.normalise = Normalise(self._settings.mean, self._settings.std)
        if config.projection == "conv3x3" and self._layout.output != "NCHW":
            raise RecipeError(f"projection: {found.architecture} gives no feature map of channels; use linear")
        self.projection = make_way(config.projection, self.backbone.num_features, context.width, found.architecture)
        self.head = make_head(config.head, context.width)
        self.train_top_blocks(self._layout, config.trainable_blocks)

    @classmethod
    def start(cls, config: TimmConfig, folder: Path, texts: Iterable[str]) -> None:  # type: ignore[override]  # noqa: ARG003
        """Write the configuration of `architecture`, and how images must look; texts play no part."""
        if config.architecture is None:
            raise RecipeError("weights: a pretrained backbone is opened, not started; give `architecture` instead")
        model_args = {key: value for key, value in config.architecture.items() if key != "name"}
        found = _Found(str(config.architecture["name"]), model_args)
        with torch.device("meta"):
            backbone = _create(found.architecture, model_args, "architecture")
            layout = find_layout(LAYOUTS, type(backbone).__name__, "architecture.name", REFUSED)
            _resized(backbone, layout, found, config).write(folder, backbone.num_features)

    def forward(self, inputs: PixelInputs | PrefixInputs) -> TokenStates:
        """uint8 pixels, or the kept states of the frozen part, -> states; wholes alone if no token is read."""
        features = self.last_states(inputs)
        if self.pools_first:
            is_pooled = isinstance(inputs, PrefixInputs) and self.pools_at_cut
            return self.wholes(features if is_pooled else self._whole(features))
        if isinstance(self.projection, nn.Conv2d):
            return through_head(map_states(features, self.projection, self._pool), self.head)
        whole_RD = None if self._pool in ("cls", "mean") else self.projection(self._whole(features))
        states = pooled_states(self.projection(self._tokens(features)), self._num_prefix_tokens, self._pool, whole_RD)
        return through_head(states, self.head)

    def _tokens(self, features: Tensor) -> Tensor:
        """The library's features as tokens, `(R, P, H)`."""
        if self._layout.output == "NCHW":
            return features.flatten(2).transpose(1, 2)
        return features.flatten(1, 2) if self._layout.output == "NHWC" else features

    def pooled(self, inputs: FieldInputs) -> Tensor:
        """The whole of each image as the backbone gives it, `(R, H)`."""
        if not isinstance(inputs, PixelInputs):
            raise TypeError("a vision encoder reads pixels")
        return self._whole(self.hidden(inputs))

    def _whole(self, last: Tensor) -> Tensor:
        """The vector of each image out of the last hidden state, `(R, H)`."""
        if self._pool == "attention":
            whole_RH: Tensor = self.backbone.attn_pool(last)
            return whole_RH
        return pooled_states(self._tokens(last), self._num_prefix_tokens, self._pool).cls_RD

    def layers(self, inputs: FieldInputs) -> Tensor:
        """The whole of each image at every layer, `(R, T, H)`."""
        if not isinstance(inputs, PixelInputs):
            raise TypeError("a vision encoder reads pixels")
        if self._layout.output != "tokens":
            raise RecipeError(f"layers: the stages of {self._settings.architecture} give states of different shapes")
        if self._pool == "attention":
            raise RecipeError("layers: attention pools the last one alone; use pool: mean")
        states = self.layer_states(inputs)
        return torch.stack([pooled_states(one, self._num_prefix_tokens, self._pool).cls_RD for one in states], dim=1)

    def hidden(self, inputs: TokenInputs | PixelInputs) -> Tensor:
        """The library's own features, in its own layout."""
        if isinstance(inputs, TokenInputs):
            raise TypeError("a vision encoder reads pixels, not token ids")
        normal_RCHW = self.normalise(inputs.pixels_RCHW, dtype_of(self.backbone))
        features: Tensor = self.backbone.forward_features(normal_RCHW)
        return features

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        settings = self._settings
        return {
            "architecture": settings.architecture,
            "model_args": dict(settings.model_args),
            "size": settings.size,
            "mean": list(settings.mean),
            "std": list(settings.std),
        }

    def checkpoint_activations(self) -> None:
        """By timm's own switch, which knows the way from pixels on; from kept states the blocks are called here."""
        self.backbone.set_grad_checkpointing(True)
        self._checkpoints = True

    def save_backbone(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write `config.json` and `model.safetensors` as `timm.create_model("local-dir:FOLDER")` reads them."""
        check_names(self.backbone, state, folder)
        self._settings.write(folder, self.backbone.num_features)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS, {"format": "pt"})

    def read_backbone(self, folder: Path) -> dict[str, Tensor]:
        """The tensors that `save_backbone` wrote, by the same names."""
        state = _read_tensors(folder)
        check_names(self.backbone, state, folder)
        return state


def _pooled_by(backbone: Any, layout: TimmLayout, pool: str, name: str) -> TimmLayout:
    """The layout of a backbone that pools so. RecipeError where it cannot."""
    has_cls = getattr(backbone, "has_class_token", getattr(backbone, "cls_token", None) is not None)
    has_attention = getattr(backbone, "attn_pool", None) is not None
    known = layout if has_attention else replace(layout, pooler="")
    pools = pools_of(known, has_cls=bool(has_cls) and layout.output == "tokens")
    if pool not in pools:
        missing = "cls token" if pool == "cls" else pool
        raise RecipeError(f"pool: {name} has no {missing}; use {' or '.join(pools)}")
    return pooled_by(known, pool)


def _create(name: str, model_args: Mapping[str, Any], where: str) -> Any:
    """A backbone of timm without head, weights drawn fresh."""
    import timm

    # `is_model` also keeps out names with a source, such as hf-hub:..., which would be fetched.
    if not timm.is_model(name):
        near = timm.list_models(f"{name.partition('_')[0]}*")[:5]
        raise RecipeError(f"{where}: timm has no model {name!r}; near: {', '.join(near) or 'none'}")
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, **model_args)
    except (TypeError, ValueError, IndexError, AssertionError, RuntimeError) as error:
        raise RecipeError(f"{where}: {name} cannot be built with {dict(model_args)}: {in_one_line(error)}") from error


def _resized(backbone: Any, layout: TimmLayout, found: _Found, config: TimmConfig) -> _Settings:
    """Make the backbone read the size asked for (positions are interpolated); its settings as they now are."""
    own_size = found.size or int(backbone.pretrained_cfg["input_size"][-1])
    size = config.image_size or own_size
    check_size(found.architecture, size, _patch(backbone), lambda tried: _try(layout, found, tried))
    mean, std = chosen_scale(config, (found.mean, found.std))
    return _Settings(found.architecture, _resize(backbone, layout, found, size), size, mean, std)


def _try(layout: TimmLayout, found: _Found, size: int) -> None:
    with torch.device("meta"):
        backbone = _create(found.architecture, found.model_args, found.architecture).eval()
        _resize(backbone, layout, found, size)
        backbone.forward_features(torch.zeros(1, 3, size, size))


def _resize(backbone: Any, layout: TimmLayout, found: _Found, size: int) -> dict[str, Any]:
    """Make the backbone read `size` pixels; the arguments that make one which does from the start."""
    model_args = dict(found.model_args)
    if layout.is_size_fixed and size != model_args.get("img_size", backbone.pretrained_cfg["input_size"][-1]):
        windows = {}
        if layout.has_windows:  # else timm scales them with the image, and a backbone made anew has others
            windows["window_size"] = model_args.get("window_size", backbone.layers[0].blocks[0].window_size[0])
        backbone.set_input_size(img_size=size, **windows)
        model_args |= {"img_size": size, **windows}
    return model_args


def _patch(backbone: Any) -> int:
    """Pixels a side of a patch; 1 for a backbone that has none."""
    patches = getattr(backbone, "patch_embed", None)
    return 1 if patches is None else int(patches.patch_size[0])


def _load(backbone: nn.Module, folder: Path, layout: TimmLayout) -> None:
    try:
        missing, unexpected = backbone.load_state_dict(_read_tensors(folder), strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{folder / WEIGHTS}: does not fit its config.json: {in_one_line(error)}") from error
    differing = missing + [name for name in unexpected if not re.fullmatch(layout.unused, name)]
    if differing:
        raise CheckpointError(f"{folder / WEIGHTS}: {len(differing)} tensors do not fit, such as {differing[0]}")


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be opened: {error}; only safetensors are read") from error
    return tensors
