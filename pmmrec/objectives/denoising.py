"""Detect the noise in a window (NID, eq. 10), and recognise a user in spite of it (RCL, eq. 11)."""
# Shapes: B users, L inputs of a window, D width, K counted inputs, G users of all processes.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pmmrec.context import BuildContext
from pmmrec.contracts import Term, Views
from pmmrec.objectives import Objective, ObjectiveConfig, objectives
from pmmrec.objectives.peers import rows_of_all
from pmmrec.precision import outside_autocast, widened
from pmmrec.requests import NextItems, Noise, Noised, Requests


class NoiseDetectionConfig(ObjectiveConfig):
    """Settings of NID."""

    type: Literal["noise_detection"] = "noise_detection"
    noise: Noised = Field(Noised(), description="What is done to the windows; equal settings share one pass.")
    relu: bool = Field(True, description="ReLU over the logits, as in eq. 10; false leaves them free.")


class RobustnessConfig(ObjectiveConfig):
    """Settings of RCL."""

    type: Literal["robustness"] = "robustness"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"normalize": True, "temperature": 0.1, "symmetric": True})
    noise: Noised = Field(Noised(), description="What is done to the windows; equal settings share one pass.")
    temperature: float = Field(1.0, gt=0, description="Divides dot products; the paper has none (1.0).")
    normalize: bool = Field(False, description="l2-normalise the means, so that similarities are cosines.")
    symmetric: bool = Field(False, description="Also let noised means find the clean one, and halve the sum.")


class WideLinear(nn.Linear):
    """A linear map done at the precision of its input, also where a wrapper keeps its weights in half precision."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


@objectives.register("noise_detection", NoiseDetectionConfig)
class NoiseDetection(Objective):
    """Classify every input of a noised window as unchanged, shuffled or replaced.

    Eq. 10 of https://arxiv.org/abs/2312.09602: cross-entropy of softmax over ReLU(logits); padding is not counted.

    Metrics: `chance` (log 3); `accuracy`; `noised_found`, the share of noised inputs not taken for unchanged.

    Example:
        objectives: {nid: {type: noise_detection, noise: {shuffle: 0.15, replace: 0.05}}}
    """

    reads_targets = False
    reads_inputs = True

    def __init__(self, config: NoiseDetectionConfig, context: BuildContext) -> None:
        super().__init__()
        self.config, self.requests = config, Requests.of(config.noise)
        self.head = WideLinear(context.width, len(Noise))

    def forward(self, views: Views) -> Term:
        """Sum over valid inputs. ValueError where the views hold no pass with this noise."""
        of_pass, states = views.read(self.config.noise, "noise_detection")
        if of_pass.noise_BL is None:
            raise ValueError("noise_detection: the pass has no labels of noise")
        places, hidden_BLD = of_pass.input_places, states.hidden_BLD
        noise_K = places.of(of_pass.noise_BL)
        with outside_autocast(hidden_BLD.device):
            logits_K3 = self.head(widened(places.of(hidden_BLD)))
            if self.config.relu:
                logits_K3 = logits_K3.relu()
            loss = F.cross_entropy(logits_K3, noise_K, reduction="sum")
        count = loss.new_full((), noise_K.shape[0])
        guess_K, is_noised_K = logits_K3.argmax(dim=1), noise_K != Noise.UNCHANGED.value
        found = torch.stack(((is_noised_K & (guess_K != Noise.UNCHANGED.value)).sum(), is_noised_K.sum()))
        metrics = {
            "chance": torch.stack((count * math.log(len(Noise)), count)),
            "accuracy": torch.stack(((guess_K == noise_K).sum().to(loss.dtype), count)),
            "noised_found": found.to(loss.dtype),
        }
        return Term(loss, count, metrics)


@objectives.register("robustness", RobustnessConfig)
class Robustness(Objective):
    """Find a user's noised window among those of the other users of the batch.

    Eq. 11 of https://arxiv.org/abs/2312.09602 over means of the hidden states at valid inputs. Users without an input
    are neither anchors nor negatives; a user alone counts nowhere. With peers the users of all processes are negatives.

    Metrics: `chance`, the log of the number of users; `accuracy`, the share of users whose own noised window is
    strictly nearest.

    Example:
        objectives: {rcl: {type: robustness, normalize: true, temperature: 0.1}}
    """

    reads_targets = False

    def __init__(self, config: RobustnessConfig, context: BuildContext) -> None:  # noqa: ARG002  # every objective is built so
        super().__init__()
        self.config, self.requests = config, Requests.of(NextItems(), config.noise)

    def forward(self, views: Views) -> Term:
        """Sum over users with an input. ValueError where the views lack one of the two passes."""
        of_pass, clean = views.read(NextItems(), "robustness")
        _, noised = views.read(self.config.noise, "robustness")
        is_valid_BL = of_pass.is_valid_BL
        with outside_autocast(is_valid_BL.device):
            clean_BD, noised_BD = (self._means(states.hidden_BLD, is_valid_BL) for states in (clean, noised))
            means = (noised_BD, clean_BD) if self.config.symmetric else (noised_BD,)
            keys, rows = rows_of_all(means, is_valid_BL.any(dim=1), views.peers)
            score_BG = rows.closed(clean_BD @ keys[0].T / self.config.temperature)
            loss = rows.cross_entropy(score_BG)  # exactly 0, gradient too, for a user alone
            if self.config.symmetric:
                back_BG = rows.closed(noised_BD @ keys[1].T / self.config.temperature)
                loss = (loss + rows.cross_entropy(back_BG)) / 2
        num_users = rows.is_counted_G.sum()
        count = (rows.is_counted_B & (num_users > 1)).sum().to(loss.dtype)
        is_nearest_B = rows.is_alone_at_the_top(score_BG)
        num_right = (is_nearest_B & (num_users > 1)).sum().to(loss.dtype)
        chance = count * num_users.clamp(min=1).to(loss.dtype).log()
        metrics = {"chance": torch.stack((chance, count)), "accuracy": torch.stack((num_right, count))}
        return Term(loss, count, metrics)

    def _means(self, hidden_BLD: Tensor, is_valid_BL: Tensor) -> Tensor:
        """`(B, D)`: the mean hidden state of every user; zeros for those without an input."""
        hidden_BLD = torch.where(is_valid_BL[:, :, None], widened(hidden_BLD), 0)
        mean_BD = hidden_BLD.sum(dim=1) / is_valid_BL.sum(dim=1, keepdim=True).clamp(min=1)
        return F.normalize(mean_BD, dim=1) if self.config.normalize else mean_BD
