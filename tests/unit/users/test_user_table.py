"""A user table gives every user a vector of its own, and serves no other users."""

from __future__ import annotations

import pytest
import torch

from pmmrec.context import BuildContext, Catalogue
from pmmrec.contracts import History
from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.users.user_table import UserTable, UserTableConfig

BOOKS, FILMS = Catalogue("books", 3, "aa", 4, "bb"), Catalogue("films", 2, "cc", 5, "dd")


def fresh(*catalogues: Catalogue) -> UserTable:
    torch.manual_seed(0)
    return UserTable(UserTableConfig(), BuildContext(6, catalogues=catalogues))


def history(users: list[int] | None, length: int = 2) -> History:
    num_users = 2 if users is None else len(users)
    index = None if users is None else torch.tensor(users)
    return History(torch.zeros(num_users, length, 6), torch.zeros(num_users, length).bool(), user_index_B=index)


def test_a_state_is_the_row_of_its_user_at_every_position() -> None:
    encoder = fresh(BOOKS, FILMS)
    states = encoder(history([0, 8, 3]))
    for user, row in enumerate((0, 8, 3)):
        for position in range(2):
            assert torch.equal(states.hidden_BLD[user, position], encoder.vector.weight[row])
    assert torch.equal(encoder.query(history([5])).hidden_KD[0], encoder.vector.weight[5])


def test_layers_stand_above_the_rows_in_all_that_users_are() -> None:
    torch.manual_seed(0)
    encoder = UserTable(UserTableConfig(layers=2), BuildContext(6, catalogues=(BOOKS,))).eval()
    expected_MD = encoder.vector.weight
    for _, linear, _ in zip(*[iter(encoder.layers)] * 3, strict=True):
        expected_MD = torch.nn.functional.gelu(expected_MD @ linear.weight.T + linear.bias)
    torch.testing.assert_close(encoder.vectors(), expected_MD, rtol=0, atol=1e-6)
    torch.testing.assert_close(encoder.query(history([3])).hidden_KD[0], expected_MD[3], rtol=0, atol=1e-6)


def test_gradients_reach_the_rows_of_the_users_alone() -> None:
    encoder = fresh(BOOKS)
    encoder.query(history([1, 3])).hidden_KD.sum().backward()
    assert encoder.vector.weight.grad.any(dim=1).tolist() == [False, True, False, True]


def test_nobody_in_particular_is_an_error() -> None:
    with pytest.raises(RecipeError, match="user_table knows users by id"):
        fresh(BOOKS)(history(None))


def test_other_users_are_refused_in_clear_words() -> None:
    others = Catalogue("books", 3, "aa", 4, "ee")
    with pytest.raises(CheckpointError, match=r"users of books \(4 users\), but this run has those of books"):
        fresh(others).load_state_dict(fresh(BOOKS).state_dict())
    fresh(BOOKS).load_state_dict(fresh(Catalogue("livres", 9, "zz", 4, "bb")).state_dict())  # items may be others
