"""The mixture of whitening experts against nested loops over items, experts and numbers, in float64."""
# Shapes: U distinct items, R rows that have the feature, F length of a stored vector, E experts, D width.

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from pmmrec.context import BuildContext
from pmmrec.contracts import ItemInputs, StoredInputs
from pmmrec.models.mixture import Mixture, MixtureConfig
from pmmrec.packing import HostArray

WIDTH, LENGTH, EXPERTS = 4, 3, 2
HAS = {"content": [True, False, True, True], "dropped": [True, True, False, True]}


def encoder_of(*, noise: bool = True, dropout: float = 0.0, reworded: str | None = None) -> Mixture:
    torch.manual_seed(0)
    settings = {"feature": "content", "length": LENGTH, "experts": EXPERTS, "noise": noise, "dropout": dropout}
    encoder = Mixture(MixtureConfig(**settings, reworded=reworded), BuildContext(WIDTH)).double()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_()
    return encoder


def items_of(names: Sequence[str] = ("content",)) -> ItemInputs:
    draw, rows = torch.Generator().manual_seed(2), torch.arange(4)
    has_U = {name: torch.tensor(HAS[name]) for name in names}
    fields = {
        name: StoredInputs(
            torch.randn(int(has_U[name].sum()), LENGTH, generator=draw, dtype=torch.float64),
            HostArray(rows[has_U[name]].tolist()),
        )
        for name in names
    }
    return ItemInputs(torch.zeros_like(rows), rows, has_U, fields)


def by_loops(encoder: Mixture, x_F: Tensor, normal_E: Tensor | None, kept_EF: Tensor) -> Tensor:
    """sum_e softmax_e(x W_g + z_e (softplus(x W_n) + 0.01)) (kept_e x - b_e) W_e, by numbers; z is noise."""
    part = encoder.mixture
    logits = []
    for e in range(EXPERTS):
        logit = sum(x_F[f] * part.gate[f, e] for f in range(LENGTH))
        if normal_E is not None:
            spread = torch.log(1 + torch.exp(sum(x_F[f] * part.noise[f, e] for f in range(LENGTH)))) + 0.01
            logit = logit + normal_E[e] * spread
        logits.append(torch.exp(logit))
    found = []
    for d in range(WIDTH):
        total = torch.zeros((), dtype=torch.float64)
        for e in range(EXPERTS):
            whitened = [kept_EF[e, f] * x_F[f] - part.bias[e, f] for f in range(LENGTH)]
            mapped = sum(whitened[f] * part.weight[e, f, d] for f in range(LENGTH))
            total = total + logits[e] / sum(logits) * mapped
        found.append(total)
    return torch.stack(found)


class Kept(nn.Module):
    """Stands in for dropout: it keeps what the next of some masks says."""

    def __init__(self, kept_ERF: Tensor) -> None:
        super().__init__()
        self.rest = list(kept_ERF)

    def forward(self, x_RF: Tensor) -> Tensor:
        return x_RF * self.rest.pop(0)


def assert_equal_with_gradients(encoder: Mixture, found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)  # measured 4e-15
    weight = torch.sin(torch.arange(found.numel(), dtype=torch.float64)).view_as(found)
    names = [name for name, _ in encoder.named_parameters()]
    pairs = [
        torch.autograd.grad((one * weight).sum(), list(encoder.parameters()), allow_unused=True)
        for one in (found, expected)
    ]
    for name, one, other in zip(names, *pairs, strict=True):
        assert (one is None) == (other is None) == (name.endswith("noise") and not encoder.training), name
        if one is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-11, msg=name)  # measured 3e-14


def test_it_is_the_mixture_of_the_paper_without_noise_where_nothing_learns() -> None:
    encoder, items = encoder_of(dropout=0.5).eval(), items_of()
    rows = iter(items.fields["content"].vector_RF)
    nothing, everything = torch.zeros(WIDTH, dtype=torch.float64), torch.ones(EXPERTS, LENGTH)
    expected = [by_loops(encoder, next(rows), None, everything) if has else nothing for has in HAS["content"]]
    assert_equal_with_gradients(encoder, encoder(items).fused_UD, torch.stack(expected))


def test_it_is_the_mixture_of_the_paper_with_noise_and_dropout_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, items = encoder_of().train(), items_of()
    vectors = items.fields["content"].vector_RF
    normal_RE = torch.randn(len(vectors), EXPERTS, dtype=torch.float64)
    kept_ERF = torch.randint(0, 2, (EXPERTS, len(vectors), LENGTH)).double() * 2
    monkeypatch.setattr(torch, "randn_like", lambda _: normal_RE)
    encoder.mixture.dropout = Kept(kept_ERF)
    place, expected = 0, []
    for has in HAS["content"]:
        expected.append(torch.zeros(WIDTH, dtype=torch.float64))
        if has:
            expected[-1] = by_loops(encoder, vectors[place], normal_RE[place], kept_ERF[:, place])
            place += 1
    assert_equal_with_gradients(encoder, encoder(items).fused_UD, torch.stack(expected))


def test_noise_starts_with_the_same_deviation_everywhere_and_is_drawn_in_training_alone() -> None:
    torch.manual_seed(0)
    config = MixtureConfig(feature="content", length=LENGTH, experts=EXPERTS, dropout=0)
    encoder = Mixture(config, BuildContext(WIDTH)).double()
    logit_RE = encoder.train().mixture._logits(torch.randn(20_000, LENGTH, dtype=torch.float64))
    assert float(logit_RE.detach().std()) == pytest.approx(math.log(2) + 0.01, rel=0.02)
    assert not encoder.eval().mixture._logits(torch.randn(3, LENGTH, dtype=torch.float64)).any()


def test_second_texts_are_a_stream_for_objectives_that_ask() -> None:
    encoder = encoder_of(noise=False, reworded="dropped")
    assert dict(encoder.training_streams) == {"reworded": WIDTH}
    assert set(encoder.reads) == {"content"}
    encoder.asked = frozenset({"reworded"})
    assert set(encoder.reads) == {"content", "dropped"}
    items = items_of(("content", "dropped"))
    vectors = encoder.train()(items)
    reworded_UD, seconds = vectors.streams_UD["reworded"], iter(items.fields["dropped"].vector_RF)
    for place, has in enumerate(HAS["dropped"]):
        own = vectors.fused_UD[place] if not has else encoder.mixture(next(seconds)[None])[0]
        torch.testing.assert_close(reworded_UD[place], own, rtol=0, atol=1e-14)
