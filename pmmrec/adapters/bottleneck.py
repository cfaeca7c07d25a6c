"""Bottleneck adapters: a small network at attention and feed-forward, or at the feed-forward alone."""
# Shapes: R rows, T tokens, D width of the host, W width of the bottleneck.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from pmmrec.adapters import Adapter, AdapterConfig, Host, adapters, sites_of
from pmmrec.blocks import ACTIVATIONS, Activation
from pmmrec.errors import RecipeError

CHILD = "adapter"  # name of the bottleneck in the linear layer whose output it changes


class BottleneckConfig(AdapterConfig):
    """Settings of bottleneck adapters."""

    width: int = Field(16, ge=1, description="Width of the bottleneck, in numbers per token.")
    activation: Activation = "gelu"
    parallel: bool = Field(
        False, description="True: its input is the input of attention or feed-forward; False: their output."
    )
    scale: float = Field(1.0, gt=0, description="Multiplies what is added; parallel adapters often use 4.")


class HoulsbyConfig(BottleneckConfig):
    """Settings of adapters after attention and after feed-forward."""

    type: Literal["houlsby"] = "houlsby"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({"width": 3}, {"width": 3, "parallel": True, "scale": 4.0})


class PfeifferConfig(BottleneckConfig):
    """Settings of adapters after feed-forward alone."""

    type: Literal["pfeiffer"] = "pfeiffer"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({"width": 3}, {"width": 3, "parallel": True})


class Bottleneck(nn.Module):
    """Compute `scale * up(activation(down(x)))`, which is added to a sub-layer; `up` starts at 0, so it adds 0."""

    def __init__(self, beside: nn.Linear, config: BottleneckConfig) -> None:
        super().__init__()
        like: dict[str, Any] = {"device": beside.weight.device, "dtype": beside.weight.dtype}
        self.down = nn.Linear(beside.out_features, config.width, **like)
        self.up = nn.Linear(config.width, beside.out_features, **like)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.activation, self.scale = ACTIVATIONS[config.activation], config.scale
        self.pending: Tensor | None = None  # parallel only: computed at the input of the sub-layer, added at its output

    def forward(self, x_RTD: Tensor) -> Tensor:
        """Input `(R, T, D)` -> what is added to the output of the sub-layer, `(R, T, D)`."""
        added_RTD: Tensor = self.up(self.activation(self.down(x_RTD)))
        return self.scale * added_RTD


class _BottleneckAdapter(Adapter):
    """Insert bottlenecks with hooks on linear layers, so that no tensor of the host is renamed."""

    is_mergeable = False

    def __init__(self, config: BottleneckConfig) -> None:
        self.config = config

    def insert(self, host: Host, blocks: Sequence[str], where: str) -> tuple[str, ...]:
        """See `Adapter.insert`."""
        holders = []
        for block in blocks:
            for enters, leaves in self._sub_layers(host):
                inputs, outputs = host.at(enters, [block]), host.at(leaves, [block])
                if not outputs or len(inputs) != len(outputs):
                    raise RecipeError(f"{where}: {host.architecture}: block {block} does not have the known layout")
                holders += [self._insert_at(host, *pair) for pair in zip(inputs, outputs, strict=True)]
        return tuple(holders)

    def merge(self, host: Host, holders: Sequence[str]) -> None:
        """Raise RecipeError: the activation between `down` and `up` prevents merging."""
        del holders
        raise RecipeError(
            f"{self.config.type} adapters of {host.architecture} cannot be merged into weights: they contain an "
            "activation. Keep the adapter checkpoint: it can be evaluated, scored and loaded with its base; training "
            "can start again from that base, or from adapters that merge: lora, dora, ia3"
        )

    def _sub_layers(self, host: Host) -> list[tuple[str, str]]:
        raise NotImplementedError

    def _insert_at(self, host: Host, enters: str, leaves: str) -> str:
        output: Any = host.sub(leaves)
        bottleneck = Bottleneck(output, self.config)
        output.add_module(CHILD, bottleneck)
        if self.config.parallel:
            host.sub(enters).register_forward_pre_hook(partial(_read, bottleneck))
            output.register_forward_hook(_add_pending)
        else:
            output.register_forward_hook(_add)
        return f"{leaves}.{CHILD}"


@adapters.register("houlsby", HoulsbyConfig)
class Houlsby(_BottleneckAdapter):
    """Insert bottlenecks after attention and after feed-forward, before the residual sum.

    Figure 2 of https://arxiv.org/abs/1902.00751: each sub-layer output h becomes h + scale * up(act(down(h))). With
    `parallel: true` the input of the sub-layer takes the place of h in the bottleneck (table 1 of
    https://arxiv.org/abs/2110.04366). Differs from the paper: the norms of the host stay frozen.

    >>> plan = AdapterPlan(user_encoder=HoulsbyConfig(width=4))
    >>> adapted = adapt({"user_encoder": users}, plan)  # `users`: a transformer with one block
    >>> adapted.parts["user_encoder"].holders
    ('blocks.0.attention.out.adapter', 'blocks.0.contract.adapter')
    """

    def _sub_layers(self, host: Host) -> list[tuple[str, str]]:
        sites = sites_of(host)
        return [sites.attention, sites.feed_forward]


@adapters.register("pfeiffer", PfeifferConfig)
class Pfeiffer(_BottleneckAdapter):
    """Insert a bottleneck after feed-forward alone, computed as in `Houlsby`.

    https://arxiv.org/abs/2005.00247. Differs from the paper: it is placed before the residual sum and the norm.

    >>> plan = AdapterPlan(user_encoder=PfeifferConfig(width=4))
    >>> adapted = adapt({"user_encoder": users}, plan)  # `users`: a transformer with one block
    >>> adapted.parts["user_encoder"].holders
    ('blocks.0.contract.adapter',)
    """

    def _sub_layers(self, host: Host) -> list[tuple[str, str]]:
        return [sites_of(host).feed_forward]


def _add(linear: nn.Module, _: Any, out_RTD: Tensor) -> Tensor:
    added_RTD: Tensor = linear.get_submodule(CHILD)(out_RTD)
    return out_RTD + added_RTD


def _read(bottleneck: Bottleneck, _: nn.Module, arguments: tuple[Any, ...]) -> None:
    bottleneck.pending = bottleneck(arguments[0])


def _add_pending(linear: nn.Module, _: Any, out_RTD: Tensor) -> Tensor:
    bottleneck: Any = linear.get_submodule(CHILD)
    added_RTD, bottleneck.pending = bottleneck.pending, None
    if added_RTD is None:
        raise RuntimeError("a parallel adapter saw the output of its sub-layer before the input")
    out: Tensor = out_RTD + added_RTD
    return out
