"""Settings of NID and RCL."""

from __future__ import annotations

import pytest

from pmmrec.context import BuildContext
from pmmrec.errors import RecipeError
from pmmrec.objectives import objectives
from pmmrec.objectives.denoising import NoiseDetection, NoiseDetectionConfig, RobustnessConfig
from pmmrec.requests import NextItems, Noised, Requests, WindowRequest


def test_the_defaults_are_the_paper() -> None:
    robustness = RobustnessConfig()
    assert NoiseDetectionConfig().relu
    assert (robustness.temperature, robustness.normalize, robustness.symmetric) == (1.0, False, False)


@pytest.mark.parametrize(
    ("type_name", "passes"), [("noise_detection", (Noised(),)), ("robustness", (NextItems(), Noised()))]
)
def test_both_ask_for_the_same_pass_with_noise(type_name: str, passes: tuple[WindowRequest, ...]) -> None:
    config = objectives.config({"type": type_name})
    assert objectives.part_class(config)(config, BuildContext(4)).requests == Requests.of(*passes)


def test_other_noise_is_another_pass() -> None:
    config = objectives.config({"type": "robustness", "noise": {"shuffle": 0.5}})
    requests = objectives.part_class(config)(config, BuildContext(4)).requests
    assert set(requests.passes) == {NextItems(), Noised(shuffle=0.5)}


def test_the_head_has_a_class_for_each_noise() -> None:
    shapes = {
        name: tuple(p.shape) for name, p in NoiseDetection(NoiseDetectionConfig(), BuildContext(6)).named_parameters()
    }
    assert shapes == {"head.weight": (3, 6), "head.bias": (3,)}


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(RecipeError, match="temperature"):
        objectives.config({"type": "robustness", "temperature": 0})
