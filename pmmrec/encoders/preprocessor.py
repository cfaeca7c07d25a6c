"""How a folder of transformers says that images must look, and how that is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pmmrec.context import Backbone
from pmmrec.encoders.huggingface import read_json, write_json
from pmmrec.encoders.pixels import (
    NEUTRAL,
    Channels,
    PixelConfig,
    chosen_scale,
    read_channels,
    say_resampling,
    say_scale,
)
from pmmrec.errors import CheckpointError

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
NESTED = "image_processor"
_RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by the numbers of Pillow


def read_scale(
    config: PixelConfig, backbone: Backbone, size: int, warn: Callable[[str], object]
) -> tuple[Channels, Channels]:
    """Mean and standard deviation of each channel of pixels in 0..1: of the settings, else of the folder, else 0.5.

    Rescaling by another factor than 1 / 255, or none, and no normalisation are put in these terms. `warn` hears of what
    a pretrained backbone met otherwise in its training. CheckpointError for values that are none.
    """
    path, tree = _read(backbone.folder)
    mean, std = _scale(path, tree)
    if backbone.is_pretrained:
        say_scale(config, (mean, std), str(path), warn)
        if tree.get("resample") is not None:
            say_resampling(_resampling(tree["resample"]), str(path), warn)
        side = _side(tree)
        if config.image_size is None and side not in (None, size):
            warn(
                f"{path}: its images are of {side} pixels, and {size} are read, as config.json says; image_size: {side}"
            )
    return chosen_scale(config, (mean, std))


def write_preprocessor(folder: Path, size: int, mean: Channels | None, std: Channels | None) -> None:
    """Write how images look; ViTImageProcessor squeezes to a square without a crop, as the data room does."""
    tree = {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean or NEUTRAL),
        "image_std": list(std or NEUTRAL),
    }
    write_json(folder / PREPROCESSOR, tree)


def _read(folder: Path) -> tuple[Path, Mapping[str, Any]]:
    """The file that counts and what it says of images, in the order of transformers: a nested processor first."""
    whole = read_json(folder / PROCESSOR) if (folder / PROCESSOR).is_file() else {}
    nested = whole.get(NESTED)
    if isinstance(nested, Mapping):
        return folder / PROCESSOR, nested
    path = folder / PREPROCESSOR
    return path, read_json(path) if path.is_file() else {}


def _scale(path: Path, tree: Mapping[str, Any]) -> tuple[Channels | None, Channels | None]:
    if tree.get("do_flip_channel_order"):
        raise CheckpointError(f"{path}: do_flip_channel_order: true: pixels are RGB here; choose another backbone")
    factor = tree.get("rescale_factor", 1 / 255) if tree.get("do_rescale", True) else 1.0
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < float("inf"):
        raise CheckpointError(f"{path}: rescale_factor: {factor}: must be a number above 0, such as 1 / 255")
    mean, std = read_channels(tree, "image_mean", str(path)), read_channels(tree, "image_std", str(path))
    if not tree.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    unit = 255 * factor  # (x * factor - mean) / std = (x / 255 - mean / unit) / (std / unit)
    return _divided(mean, unit), _divided(std, unit)


def _divided(values: Channels | None, unit: float) -> Channels | None:
    return None if values is None else (values[0] / unit, values[1] / unit, values[2] / unit)


def _resampling(value: Any) -> str:
    is_known = isinstance(value, int) and 0 <= value < len(_RESAMPLING)
    return _RESAMPLING[value] if is_known else str(value)


def _side(tree: Mapping[str, Any]) -> int | None:
    """Pixels a side of an image that leaves the processor; None where it does not say."""
    size = tree.get("crop_size") if tree.get("do_center_crop") else tree.get("size")
    sides = list(size.values()) if isinstance(size, Mapping) else size if isinstance(size, list) else [size]
    is_known = all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides)
    return sides[0] if is_known and len(set(sides)) == 1 else None
