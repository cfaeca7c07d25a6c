"""The second half of a feed-forward, computed some rows at a time on a CPU: activation, dropout and linear layer."""
# Shapes: K rows, k of them that are computed together, F width of the activation, D width of the output.

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

from pmmrec.dropout import drop, dropout, kept

FEWEST_NUMBERS = 1 << 20  # activations that are fewer stay in cache anyway
NUMBERS_IN_CACHE = 1 << 17
FEWEST_ROWS = 256  # with fewer rows, products are slow
Activation = Callable[[Tensor], Tensor]


def activated_linear(x: Tensor, linear: nn.Module, activation: Activation, p: float = 0.0) -> Tensor:
    """`linear(dropout(activation(x), p))`, of `(..., F)`; `p`: the share of dropped activations, 0 outside training.

    On a CPU, with many rows and gradients, what the activation gives is not kept but computed once more on the way
    back, a few rows at a time, so that they stay in cache. The mask of dropout is kept as a byte for each number. The
    random numbers are those of `pmmrec.dropout`; sums differ by rounding.
    """
    if type(linear) is not nn.Linear or not _pays(x, activation) or _is_watched(linear):
        out: Tensor = linear(dropout(activation(x), p))
        return out
    return computed_again(x, linear.weight, linear.bias, activation, p)


def computed_again(x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation, p: float) -> Tensor:
    """The same with gradients, without asking whether it pays; a mode of torch functions may compute it otherwise."""
    inputs = (x, weight, bias)
    if has_torch_function(inputs):
        found: Tensor = handle_torch_function(computed_again, inputs, *inputs, activation, p)
        return found
    out_KD: Tensor = _ActivatedLinear.apply(x.flatten(0, -2), weight, bias, activation, p)
    return out_KD.view(*x.shape[:-1], len(weight))


class ActivatedLinear(nn.Linear):
    """A linear layer that applies the activation before it too; see `activated_linear`."""

    activation: Activation

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
        if _pays(input, self.activation):
            return computed_again(input, self.weight, self.bias, self.activation, 0.0)
        return F.linear(self.activation(input), self.weight, self.bias)


class AppliedLater(nn.Module):
    """Stands where an activation was that an `ActivatedLinear` applies."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return x


def join_activations(model: nn.Module, blocks: Sequence[str], pattern: tuple[str, str]) -> None:
    """Join the activation and the second linear layer of each block's feed-forward, in place; tensors keep their names.

    `pattern`: of the names of both linear layers in a block. A block that has another activation, or several, stays.
    """
    for name in blocks:
        block = model.get_submodule(name)
        linears = [_matching(block, one) for one in pattern]
        found = [
            (parent, key, function)
            for parent in block.modules()
            for key, child in parent.named_children()
            if (function := _function_of(child)) is not None
        ]
        if [len(some) for some in linears] != [1, 1] or len(found) != 1:
            continue
        (first,), (second,) = linears
        parent, key, function = found[0]
        if first.out_features == second.in_features:  # else it is a gated one
            setattr(parent, key, AppliedLater(parent.get_submodule(key)))
            second.__class__ = ActivatedLinear
            second.activation = function


def part_activations(model: nn.Module) -> None:
    """Undo `join_activations`: what is put around a linear layer must see what it reads."""
    for module in list(model.modules()):
        if isinstance(module, ActivatedLinear):
            module.__class__ = nn.Linear  # type: ignore[assignment]  # the class it is derived from
        for key, child in list(module.named_children()):
            if isinstance(child, AppliedLater):
                setattr(module, key, child.activation)


class _ActivatedLinear(torch.autograd.Function):
    """Keeps the inputs, and a byte for each number that dropout may drop."""

    @staticmethod
    def forward(ctx: Any, x_KF: Tensor, weight_DF: Tensor, bias_D: Tensor | None, act: Activation, p: float) -> Tensor:
        is_kept_KF, ctx.factor = kept(x_KF, p) if p else (None, 1.0)
        out_KD = x_KF.new_empty(len(x_KF), len(weight_DF))
        for x_kF, out_kD, is_kept_kF in _in_cache(x_KF, out_KD, is_kept_KF):
            hidden_kF = _hidden(x_kF, is_kept_kF, act, ctx.factor)
            if bias_D is None:
                torch.mm(hidden_kF, weight_DF.t(), out=out_kD)
            else:
                torch.addmm(bias_D, hidden_kF, weight_DF.t(), out=out_kD)
        ctx.save_for_backward(x_KF, weight_DF, is_kept_KF)
        ctx.act, ctx.has_bias = act, bias_D is not None
        return out_KD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_KF, weight_DF, is_kept_KF = ctx.saved_tensors
        gradient_KD, (learns_x, learns_weight, learns_bias, *_) = gradients[0], ctx.needs_input_grad
        to_x_KF = torch.empty_like(x_KF) if learns_x else x_KF
        to_weight_DF = torch.zeros_like(weight_DF) if learns_weight else None
        parts = _in_cache(x_KF, gradient_KD, is_kept_KF, to_x_KF)
        for x_kF, gradient_kD, is_kept_kF, to_x_kF in parts:
            if to_weight_DF is not None:
                hidden_kF = _hidden(x_kF, is_kept_kF, ctx.act, ctx.factor)
                # Not `addmm_`, which torch's counter of FLOPs does not know.
                torch.addmm(to_weight_DF, gradient_kD.t(), hidden_kF, out=to_weight_DF)
            if learns_x:
                to_hidden_kF = gradient_kD @ weight_DF
                if is_kept_kF is not None:
                    drop(to_hidden_kF, is_kept_kF, ctx.factor, to_hidden_kF)
                _GRADIENTS[ctx.act](to_hidden_kF, x_kF, to_x_kF)
        to_bias_D = gradient_KD.sum(dim=0) if ctx.has_bias and learns_bias else None
        return to_x_KF if learns_x else None, to_weight_DF, to_bias_D, None, None


def _hidden(x_kF: Tensor, is_kept_kF: Tensor | None, act: Activation, factor: float) -> Tensor:
    hidden_kF = act(x_kF)
    return hidden_kF if is_kept_kF is None else drop(hidden_kF, is_kept_kF, factor, hidden_kF)


def _in_cache(first_KF: Tensor, *others: Tensor | None) -> Any:
    """A few rows of each tensor at a time."""
    num_rows = max(FEWEST_ROWS, NUMBERS_IN_CACHE // first_KF.shape[1])
    starts = range(0, len(first_KF), num_rows)
    return zip(
        *([None] * len(starts) if one is None else torch.split(one, num_rows) for one in (first_KF, *others)),
        strict=True,
    )


def _gelu_gradient(gradient: Tensor, x: Tensor, out: Tensor) -> None:
    torch.ops.aten.gelu_backward.grad_input(gradient, x, grad_input=out)


def _relu_gradient(gradient: Tensor, x: Tensor, out: Tensor) -> None:
    torch.ops.aten.threshold_backward.grad_input(gradient, x, 0, grad_input=out)


_GRADIENTS: Mapping[Any, Callable[[Tensor, Tensor, Tensor], None]] = {F.gelu: _gelu_gradient, F.relu: _relu_gradient}


def _pays(x: Tensor, activation: Activation) -> bool:
    return (
        x.device.type in ("cpu", "meta")  # on the meta device, the memory of a CPU's step is tried
        and activation in _GRADIENTS
        and x.numel() >= FEWEST_NUMBERS
        and x.requires_grad
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _is_watched(linear: nn.Module) -> bool:
    """Whether hooks must see a call of it."""
    return bool(linear._forward_pre_hooks or linear._forward_hooks)


def _matching(block: nn.Module, pattern: str) -> list[Any]:
    return [
        module for name, module in block.named_modules() if type(module) is nn.Linear and re.fullmatch(pattern, name)
    ]


def _function_of(module: nn.Module) -> Activation | None:
    """The function of torch that a module of torch or transformers is; None for others."""
    if isinstance(module, nn.GELU):
        return F.gelu if module.approximate == "none" else None
    if isinstance(module, nn.ReLU):
        return F.relu
    return F.gelu if getattr(module, "act", None) is F.gelu and type(module).__name__ == "GELUActivation" else None
