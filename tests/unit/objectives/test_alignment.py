"""Settings of VCL, ICL, NICL and NCL."""

from __future__ import annotations

import pytest

from pmmrec.context import BuildContext
from pmmrec.errors import RecipeError
from pmmrec.objectives import objectives
from pmmrec.objectives.alignment import Alignment, AlignmentConfig
from pmmrec.requests import Requests, View


def test_the_default_is_nicl_as_printed() -> None:
    config = AlignmentConfig()
    assert config.next_item_positives
    assert config.intra_negatives
    assert not config.positives_in_denominator
    assert config.temperature == 1.0


def test_it_asks_for_vectors_by_modality_and_the_order_of_items() -> None:
    config = objectives.config({"type": "alignment"})
    assert (
        objectives.part_class(config)(config, BuildContext(4)).requests
        == Alignment.requests
        == Requests.of(views=(View.MODALITIES, View.ORDER))
    )


def test_a_low_temperature_with_next_items_in_the_numerator_only_is_refused() -> None:
    with pytest.raises(RecipeError, match="set positives_in_denominator: true"):
        objectives.config({"type": "alignment", "temperature": 0.1})


@pytest.mark.parametrize("mended", [{"positives_in_denominator": True}, {"next_item_positives": False}])
def test_a_low_temperature_is_taken_where_the_loss_is_bounded(mended: dict[str, bool]) -> None:
    config = objectives.config({"type": "alignment", "temperature": 0.1, **mended})
    assert isinstance(config, AlignmentConfig)
    assert config.temperature == 0.1


def test_a_switch_without_effect_is_refused() -> None:
    tree = {"type": "alignment", "next_item_positives": False, "positives_in_denominator": True}
    with pytest.raises(RecipeError, match="has no effect without next_item_positives"):
        objectives.config(tree)


def test_a_temperature_whose_exponentials_leave_float32_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"greater than or equal to 0.02"):
        objectives.config({"type": "alignment", "temperature": 0.01, "positives_in_denominator": True})
