"""NID and RCL (PMMRec, eq. 10 and 11) by loops over inputs and users."""

from __future__ import annotations

import torch
from torch import Tensor

from pmmrec.contracts import UserStates, Views
from pmmrec.objectives import objectives
from pmmrec.objectives.denoising import NoiseDetection, Robustness, RobustnessConfig
from pmmrec.requests import NextItems
from pmmrec.testing.twins import twin_of


@twin_of(objectives, "noise_detection")
def noise_detection_by_loops(objective: NoiseDetection, views: Views) -> tuple[Tensor, int]:
    """Eq. 10: softmax over ReLU(W h + b), one input after another."""
    noise = objective.config.noise
    noise_BL, hidden_BLD = views.windows.passes[noise].noise_BL, views.states[noise].hidden_BLD
    total, count = torch.zeros((), dtype=torch.float64), 0
    if noise_BL is None:
        raise ValueError("the pass has no labels of noise")
    for b, position in views.windows.is_valid_BS[:, :-1].nonzero().tolist():
        state, label = hidden_BLD[b, position], int(noise_BL[b, position])
        logits = [torch.dot(objective.head.weight[c], state) + objective.head.bias[c] for c in range(3)]
        if objective.config.relu:
            logits = [logit.clamp(min=0) for logit in logits]
        total = total - torch.log(torch.exp(logits[label]) / torch.stack(logits).exp().sum())
        count += 1
    return total, count


@twin_of(objectives, "robustness")
def robustness_by_loops(objective: Robustness, views: Views) -> tuple[Tensor, int]:
    """Eq. 11: one user after another against the noised windows of the others."""
    config = objective.config
    clean, noised = (_means(views.states[request], views, config) for request in (NextItems(), config.noise))
    total = torch.zeros((), dtype=torch.float64)
    if len(clean) < 2:
        return total, 0
    for b in clean:
        total = total + _loss_of_user(b, clean, noised, config)
        if config.symmetric:
            total = total + _loss_of_user(b, noised, clean, config)
    return total / (2 if config.symmetric else 1), len(clean)


def _means(states: UserStates, views: Views, config: RobustnessConfig) -> dict[int, Tensor]:
    """The mean state of each user who has an input."""
    means = {}
    for b, row in enumerate(views.windows.is_valid_BS[:, :-1].tolist()):
        inputs = [states.hidden_BLD[b, position] for position, is_valid in enumerate(row) if is_valid]
        if inputs:
            mean = torch.stack(inputs).mean(dim=0)
            means[b] = mean / mean.norm() if config.normalize else mean
    return means


def _loss_of_user(b: int, anchors: dict[int, Tensor], keys: dict[int, Tensor], config: RobustnessConfig) -> Tensor:
    own = torch.exp(torch.dot(anchors[b], keys[b]) / config.temperature)
    negatives = [torch.exp(torch.dot(anchors[b], keys[j]) / config.temperature) for j in keys if j != b]
    return -torch.log(own / (own + torch.stack(negatives).sum()))
