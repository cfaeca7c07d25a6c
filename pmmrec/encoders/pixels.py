"""Pixels on their way into a vision encoder, and tokens on their way out."""
# Shapes: R rows, C channels, H height, W breadth, P image tokens, D width.

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from pmmrec.contracts import TokenStates
from pmmrec.encoders.backbone import BackboneConfig
from pmmrec.errors import CheckpointError, RecipeError

Channels = tuple[float, float, float]
VisionPool = Literal["cls", "mean", "max", "pooler", "attention"]
NEUTRAL: Channels = (0.5, 0.5, 0.5)
RESAMPLING = "bicubic"  # how the data room resizes
NUMBERS_IN_CACHE = 1 << 18  # of pixels that are normalised together on a CPU
MAX_NAMED_SIZE = 4096  # no larger size is looked for where one is to be named
# What libraries raise where windows, patches or stages do not fit a size.
_MISFITS = (RuntimeError, ValueError, AssertionError, IndexError, ZeroDivisionError, RecipeError)


class PixelConfig(BackboneConfig):
    """Settings of every encoder that reads pixels."""

    image_size: int | None = Field(default=None, gt=0, description="Pixels a side; None: the backbone's own.")
    mean: Channels | None = Field(default=None, description="Of each channel in 0..1; None: the backbone's, else 0.5.")
    std: Channels | None = Field(default=None, description="Of each channel in 0..1; None: the backbone's, else 0.5.")

    @model_validator(mode="after")
    def _deviations_are_above_zero(self) -> Self:
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std: {list(self.std)} must hold 3 numbers above 0, since pixels are divided by them")
        return self


class VisionConfig(PixelConfig):
    """Settings that every vision encoder has."""

    pool: VisionPool = Field(
        default="cls",
        description="The whole image: the cls token, the mean or the greatest of all patches, or what the pooler of "
        "the architecture makes of them, by attention where it is SigLIP's.",
    )

    projection: Literal["linear", "conv3x3", "none"] = Field(
        default="linear",
        description="The way to the common width: of each token alone, or of 3 x 3 places of a feature map, without "
        "bias and below ReLU (MMSR's ResNet, 49 tokens of 224 pixels); none: states have that width already.",
    )

    @model_validator(mode="after")
    def _maps_are_pooled_by_their_mean(self) -> Self:
        if self.projection == "conv3x3" and self.pool not in ("cls", "mean"):
            raise ValueError(f"pool: {self.pool} is not computed above projection: conv3x3; use mean")
        return self


def read_channels(tree: Mapping[str, Any], key: str, where: str) -> Channels | None:
    """Three finite numbers that stand at `key`, above 0 where the key is of a deviation; None where there is none."""
    values = tree.get(key)
    if values is None:
        return None
    is_numbers = isinstance(values, list | tuple) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in values
    )
    if not is_numbers or len(values) != 3:
        raise CheckpointError(f"{where}: {key} must hold 3 numbers, found {values}")
    if key.endswith("std") and min(values) <= 0:
        raise CheckpointError(f"{where}: {key} must hold 3 numbers above 0, found {values}: pixels are divided by it")
    return float(values[0]), float(values[1]), float(values[2])


def chosen_scale(config: PixelConfig, of_folder: tuple[Channels | None, Channels | None]) -> tuple[Channels, Channels]:
    """Mean and standard deviation: of the settings, else of the folder, else 0.5."""
    mean, std = of_folder
    return config.mean or mean or NEUTRAL, config.std or std or NEUTRAL


def say_scale(
    config: PixelConfig,
    of_folder: tuple[Channels | None, Channels | None],
    where: str,
    warn: Callable[[str], object],
) -> None:
    """A warning for a pretrained folder that says no mean or deviation, or others than the settings."""
    for key, asked, said in (("mean", config.mean, of_folder[0]), ("std", config.std, of_folder[1])):
        if asked is None and said is None:
            warn(f"{where}: says no {key} of pixels; 0.5 is taken. Say which it was trained with: {key}: [R, G, B]")
        elif asked is not None and said is not None and asked != said:
            warn(f"{key}: the recipe says {list(asked)}, {where} {list(said)}; the recipe counts")


def say_resampling(resampling: str, where: str, warn: Callable[[str], object]) -> None:
    """A warning for a backbone whose images were resized by another filter than those of the data room."""
    if resampling != RESAMPLING:
        warn(f"{where}: its images were resized with {resampling}, here it is {RESAMPLING}: pixels differ a little")


def square_side(size: Any, where: str) -> int:
    """The side of a square that is given as a number or as height and width; CheckpointError for other shapes."""
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise CheckpointError(f"{where}: images of {size} are not square; choose a backbone that reads squares")
    return int(sides.pop())


def refuse_uneven(size: int, patch: int) -> None:
    """RecipeError for a size that patches do not fill: transformers would read no pixel of the rest."""
    if size % patch:
        near = [str(patch * count) for count in (size // patch, size // patch + 1) if count]
        raise RecipeError(
            f"image_size: patches of {patch} pixels do not fill {size}; near sizes that work: {', '.join(near)}"
        )


def check_size(name: str, size: int, step: int, run: Callable[[int], object]) -> None:
    """Check that a backbone reads images of `size` pixels a side; `run(size)` is a trial on the meta device.

    RecipeError names the nearest multiples of `step` that work.
    """
    error = _misfit(size, run)
    if error is None:
        return
    works = [near for near in (_smaller(size, step, run), _larger(size, step, run)) if near is not None]
    if works:
        raise RecipeError(
            f"image_size: {name} cannot read {size} pixels: its windows, patches or stages do not fit them; "
            f"near sizes that work: {', '.join(map(str, works))}"
        ) from error
    if isinstance(error, RecipeError):
        raise error
    raise RecipeError(f"image_size: {name} cannot read {size} pixels, nor larger ones: {error}") from error


def _misfit(size: int, run: Callable[[int], object]) -> Exception | None:
    try:
        run(size)
    except _MISFITS as error:
        return error
    return None


def _smaller(size: int, step: int, run: Callable[[int], object]) -> int | None:
    """The largest multiple below `size` that works, of the next few."""
    nearest = (size - 1) // step
    found = (step * count for count in range(nearest, max(0, nearest - 3), -1))
    return next((near for near in found if _misfit(near, run) is None), None)


def _larger(size: int, step: int, run: Callable[[int], object]) -> int | None:
    """The smallest multiple above `size` that works, if all above one that works do."""
    fails = size // step
    works = fails + 1
    while _misfit(step * works, run) is not None:
        fails, works = works, 2 * works
        if step * works > MAX_NAMED_SIZE:
            return None
    while works - fails > 1:
        middle = (fails + works) // 2
        fails, works = (fails, middle) if _misfit(step * middle, run) is None else (middle, works)
    return step * works


class Normalise(nn.Module):
    """Bring uint8 pixels to the scale that a backbone was trained on, on the device where they are."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean_C11", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std_C11", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, pixels_RCHW: Tensor, dtype: torch.dtype) -> Tensor:
        """0..255 -> (x / 255 - mean) / std, reckoned in float32 and handed on as `dtype`."""
        mean_C11, std_C11 = self.get_buffer("mean_C11"), self.get_buffer("std_C11")
        normal = torch.empty(pixels_RCHW.shape, dtype=torch.float32, device=pixels_RCHW.device)
        at_once = len(normal)
        if normal.device.type == "cpu":  # so few images that they stay in cache: four passes over all cost as a block
            at_once = max(1, NUMBERS_IN_CACHE // max(1, pixels_RCHW[0].numel()))
        for out, pixels in zip(torch.split(normal, at_once), torch.split(pixels_RCHW, at_once), strict=True):
            out.copy_(pixels).div_(255).sub_(mean_C11).div_(std_C11)
        return normal.to(dtype)


def map_states(map_RCHW: Tensor, projection: nn.Module, pool: VisionPool) -> TokenStates:
    """A feature map under its convolution and ReLU as tokens, one a place, and their mean."""
    tokens_RPD = F.relu(projection(map_RCHW)).flatten(2).transpose(1, 2)
    return pooled_states(tokens_RPD, 0, pool)


def pooled_states(
    states_RPD: Tensor, num_prefix_tokens: int, pool: VisionPool, whole_RD: Tensor | None = None
) -> TokenStates:
    """States of a backbone's tokens, the prefix (cls, registers) first, as patches and one vector for the whole.

    `whole_RD`: the vector, where it is known already.
    """
    patches_RPD, first_RD = states_RPD[:, num_prefix_tokens:], states_RPD[:, 0] if num_prefix_tokens else None
    if whole_RD is None and pool == "max":
        whole_RD = patches_RPD.amax(1)
    elif whole_RD is None:
        whole_RD = patches_RPD.mean(1) if pool == "mean" or first_RD is None else first_RD
    return TokenStates.of_even(patches_RPD, whole_RD, first_RD)
