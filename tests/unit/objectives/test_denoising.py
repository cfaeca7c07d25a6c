"""Settings of NID and RCL."""

from __future__ import annotations

import pytest

from pmmrec.context import BuildContext
from pmmrec.contracts import View
from pmmrec.errors import RecipeError
from pmmrec.objectives import objectives
from pmmrec.objectives.denoising import NoiseDetection, NoiseDetectionConfig, RobustnessConfig


def test_the_defaults_are_the_paper() -> None:
    robustness = RobustnessConfig()
    assert NoiseDetectionConfig().relu
    assert (robustness.temperature, robustness.normalize, robustness.symmetric) == (1.0, False, False)


@pytest.mark.parametrize("type_name", ["noise_detection", "robustness"])
def test_both_ask_for_a_corrupted_pass(type_name: str) -> None:
    config = objectives.config({"type": type_name})
    assert objectives.part_class(config)(config, BuildContext(4)).needs == {View.CORRUPTED}


def test_the_head_has_a_class_for_each_noise() -> None:
    shapes = {
        name: tuple(p.shape) for name, p in NoiseDetection(NoiseDetectionConfig(), BuildContext(6)).named_parameters()
    }
    assert shapes == {"head.weight": (3, 6), "head.bias": (3,)}


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(RecipeError, match="temperature"):
        objectives.config({"type": "robustness", "temperature": 0})
