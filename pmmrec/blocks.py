"""The Transformer block that fusion and user encoders share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pmmrec.dropout import Dropout
from pmmrec.feed_forward import activated_linear
from pmmrec.packing import Packing, attend, attend_last

PLACES_OF_THREAD = 1 << 10  # of which the feed-forward stays in the cache of a core
CARCA_SLOPE = 0.2  # of CARCA's leaky ReLU below 0: the default of TensorFlow, and so of the released code
Activation = Literal["relu", "gelu"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


class QueryKeyValue(nn.Linear):
    """One linear map `D -> 3 D` to queries, keys and values, of which neighbouring ones can be asked for alone."""

    def forward(self, x: Tensor, part: slice | None = None) -> Tensor:
        """`part`: which outputs; None: all."""
        if part is None:
            return super().forward(x)
        return F.linear(x, self.weight[part], None if self.bias is None else self.bias[part])


class Attention(nn.Module):
    """Multi-head self-attention within rows of `(K, D)`."""

    def __init__(self, width: int, num_heads: int, dropout: float, *, qkv_bias: bool, out_bias: bool) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} cannot be shared by {num_heads} heads; choose a divisor of the width")
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv: nn.Module = QueryKeyValue(width, 3 * width, bias=qkv_bias)
        self.out = nn.Linear(width, width, bias=out_bias)

    def forward(self, x_KD: Tensor, packing: Packing, *, is_causal: bool, last_alone: bool = False) -> Tensor:
        """`is_causal`: a place sees itself and those before it; else it sees its whole row.

        `last_alone`: what the last place of each row sees, `(R, D)`.
        """
        dropout = self.dropout if self.training else 0.0
        if last_alone:
            key, value = self._heads(x_KD, 1, 3)
            (query,) = self._heads(packing.last(x_KD), 0, 1)  # the last call: adapters beside it add to these places
            mixed = attend_last(query, key, value, packing, dropout=dropout)
        else:
            query, key, value = self._heads(x_KD)
            mixed = attend(query, key, value, packing, is_causal=is_causal, dropout=dropout)
        out: Tensor = self.out(mixed.flatten(1))
        return out

    def _heads(self, x_KD: Tensor, first: int = 0, stop: int = 3) -> tuple[Tensor, ...]:
        """Queries, keys and values from `first` to before `stop`, `(K, H, E)` each."""
        width, count = x_KD.shape[1], stop - first
        part = None if count == 3 else slice(first * width, stop * width)
        mapped_KM: Tensor
        if isinstance(self.qkv, QueryKeyValue):
            mapped_KM = self.qkv(x_KD, part)
        else:  # wrapped by adapters, which know all outputs alone
            mapped_KM = self.qkv(x_KD)[:, part or slice(None)]
        return mapped_KM.view(-1, count, self.num_heads, width // self.num_heads).unbind(1)


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each followed by dropout, the residual sum and LayerNorm (post-norm).

    With `norm_first` LayerNorm stands before each of them instead, and the residual sum is not normalised (pre-norm).
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        feed_forward: int | None = None,
        dropout: float = 0.1,
        activation: Activation = "gelu",
        norm_eps: float = 1e-6,
        qkv_bias: bool = True,
        out_bias: bool = True,
        norm_first: bool = False,
    ) -> None:
        """`feed_forward`: the width between its two linear layers; None: four times that of the block."""
        super().__init__()
        inner = feed_forward or 4 * width
        self.norm_first = norm_first
        self.attention = Attention(width, num_heads, dropout, qkv_bias=qkv_bias, out_bias=out_bias)
        self.attention_norm = nn.LayerNorm(width, eps=norm_eps)
        self.expand = nn.Linear(width, inner)
        self.contract = nn.Linear(inner, width)
        self.feed_forward_norm = nn.LayerNorm(width, eps=norm_eps)
        self.dropout = Dropout(dropout)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x_KD: Tensor, packing: Packing, *, is_causal: bool = False, last_alone: bool = False) -> Tensor:
        """`(K, D)`, the places of packed rows -> `(K, D)`; with `last_alone` the last place of each row, `(R, D)`."""
        mixed = self.attention(
            self.attention_norm(x_KD) if self.norm_first else x_KD, packing, is_causal=is_causal, last_alone=last_alone
        )
        residual = packing.last(x_KD) if last_alone else x_KD
        places = _places_at_once(residual)
        if places is None:
            return self._above_attention(residual, mixed)
        some = zip(torch.split(residual, places), torch.split(mixed, places), strict=True)
        return torch.cat([self._above_attention(*pair) for pair in some])

    def _above_attention(self, residual_KD: Tensor, mixed_KD: Tensor) -> Tensor:
        """What follows attention: it works place by place."""
        attended = self.dropout.add(residual_KD, mixed_KD)
        if self.norm_first:
            return self.dropout.add(attended, self._fed_forward(self.feed_forward_norm(attended)))
        attended = self.attention_norm(attended)
        out: Tensor = self.feed_forward_norm(self.dropout.add(attended, self._fed_forward(attended)))
        return out

    def _fed_forward(self, x_KD: Tensor) -> Tensor:
        p = self.dropout.p if self.dropout.training else 0.0
        return activated_linear(self.expand(x_KD), self.contract, self.activation, p)


def _places_at_once(x_KD: Tensor) -> int | None:
    """How many places pass what follows attention at once, where nothing is kept for gradients; None: all."""
    if torch.is_grad_enabled() or x_KD.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    places = PLACES_OF_THREAD * torch.get_num_threads()
    return places if len(x_KD) > places else None
