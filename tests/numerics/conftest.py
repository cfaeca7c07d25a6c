"""Tiny random batches in float64, and what every twin of nested loops is held to."""
# Shapes: B users, S window positions, L = S - 1, U distinct items, D width.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from views import hidden_of, noised, noised_of, views_of

from pmmrec.contracts import ItemVectors, Modality, Term, Views, Windows
from pmmrec.requests import Noise

WIDTH = 5


@dataclass(frozen=True)
class TinyBatch:
    """Views whose float tensors are leaves, so that gradients can be compared."""

    views: Views

    @property
    def leaves(self) -> dict[str, Tensor]:
        views = self.views
        vectors = {modality.value: cls_UD for modality, cls_UD in views.items.cls_UD.items()}
        return {
            "fused": views.items.fused_UD,
            "hidden": hidden_of(views),
            "noised": noised_of(views),
            **vectors,
        }


def windows_of(rows: Sequence[Sequence[int]], num_positions: int | None = None) -> Windows:
    """Left-padded windows of these items."""
    num_positions = num_positions or max(len(row) for row in rows)
    index_BS = [[0] * (num_positions - len(row)) + list(row) for row in rows]
    is_valid_BS = [[False] * (num_positions - len(row)) + [True] * len(row) for row in rows]
    return Windows(torch.tensor(index_BS), torch.tensor(is_valid_BS))


def random_rows(draw: torch.Generator) -> list[list[int]]:
    """Windows of 0 to 4 places over few items, so that items return within a window and at other users."""
    num_users = int(torch.randint(2, 6, (), generator=draw))
    lengths = torch.randint(0, 5, (num_users,), generator=draw).tolist()
    return [torch.randint(0, 6, (length,), generator=draw).tolist() for length in lengths]


@pytest.fixture
def tiny_batch() -> Callable[..., TinyBatch]:
    """Factory: windows by item index (random ones where None), and which items lack a text or an image."""

    def make(
        rows: Sequence[Sequence[int]] | None = None,
        *,
        seed: int = 0,
        num_positions: int | None = None,
        num_items: int = 7,
        no_text: Sequence[int] = (),
        no_image: Sequence[int] = (),
        width: int = WIDTH,
        dtype: torch.dtype = torch.float64,
    ) -> TinyBatch:
        draw = torch.Generator().manual_seed(seed)
        if rows is None:
            rows, num_positions = random_rows(draw), 5
        windows = windows_of(rows, num_positions)
        is_input_BL = windows.is_valid_BS[:, :-1]
        num_users, num_inputs = is_input_BL.shape

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

        has_U = {modality: torch.ones(num_items, dtype=torch.bool) for modality in Modality}
        for modality, absent in ((Modality.TEXT, no_text), (Modality.IMAGE, no_image)):
            has_U[modality][list(absent)] = False
        cls_UD = {modality: normal(num_items, width) * has_U[modality][:, None] for modality in Modality}
        noise_BL = torch.randint(0, len(Noise), (num_users, num_inputs), generator=draw) * is_input_BL
        log_q_U = torch.rand(num_items, generator=draw, dtype=torch.float64).clamp(min=1e-3).log().to(dtype)
        views = views_of(
            ItemVectors(normal(num_items, width).requires_grad_(), cls_UD, has_U),
            noised(windows, windows.item_index_BS[:, :-1], noise_BL),
            normal(num_users, num_inputs, width).requires_grad_(),
            normal(num_users, num_inputs, width).requires_grad_(),
            log_q_U=log_q_U,
        )
        for vectors_UD in cls_UD.values():
            vectors_UD.requires_grad_()
        return TinyBatch(views)

    return make


@pytest.fixture
def assert_twins() -> Callable[..., None]:
    """Sum, count and the gradients of the sum equal those of the loops to `atol`; nothing is relative."""

    def check(
        term: Term,
        expected: tuple[Tensor, int],
        batch: TinyBatch,
        atol: float,
        head: nn.Module | None = None,
        leaves: Mapping[str, Tensor] | None = None,
    ) -> None:
        leaves = batch.leaves | (dict(head.named_parameters()) if head else {}) | dict(leaves or {})
        assert term.count.item() == expected[1]
        torch.testing.assert_close(term.sum, expected[0], rtol=0, atol=atol)
        actual_gradients = gradients(term.sum, leaves)
        for name, gradient in gradients(expected[0], leaves).items():
            message = f"gradient of {name}: {{}}"
            torch.testing.assert_close(
                actual_gradients[name], gradient, rtol=0, atol=atol, msg=lambda text, m=message: m.format(text)
            )

    return check


def gradients(total: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of each leaf; zeros where the loss does not touch it."""
    if not total.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, retain_graph=True)
    return {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
    }
