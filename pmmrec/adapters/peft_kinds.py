"""Adapters from peft, inserted in place: LoRA, DoRA and IA3."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from pmmrec.adapters import Adapter, AdapterConfig, Host, adapters, chosen_targets, sites_of
from pmmrec.errors import CheckpointError, RecipeError

NAME = "default"  # name of the adapter in peft, which can keep several
PREFIX = "base_model.model."  # of every tensor name in a file of peft
_MAGNITUDE = f".lora_magnitude_vector.{NAME}.weight"


class LoraConfig(AdapterConfig):
    """Settings of LoRA and DoRA."""

    type: Literal["lora"] = "lora"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({"r": 2}, {"r": 2, "blocks": 1})
    r: int = Field(8, ge=1, description="Rank of the update of a weight.")
    alpha: int = Field(16, ge=1, description="The update is multiplied by alpha / r.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the input of the update.")
    targets: tuple[str, ...] | None = Field(
        None, min_length=1, description="Linear layers, by the end of their names; null: queries and values."
    )


class DoraConfig(LoraConfig):
    """Settings of DoRA."""

    type: Literal["dora"] = "dora"  # type: ignore[assignment]  # same settings under another name


class Ia3Config(AdapterConfig):
    """Settings of IA3."""

    type: Literal["ia3"] = "ia3"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"blocks": 1})
    targets: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Linear layers, by the end of their names; null: keys, values and the feed-forward output.",
    )


class _PeftAdapter(Adapter):
    """Replace each target layer by a wrapper of peft, which keeps it as `base_layer`."""

    is_mergeable = True

    def __init__(self, config: LoraConfig | Ia3Config) -> None:
        self.config = config

    def insert(self, host: Host, blocks: Sequence[str], where: str) -> tuple[str, ...]:
        """See `Adapter.insert`."""
        from peft import inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        holders = self._targets(host, blocks, where)
        if not holders:
            raise RecipeError(
                f"{where}: {host.architecture} has no linear layers where its layout says; name `targets`"
            )
        _refuse_tied(host, holders, where)
        inject_adapter_in_model(self._peft_config(host, holders), host.module, NAME)
        del host.module.peft_config  # with it transformers would save adapters instead of weights
        found = tuple(name for name, module in host.module.named_modules() if isinstance(module, BaseTunerLayer))
        if set(found) != set(holders):
            raise RecipeError(f"{where}: peft adapted {', '.join(found)}, not {', '.join(holders)}; name `targets`")
        return found

    def merge(self, host: Host, holders: Sequence[str]) -> None:
        """See `Adapter.merge`; the tensors get their original names back."""
        for name in holders:
            wrapper: Any = host.sub(name)
            try:
                wrapper.merge(safe_merge=True)
            except ValueError as error:
                raise CheckpointError(f"{host.architecture}: {name}: cannot be merged: {error}") from error
            above, _, last = name.rpartition(".")
            setattr(host.sub(above), last, wrapper.get_base_layer())

    def write_settings(self, host: Host, folder: Path) -> None:
        """Write `adapter_config.json` for peft."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        holders = [name for name, module in host.module.named_modules() if isinstance(module, BaseTunerLayer)]
        config = self._peft_config(host, holders)
        config.inference_mode = True
        for field in ("target_modules", "feedforward_modules"):  # sets, whose order varies between runs
            if getattr(config, field, None):
                setattr(config, field, sorted(getattr(config, field)))
        config.save_pretrained(str(folder))

    def name_on_disk(self, name: str) -> str:
        """The name that peft writes, without the name of the adapter."""
        if name.endswith(_MAGNITUDE):
            return PREFIX + name.removesuffix(f".{NAME}.weight")
        return PREFIX + name.replace(f".{NAME}", "")

    def _targets(self, host: Host, blocks: Sequence[str], where: str) -> list[str]:
        if self.config.targets is not None:
            return chosen_targets(host, blocks, self.config.targets, where)
        return self._own_targets(host, blocks)

    def _own_targets(self, host: Host, blocks: Sequence[str]) -> list[str]:
        raise NotImplementedError

    def _peft_config(self, host: Host, holders: Sequence[str]) -> Any:
        raise NotImplementedError


class _LowRank(_PeftAdapter):
    """LoRA, with or without the decomposition of DoRA."""

    config: LoraConfig
    _use_dora = False

    def _own_targets(self, host: Host, blocks: Sequence[str]) -> list[str]:
        return host.at(sites_of(host).query_value, blocks)

    def _peft_config(self, host: Host, holders: Sequence[str]) -> Any:
        import peft

        del host
        make: Callable[..., Any] = peft.LoraConfig
        return make(
            r=self.config.r,
            lora_alpha=self.config.alpha,
            lora_dropout=self.config.dropout,
            target_modules=list(holders),
            use_dora=self._use_dora,
        )


@adapters.register("lora", LoraConfig)
class Lora(_LowRank):
    """Add a product of two low-rank matrices to each weight W of shape (O, I).

    Equation 3 of https://arxiv.org/abs/2106.09685: h = W x + (alpha / r) B A x. At the start A (r, I) is random and B
    (O, r) is zero. Computed by peft.

    >>> plan = AdapterPlan(user_encoder=LoraConfig(r=4))
    >>> adapted = adapt({"user_encoder": users}, plan)  # `users`: a transformer with one block
    >>> adapted.parts["user_encoder"].holders
    ('blocks.0.attention.qkv',)
    """


@adapters.register("dora", DoraConfig)
class Dora(_LowRank):
    """Apply LoRA to the direction of each weight W of shape (O, I), and train its magnitude m of shape (O,).

    Equation 5 of https://arxiv.org/abs/2402.09353: W' = m (W + s B A) / |W + s B A| with s = alpha / r and the norm of
    each of the O rows. Computed by peft, which treats the norm as a constant in gradients, as section 4.3 of the paper.

    >>> plan = AdapterPlan(user_encoder=DoraConfig(r=4))
    >>> adapted = adapt({"user_encoder": users}, plan)  # `users`: a transformer with one block
    >>> adapted.parts["user_encoder"].holders
    ('blocks.0.attention.qkv',)
    """

    _use_dora = True


@adapters.register("ia3", Ia3Config)
class Ia3(_PeftAdapter):
    """Rescale keys, values and the inner activations of the feed-forward, each by a vector that starts at one.

    Section 3.3 of https://arxiv.org/abs/2205.05638: attention reads l_k * K and l_v * V, the feed-forward is
    W_2 (l_ff * act(W_1 x)). Computed by peft. Differs from the paper: where one linear layer computes queries, keys and
    values, all three are rescaled.

    >>> plan = AdapterPlan(user_encoder=Ia3Config())
    >>> adapted = adapt({"user_encoder": users}, plan)  # `users`: a transformer with one block
    >>> adapted.parts["user_encoder"].holders
    ('blocks.0.attention.qkv', 'blocks.0.contract')
    """

    config: Ia3Config

    def _own_targets(self, host: Host, blocks: Sequence[str]) -> list[str]:
        sites = sites_of(host)
        return host.at(f"{sites.key_value}|{sites.feed_forward[1]}", blocks)

    def _peft_config(self, host: Host, holders: Sequence[str]) -> Any:
        import peft

        inner = set(host.at(sites_of(host).feed_forward[1], host.blocks))
        make: Callable[..., Any] = peft.IA3Config
        return make(target_modules=list(holders), feedforward_modules=[name for name in holders if name in inner])


def _refuse_tied(host: Host, holders: Sequence[str], where: str) -> None:
    """Raise RecipeError for a layer with a shared weight, since merging would change the other layer too."""
    for holder in holders:
        weight: Any = host.sub(holder).weight
        sharing = [
            f"{name}.{key}" if name else key
            for name, module in host.module.named_modules()
            for key, other in module.named_parameters(recurse=False)
            if other is weight and name != holder
        ]
        if sharing:
            raise RecipeError(
                f"{where}: {holder} of {host.architecture} shares its weight with {', '.join(sharing)}, which merging "
                "the adapters would change too; name other `targets`"
            )
