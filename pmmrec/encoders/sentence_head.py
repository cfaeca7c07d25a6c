"""The modules that sentence-transformers puts above the pooling of a text: Dense and Normalize."""
# Shapes: R texts, H width of what is pooled.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pmmrec.encoders.backbone import is_dry_run
from pmmrec.encoders.huggingface import read_json, write_json
from pmmrec.encoders.weights import WEIGHTS, is_finite
from pmmrec.errors import CheckpointError

ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "torch.nn.modules.linear.Identity": nn.Identity,
    "torch.nn.modules.activation.GELU": nn.GELU,
    "torch.nn.modules.activation.ReLU": nn.ReLU,
    "torch.nn.modules.activation.SiLU": nn.SiLU,
    "torch.nn.modules.activation.Tanh": nn.Tanh,
}
_KEYS = ("in_features", "out_features", "bias", "activation_function")
# Of a Dense or Normalize, the values at which it reads the pooled vector and gives one.
_OF_WHOLES = {
    "module_input_name": "sentence_embedding",
    "module_output_name": "sentence_embedding",
    "use_residual": False,
}


class SentenceDense(nn.Module):
    """A linear layer and an activation, of pooled texts `(R, H)`."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool, activation: str) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.activation, self.activation_name = ACTIVATIONS[activation](), activation

    def forward(self, whole_RH: Tensor) -> Tensor:
        out_RH: Tensor = self.activation(self.linear(whole_RH))
        return out_RH


class UnitLength(nn.Module):
    """Divide each vector by its length."""

    def forward(self, whole_RH: Tensor) -> Tensor:
        return F.normalize(whole_RH, dim=-1)


def read_sentence_head(
    home: Path, modules: Sequence[tuple[str, str]], width: int, *, with_weights: bool
) -> nn.Sequential:
    """The modules above the pooling, by kind and folder in `home`; `width`: of what is pooled.

    CheckpointError for one that is broken, does not fit the width, or is of a kind that is not computed here.
    """
    head = nn.Sequential()
    for kind, path in modules:
        config = read_json(home / path / "config.json") if (home / path / "config.json").is_file() else {}
        _refuse_other_uses(config, home / path)
        if kind == "Normalize":
            head.append(UnitLength())
        elif kind == "Dense":
            dense = _dense(config, home / path, width, with_weights=with_weights)
            width = dense.linear.out_features
            head.append(dense)
        else:
            raise CheckpointError(f"{home / path}: {kind} is not computed here; leave sentence_modules out")
    return head


def width_of(head: nn.Sequential | None, width: int) -> int:
    """Of what a head gives for pooled texts of `width`."""
    widths = [one.linear.out_features for one in head or () if isinstance(one, SentenceDense)]
    return widths[-1] if widths else width


def write_sentence_head(folder: Path, head: nn.Sequential | None) -> list[tuple[str, str]]:
    """Write what `read_sentence_head` reads; the kinds and folders of its modules."""
    written = []
    for place, module in enumerate(head or (), start=2):  # behind Transformer and Pooling
        is_dense = isinstance(module, SentenceDense)
        kind = "Dense" if is_dense else "Normalize"
        path = f"{place}_{kind}"
        if isinstance(module, SentenceDense):
            linear = module.linear
            values = (linear.in_features, linear.out_features, linear.bias is not None, module.activation_name)
            write_json(folder / path / "config.json", dict(zip(_KEYS, values, strict=True)))
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
            save_file(state, folder / path / WEIGHTS, {"format": "pt"})
        written.append((kind, path))
    return written


def _refuse_other_uses(config: Mapping[str, Any], folder: Path) -> None:
    for key, usual in _OF_WHOLES.items():
        if config.get(key, usual) not in (usual, None):
            raise CheckpointError(f"{folder}: {key}: {config[key]} is not computed here; leave sentence_modules out")


def _dense(config: Mapping[str, Any], folder: Path, width: int, *, with_weights: bool) -> SentenceDense:
    in_features, out_features, bias, activation = (config.get(key) for key in _KEYS)
    if not isinstance(in_features, int) or not isinstance(out_features, int) or out_features < 1:
        raise CheckpointError(f"{folder}/config.json: in_features and out_features must be whole numbers above 0")
    if in_features != width:
        raise CheckpointError(f"{folder}/config.json: in_features: {in_features}, but what enters is {width} wide")
    activation = str(activation or "torch.nn.modules.activation.Tanh")  # the default of sentence-transformers
    if activation not in ACTIVATIONS:
        known = ", ".join(name.rpartition(".")[2] for name in ACTIVATIONS)
        raise CheckpointError(f"{folder}/config.json: activation_function: {activation} is not known here; {known} are")
    dense = SentenceDense(in_features, out_features, bias=bias is not False, activation=activation)
    if with_weights and not is_dry_run():
        _load(dense, folder / WEIGHTS)
    return dense


def _load(dense: SentenceDense, path: Path) -> None:
    try:
        state = load_file(path)
        dense.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError) as error:
        told = " ".join(str(error).split())
        raise CheckpointError(f"{path}: cannot be opened: {told}; only safetensors are read") from error
    if not all(is_finite(tensor) for tensor in state.values()):
        raise CheckpointError(f"{path}: holds NaN or infinity; take another copy of the weights")
    with torch.no_grad():
        dense.float()
