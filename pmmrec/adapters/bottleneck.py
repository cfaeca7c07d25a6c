"""Bottleneck adapters: a narrow network beside attention and feed-forward, or beside the feed-forward alone."""
# Shapes: R rows, T tokens, D width of the host, W width of the bottleneck.

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from pmmrec.adapters import Adapter, AdapterConfig, Host, adapters, sites_of
from pmmrec.blocks import ACTIVATIONS, Activation
from pmmrec.errors import RecipeError

HELD = "adapter"  # name of the bottleneck in the linear map whose output it changes


class BottleneckConfig(AdapterConfig):
    """Settings of bottleneck adapters."""

    width: int = Field(16, ge=1, description="Numbers a token is squeezed through.")
    activation: Activation = "gelu"
    parallel: bool = Field(
        False, description="True: it reads what attention or feed-forward reads; False: what they say."
    )
    scale: float = Field(1.0, gt=0, description="Multiplies what is added; parallel ones often take 4.")


class HoulsbyConfig(BottleneckConfig):
    """Settings of adapters after attention and after feed-forward."""

    type: Literal["houlsby"] = "houlsby"


class PfeifferConfig(BottleneckConfig):
    """Settings of adapters after feed-forward alone."""

    type: Literal["pfeiffer"] = "pfeiffer"


class Bottleneck(nn.Module):
    """What is added: `scale * up(activation(down(x)))`. The way up starts at 0, so it adds nothing at first."""

    def __init__(self, beside: nn.Linear, config: BottleneckConfig) -> None:
        super().__init__()
        like: dict[str, Any] = {"device": beside.weight.device, "dtype": beside.weight.dtype}
        self.down = nn.Linear(beside.out_features, config.width, **like)
        self.up = nn.Linear(config.width, beside.out_features, **like)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.activation, self.scale = ACTIVATIONS[config.activation], config.scale
        self.pending: Tensor | None = None  # of a parallel one, between the input of its sub-layer and the output

    def forward(self, x_RTD: Tensor) -> Tensor:
        """`(R, T, D)` -> what is to be added to a sub-layer's output."""
        added_RTD: Tensor = self.up(self.activation(self.down(x_RTD)))
        return self.scale * added_RTD


class _Bottlenecks(Adapter):
    """What Houlsby's and Pfeiffer's share: hooks on linear maps, so that no tensor of the host changes its name."""

    is_mergeable = False

    def __init__(self, config: BottleneckConfig) -> None:
        self.config = config

    def insert(self, host: Host, blocks: Sequence[str], where: str) -> tuple[str, ...]:
        """See `Adapter.insert`."""
        held = []
        for block in blocks:
            for enters, leaves in self._sub_layers(host):
                inputs, outputs = host.at(enters, [block]), host.at(leaves, [block])
                if not outputs or len(inputs) != len(outputs):
                    raise RecipeError(f"{where}: {host.architecture}: block {block} is not laid out as is known here")
                held += [self._insert_at(host, *pair) for pair in zip(inputs, outputs, strict=True)]
        return tuple(held)

    def merge(self, host: Host, holders: Sequence[str]) -> None:
        """There is an activation between the way down and the way up, so no weights compute the same."""
        del holders
        raise RecipeError(
            f"{self.config.type} adapters of {host.architecture} cannot be merged into weights: there is an activation "
            "in them. Keep the adapter checkpoint: it is evaluated, scored and loaded as it is, on its base; "
            "a training can start from that base again, or from adapters that merge: lora, dora, ia3"
        )

    def _sub_layers(self, host: Host) -> list[tuple[str, str]]:
        raise NotImplementedError

    def _insert_at(self, host: Host, enters: str, leaves: str) -> str:
        output: Any = host.sub(leaves)
        bottleneck = Bottleneck(output, self.config)
        output.add_module(HELD, bottleneck)
        if self.config.parallel:
            host.sub(enters).register_forward_pre_hook(partial(_read, bottleneck))
            output.register_forward_hook(_add_pending)
        else:
            output.register_forward_hook(_add)
        return f"{leaves}.{HELD}"


@adapters.register("houlsby", HoulsbyConfig)
class Houlsby(_Bottlenecks):
    """After attention and after feed-forward, before the residual sum (https://arxiv.org/abs/1902.00751).

    `parallel: true` is the parallel adapter of https://arxiv.org/abs/2110.04366, at both. Differs from Houlsby's: the
    norms of the host stay frozen.
    """

    def _sub_layers(self, host: Host) -> list[tuple[str, str]]:
        sites = sites_of(host)
        return [sites.attention, sites.feed_forward]


@adapters.register("pfeiffer", PfeifferConfig)
class Pfeiffer(_Bottlenecks):
    """After feed-forward alone, which Pfeiffer et al. found enough (https://arxiv.org/abs/2005.00247).

    Differs from theirs: it stands before the residual sum and the norm, as Houlsby's second does.
    """

    def _sub_layers(self, host: Host) -> list[tuple[str, str]]:
        return [sites_of(host).feed_forward]


def _add(linear: nn.Module, _: Any, out_RTD: Tensor) -> Tensor:
    added_RTD: Tensor = linear.get_submodule(HELD)(out_RTD)
    return out_RTD + added_RTD


def _read(bottleneck: Bottleneck, _: nn.Module, arguments: tuple[Any, ...]) -> None:
    bottleneck.pending = bottleneck(arguments[0])


def _add_pending(linear: nn.Module, _: Any, out_RTD: Tensor) -> Tensor:
    bottleneck: Any = linear.get_submodule(HELD)
    added_RTD, bottleneck.pending = bottleneck.pending, None
    if added_RTD is None:
        raise RuntimeError("a parallel adapter met the output of its sub-layer before the input")
    out: Tensor = out_RTD + added_RTD
    return out
