"""An item table serves the catalogues it was learned for, and no others."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from pmmrec.context import BuildContext, Catalogue
from pmmrec.contracts import ItemInputs
from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.models.ids import Ids, IdsConfig
from pmmrec.row_table import RowTable

BOOKS, FILMS = Catalogue("books", 3, "aa"), Catalogue("films", 2, "bb")


def fresh(*catalogues: Catalogue) -> RowTable:
    torch.manual_seed(0)
    return RowTable(catalogues, 4)


def test_each_row_of_each_domain_has_its_own_vector() -> None:
    encoder = Ids(IdsConfig(), BuildContext(4, catalogues=[BOOKS, FILMS]))
    domain_U, row_U = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, 2, 0, 1])
    vectors = encoder(ItemInputs(domain_U, row_U, {}))
    assert torch.equal(vectors.fused_UD, encoder.item_table.vector.weight)
    assert not vectors.cls_UD


def test_ids_read_no_modality_and_are_one_part() -> None:
    encoder = Ids(IdsConfig(), BuildContext(4, catalogues=[BOOKS]))
    assert encoder.fields == frozenset()
    assert list(encoder.parts) == ["item_table"]
    assert IdsConfig().fields == frozenset()
    assert not IdsConfig().encoders


def test_layers_stand_above_the_rows_as_a_part_of_their_own() -> None:
    torch.manual_seed(0)
    encoder = Ids(IdsConfig(layers=1), BuildContext(4, catalogues=[BOOKS])).eval()
    assert list(encoder.parts) == ["item_table", "item_layers"]
    _, linear, _ = encoder.item_layers
    vectors = encoder(ItemInputs(torch.tensor([0, 0]), torch.tensor([2, 0]), {}))
    row_UD = encoder.item_table.vector.weight[[2, 0]]
    expected_UD = torch.nn.functional.gelu(row_UD @ linear.weight.T + linear.bias)
    torch.testing.assert_close(vectors.fused_UD, expected_UD, rtol=0, atol=1e-6)


def test_a_saved_table_is_read_by_the_same_catalogues(tmp_path: object) -> None:
    path = f"{tmp_path}/part.safetensors"
    save_file(fresh(BOOKS, FILMS).state_dict(), path)
    again = RowTable([BOOKS, FILMS], 4)
    again.load_state_dict(load_file(path))
    assert torch.equal(again.vector.weight, fresh(BOOKS, FILMS).vector.weight)


@pytest.mark.parametrize(
    "others",
    [
        [FILMS, BOOKS],
        [BOOKS],
        [BOOKS, Catalogue("films", 2, "cc")],
    ],
    ids=["another order", "fewer", "other items under the same name"],
)
def test_another_catalogue_is_refused_in_clear_words(others: list[Catalogue]) -> None:
    message = r"learned for the items of books \(3 items\), films \(2 items\), but this run has those of "
    with pytest.raises(CheckpointError, match=message):
        RowTable(others, 4).load_state_dict(fresh(BOOKS, FILMS).state_dict())


def test_it_is_refused_inside_a_larger_model_too() -> None:
    state = Ids(IdsConfig(), BuildContext(4, catalogues=[BOOKS])).state_dict()
    with pytest.raises(CheckpointError, match="an id means nothing elsewhere"):
        Ids(IdsConfig(), BuildContext(4, catalogues=[FILMS])).load_state_dict(state)


def test_a_catalogue_may_change_its_name() -> None:
    RowTable([Catalogue("livres", 3, "aa")], 4).load_state_dict(fresh(BOOKS).state_dict())


def test_a_state_that_says_nothing_is_refused() -> None:
    with pytest.raises(CheckpointError, match="does not say which domains"):
        fresh(BOOKS).check_catalogues(torch.zeros(3, dtype=torch.uint8))


def test_no_catalogue_is_an_error() -> None:
    with pytest.raises(RecipeError, match="ids need the catalogues of a run"):
        Ids(IdsConfig(), BuildContext(4, catalogues=[]))


def test_another_catalogue_is_refused_by_a_table_without_memory() -> None:
    with torch.device("meta"):
        table = RowTable([FILMS], 4)
    with pytest.raises(CheckpointError, match="this run has those of films"):
        table.load_state_dict(fresh(BOOKS).state_dict())
