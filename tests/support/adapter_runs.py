"""Make adapter checkpoints on a tiny base without training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pmmrec.adapters.plan import AdapterPlan
from pmmrec.models.recommender import Recommender
from pmmrec.zoo.adapters import AdapterSetup, insert_adapters
from pmmrec.zoo.checkpoint import Checkpoint
from pmmrec.zoo.save import save_checkpoint
from pmmrec.zoo.transfer import FULL, apply


def learn(recommender: Recommender, seed: int = 5) -> None:
    """Replace training: change every trainable tensor."""
    torch.manual_seed(seed)
    for parameter in recommender.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape)


def train_adapters(base: Path | Checkpoint, other: Any, trees: Mapping[str, Any], folder: Path) -> AdapterSetup:
    """Load `base` into `other`, insert and change adapters, and save them."""
    checkpoint = Checkpoint.open(base) if isinstance(base, Path) else base
    recommender = other.recommender
    loaded = apply(FULL, checkpoint, recommender).loaded
    setup = insert_adapters(checkpoint, recommender, AdapterPlan.model_validate(trees), loaded)
    learn(recommender)
    recommender.eval()
    save(folder, other, setup)
    return setup


def save(folder: Path, run: Any, setup: AdapterSetup, state: Mapping[str, Tensor] | None = None) -> None:
    """Save the adapters of a run; `state`: another state dict than the current one."""
    save_checkpoint(
        folder,
        setup=setup,
        system="pmmrec",
        model_config=run.model_config,
        recommender=run.recommender,
        objectives=run.objectives,
        state=state or run.state,
        recipe="seed: 1\n",
        metrics={"hr": 0.5},
        card="# tiny\n",
        provenance={"started_from": "base", "domains": ["demo"]},
    )
