"""Run a model as it ranks: in eval mode and without gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards each module is in the mode it was in."""
    was_training = [module for module in model.modules() if module.training]
    if was_training:
        model.eval()
    try:
        with torch.no_grad():  # inference_mode would hand out tensors that a user's own training cannot touch
            yield
    finally:
        for module in was_training:
            module.training = True
