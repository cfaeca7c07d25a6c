"""Which settings work with sharded weights."""

from __future__ import annotations

import pytest

from pmmrec.errors import RecipeError
from pmmrec.launch import Spread
from pmmrec.train.accumulate import AccumulateConfig
from pmmrec.train.processes import MachineConfig
from pmmrec.train.spread import WHOLE, refuse_unfit

SHARED = [spread for spread in Spread if spread not in WHOLE]
EXACT, PLAIN = AccumulateConfig(parts=2), AccumulateConfig(mode="plain", parts=2)


@pytest.mark.parametrize("spread", SHARED)
def test_exact_parts_and_fp16_are_refused_with_sharded_weights(spread: Spread) -> None:
    with pytest.raises(RecipeError, match=f"train.accumulate: exact .* which {spread.value} cannot follow"):
        refuse_unfit(spread, MachineConfig(), EXACT)
    with pytest.raises(RecipeError, match=f"machine.precision: fp16 .* not under {spread.value}; set bf16 or fp32"):
        refuse_unfit(spread, MachineConfig(precision="fp16"), AccumulateConfig())
    refuse_unfit(spread, MachineConfig(precision="bf16"), PLAIN)


@pytest.mark.parametrize("spread", WHOLE)
def test_replicated_weights_allow_every_setting(spread: Spread) -> None:
    refuse_unfit(spread, MachineConfig(precision="fp16"), EXACT)
