"""Items by codes against loops over parts and values: look-up, Sinkhorn, straight-through gradients, assignment."""
# Shapes: U distinct items, M parts of a code, V values of a part, D width.

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from pmmrec.context import BuildContext
from pmmrec.contracts import ItemInputs, StoredInputs
from pmmrec.models.codes import Codes, CodesConfig
from pmmrec.packing import HostArray

WIDTH, PARTS, VALUES = 3, 2, 4
HAS = [True, False, True, True]
CODES = torch.tensor([[0.0, 3.0], [2.0, 2.0], [1.0, 0.0]], dtype=torch.float16)
TAU, ROUNDS = 0.7, 3


def encoder_of(*, permutes: bool) -> Codes:
    torch.manual_seed(0)
    settings = {"feature": "codes", "parts": PARTS, "values": VALUES}
    more = {"permutation": {"sinkhorn": ROUNDS, "temperature": TAU}} if permutes else {}
    encoder = Codes(CodesConfig.model_validate({**settings, **more}), BuildContext(WIDTH)).double()
    with torch.no_grad():
        encoder.code_table.vector.normal_()
    return encoder


def items() -> ItemInputs:
    rows, has_U = torch.arange(len(HAS)), torch.tensor(HAS)
    fields = {"codes": StoredInputs(CODES, HostArray(rows[has_U].tolist()))}
    return ItemInputs(torch.zeros_like(rows), rows, {"codes": has_U}, fields)


def looked_up_by_loops(table_MVD: Tensor, permutation_MVV: Tensor, code_UM: list[list[int] | None]) -> Tensor:
    """Of each item the mean over parts of sum_w permutation[m, code, w] table[m, w], number by number."""
    found = []
    for codes in code_UM:
        vector = [torch.zeros((), dtype=torch.float64) for _ in range(WIDTH)]
        for m, code in enumerate(codes or []):
            for d in range(WIDTH):
                row = sum(permutation_MVV[m, code, w] * table_MVD[m, w, d] for w in range(VALUES))
                vector[d] = vector[d] + row / PARTS
        found.append(torch.stack(vector))
    return torch.stack(found)


def code_lists() -> list[list[int] | None]:
    rest = iter(CODES.long().tolist())
    return [next(rest) if has else None for has in HAS]


def sinkhorn_by_loops(logit_MVV: Tensor) -> Tensor:
    """exp(logit), whose rows and then columns are divided by their sums, three times."""
    parts = []
    for logit_VV in logit_MVV:
        entries = [[torch.exp(logit_VV[v, w]) for w in range(VALUES)] for v in range(VALUES)]
        for _ in range(ROUNDS):
            entries = [[one / sum(row) for one in row] for row in entries]
            sums = [sum(row[w] for row in entries) for w in range(VALUES)]
            entries = [[row[w] / sums[w] for w in range(VALUES)] for row in entries]
        parts.append(torch.stack([torch.stack(row) for row in entries]))
    return torch.stack(parts)


def weighted(vectors_UD: Tensor) -> Tensor:
    return (vectors_UD * torch.sin(torch.arange(vectors_UD.numel(), dtype=torch.float64)).view_as(vectors_UD)).sum()


def test_an_item_is_the_mean_of_the_rows_of_its_codes() -> None:
    encoder = encoder_of(permutes=False)
    found, table = encoder(items()).fused_UD, encoder.code_table.vector
    identity = torch.eye(VALUES, dtype=torch.float64).repeat(PARTS, 1, 1)
    expected = looked_up_by_loops(table, identity, code_lists())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)  # measured 3e-16
    gradients = [torch.autograd.grad(weighted(one), table)[0] for one in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-14)


def test_a_permutation_that_learns_is_the_best_of_each_row_with_the_gradient_of_sinkhorn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = encoder_of(permutes=True).train()
    table, logit = encoder.code_table.vector, encoder.permutation.logit
    exponential_MVV = torch.rand_like(logit) + 0.1
    monkeypatch.setattr(Tensor, "exponential_", lambda _: exponential_MVV)
    found = encoder(items()).fused_UD

    soft_MVV = sinkhorn_by_loops((logit - exponential_MVV.log()) / TAU)
    hard_MVV = torch.zeros_like(soft_MVV)
    for m, v in itertools.product(range(PARTS), range(VALUES)):
        hard_MVV[m, v, max(range(VALUES), key=lambda w, m=m, v=v: float(soft_MVV[m, v, w].detach()))] = 1
    hard_MVV.requires_grad_()
    expected = looked_up_by_loops(table, hard_MVV, code_lists())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    of_table, of_hard = torch.autograd.grad(weighted(expected), (table, hard_MVV))
    (of_logit,) = torch.autograd.grad((soft_MVV * of_hard).sum(), logit)
    gradients = torch.autograd.grad(weighted(found), (table, logit))
    for one, other in zip(gradients, (of_table, of_logit), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)  # measured 1e-15
    assert gradients[1].abs().max() > 1e-3  # the released code's is 0


def test_after_an_epoch_items_are_looked_up_by_the_best_assignment_and_stay_so() -> None:
    encoder = encoder_of(permutes=True).train()
    table, logit = encoder.code_table.vector, encoder.permutation.logit.detach()
    before = encoder.eval()(items()).fused_UD
    identity = torch.eye(VALUES, dtype=torch.float64)
    torch.testing.assert_close(before, looked_up_by_loops(table, identity.repeat(PARTS, 1, 1), code_lists()))
    encoder.train().begin_epoch(frozen=())
    encoder.end_epoch()
    best = [
        max(
            itertools.permutations(range(VALUES)),
            key=lambda p, m=m: sum(logit[m, v, p[v]].item() for v in range(VALUES)),
        )
        for m in range(PARTS)
    ]
    assert encoder.permutation.place_MV.tolist() == [list(one) for one in best]
    expected = looked_up_by_loops(table, torch.stack([identity[list(one)] for one in best]), code_lists())
    torch.testing.assert_close(encoder.eval()(items()).fused_UD, expected, rtol=0, atol=1e-14)
    encoder.train().begin_epoch(frozen=("permutation",))
    with torch.no_grad():
        encoder.permutation.logit.normal_()
    encoder.end_epoch()
    found = encoder(items()).fused_UD
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    (of_logit,) = torch.autograd.grad(found.sum(), encoder.permutation.logit)
    assert not of_logit.any()  # every process has a gradient, which is 0


def test_a_permutation_that_is_frozen_for_good_stays_what_it_was() -> None:
    encoder = encoder_of(permutes=True).train()
    encoder.permutation.requires_grad_(False)
    before = encoder(items()).fused_UD
    encoder.begin_epoch(frozen=())
    encoder.end_epoch()
    assert torch.equal(encoder(items()).fused_UD, before)


def test_synthetic_items_keep_a_share_of_their_codes_and_come_only_where_asked() -> None:
    torch.manual_seed(0)
    config = CodesConfig(feature="codes", parts=200, values=256, synthetic_share=0.75)
    encoder = Codes(config, BuildContext(WIDTH)).train()
    assert not encoder(large(encoder)).streams_UD
    code_RM = torch.randint(0, 256, (50, 200))
    new_RM = encoder._redrawn(code_RM)
    assert float((new_RM == code_RM).double().mean()) == pytest.approx(0.25 + 0.75 / 256, abs=0.02)
    assert new_RM.min() >= 0
    assert new_RM.max() <= 255
    encoder.asked = frozenset({"synthetic"})
    vectors = encoder(large(encoder))
    assert vectors.streams_UD["synthetic"].shape == vectors.fused_UD.shape
    assert not torch.equal(vectors.streams_UD["synthetic"], vectors.fused_UD)
    encoder.eval()
    again = [encoder(large(encoder)).streams_UD["synthetic"] for _ in range(2)]
    assert torch.equal(*again)


def large(encoder: Codes) -> ItemInputs:
    rows = torch.arange(2)
    codes = StoredInputs(torch.full((2, 200), 7.0), HostArray([0, 1]))
    return ItemInputs(torch.zeros_like(rows), rows, {"codes": torch.ones(2, dtype=torch.bool)}, {"codes": codes})
