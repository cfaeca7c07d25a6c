"""The post-norm Transformer block that fusion and user encoders share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["relu", "gelu"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


class Attention(nn.Module):
    """Multi-head self-attention over `(B, L, D)`."""

    def __init__(self, width: int, num_heads: int, dropout: float, *, qkv_bias: bool) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} cannot be shared by {num_heads} heads; choose a divisor of the width")
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.out = nn.Linear(width, width)

    def forward(self, x_BLD: Tensor, is_allowed_BLL: Tensor) -> Tensor:
        """`is_allowed_BLL[b, i, j]`: position i may look at position j; each row allows at least one."""
        num_rows, length, width = x_BLD.shape
        heads = self.qkv(x_BLD).view(num_rows, length, 3, self.num_heads, width // self.num_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, is_allowed_BLL[:, None], dropout_p=dropout)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(num_rows, length, width))
        return out


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each followed by dropout, the residual sum and LayerNorm (post-norm)."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        feed_forward_factor: int = 4,
        dropout: float = 0.1,
        activation: Activation = "gelu",
        norm_eps: float = 1e-6,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.attention = Attention(width, num_heads, dropout, qkv_bias=qkv_bias)
        self.attention_norm = nn.LayerNorm(width, eps=norm_eps)
        self.expand = nn.Linear(width, feed_forward_factor * width)
        self.contract = nn.Linear(feed_forward_factor * width, width)
        self.feed_forward_norm = nn.LayerNorm(width, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x_BLD: Tensor, is_allowed_BLL: Tensor) -> Tensor:
        """`(B, L, D)` -> `(B, L, D)`."""
        attended = self.attention_norm(x_BLD + self.dropout(self.attention(x_BLD, is_allowed_BLL)))
        widened = self.dropout(self.activation(self.expand(attended)))
        out: Tensor = self.feed_forward_norm(attended + self.dropout(self.contract(widened)))
        return out


def attention_allowed(is_valid_BL: Tensor, *, is_causal: bool) -> Tensor:
    """`(B, L, L)`: who may look at whom. Each position sees itself, so that padding never yields NaN."""
    length = is_valid_BL.shape[1]
    itself_LL = torch.eye(length, dtype=torch.bool, device=is_valid_BL.device)
    allowed_BLL = is_valid_BL[:, None, :].expand(-1, length, -1)
    if is_causal:
        allowed_BLL = allowed_BLL & torch.ones_like(itself_LL).tril()
    return allowed_BLL | itself_LL
