"""Pixels are normalised to the same bits, however many images are done together."""

from __future__ import annotations

import pytest
import torch

from pmmrec.encoders import pixels
from pmmrec.encoders.pixels import Normalise

MEAN, STD = (0.48, 0.45, 0.41), (0.27, 0.26, 0.28)


@pytest.mark.parametrize("at_once", [1, 2, 3, 100])
def test_any_number_of_images_together_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    images = torch.randint(0, 256, (7, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean_C11, std_C11 = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    monkeypatch.setattr(pixels, "NUMBERS_IN_CACHE", at_once * 3 * 4 * 5)
    assert torch.equal(Normalise(MEAN, STD)(images, torch.float32), (images.float() / 255 - mean_C11) / std_C11)
    assert Normalise(MEAN, STD)(images, torch.bfloat16).dtype == torch.bfloat16


def test_shapes_are_known_without_numbers() -> None:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8, device="meta")
    assert Normalise(MEAN, STD).to("meta")(images, torch.float32).shape == images.shape
