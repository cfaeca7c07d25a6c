"""Weights of EfficientNet-Lite0 under other names become a folder that the vision encoder opens."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from pmmrec.context import Backbone, BuildContext
from pmmrec.contracts import PixelInputs
from pmmrec.encoders import vision_encoders
from pmmrec.packing import HostArray
from tests.real.image_encoder import ARCHITECTURE, write_backbone


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(ARCHITECTURE, pretrained=False).eval()


def test_the_folder_computes_what_the_weights_do(model: torch.nn.Module, tmp_path: Path) -> None:
    foreign = {f"_{place}": tensor for place, tensor in enumerate(model.state_dict().values())}
    write_backbone(foreign, tmp_path)
    config = vision_encoders.config({"type": "timm", "weights": str(tmp_path), "image_size": 64, "pool": "mean"})
    context = BuildContext(8, {"": Backbone(tmp_path, is_pretrained=True)})
    encoder = vision_encoders.part_class(config)(config, context).eval()
    assert encoder.warnings == ()
    pixels_RCHW = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    inputs = PixelInputs(pixels_RCHW, HostArray(range(2)))
    with torch.no_grad():
        expected = model.forward_features((pixels_RCHW / 255 - 0.5) / 0.5)
        torch.testing.assert_close(encoder.hidden(inputs), expected, rtol=1e-5, atol=1e-5)


def test_tensors_of_another_model_are_refused(model: torch.nn.Module, tmp_path: Path) -> None:
    names = list(model.state_dict())[1:]
    with pytest.raises(ValueError, match="not those of tf_efficientnet_lite0"):
        write_backbone({name: model.state_dict()[name] for name in names}, tmp_path)
