"""Split the forward of a backbone at its lowest trainable block, so that states of the frozen part can be kept."""
# Shapes: R rows, K tokens of all rows, H width of the backbone.

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pmmrec.adapters import Host
from pmmrec.contracts import FieldInputs, PixelInputs, PrefixInputs, TokenInputs, TokenStates, to_device
from pmmrec.dropout import draw_cheaply
from pmmrec.encoders.trainable import Layout, PartlyTrained, block_names, matching
from pmmrec.errors import RecipeError
from pmmrec.feed_forward import join_activations

PREFIX_VERSION = 2  # raise it when the same weights and inputs give other states
# Keys of a configuration that say where a model came from, not what it computes.
_ORIGIN = re.compile(r"_.*|transformers_version|architectures|torch_dtype|dtype|attn_implementation|id2label|label2id")


class _Reached(Exception):  # noqa: N818  not an error: it ends a forward early
    def __init__(self, states: Tensor) -> None:
        super().__init__("the lowest trainable block")
        self.states = states


class CanBeCut(PartlyTrained):
    """A partly trained encoder whose forward can stop below the lowest trainable block and continue from there.

    Up to that cut it is the library's own forward, ended early, so the states are exactly the inputs of the block. From
    the cut on, the trained blocks and the modules after them are called as `block_call` says.
    """

    layouts: ClassVar[Mapping[str, Layout]]  # of every architecture that the encoder knows
    backbone: Any
    projection: Any  # a linear layer, the convolution of a map, or nothing
    head: nn.Sequential | None
    gives_tokens: bool
    is_restored: bool
    _layout: Layout
    _pool: Any  # how a row is pooled, a word of its settings
    _checkpoints = False  # whether activations of blocks without an own switch are recomputed

    @property
    def prefix(self) -> FrozenPrefix | None:
        """The frozen part; None where the whole backbone trains. Raises RecipeError where no cut of it is known."""
        if self._trained == ("",):
            return None
        if self.is_restored:
            raise RecipeError(
                "an objective hides other words or patches at each step, and no state of them can be kept"
            )
        if self._trained and self._layout.block_call is None:
            known = sorted(name for name, layout in self.layouts.items() if layout.block_call is not None)
            raise RecipeError(
                f"prefix_cache: {type(self.backbone).__name__} cannot be entered between its blocks here; these can: "
                f"{', '.join(known)}. Freeze all of it (trainable_blocks: 0), or leave the cache off"
            )
        return FrozenPrefix(self)

    @property
    def host(self) -> Host:
        """The blocks of the backbone, which may have adapters; the cut then lies below the lowest block with one."""
        return Host(
            module=self.backbone,
            path="backbone",
            architecture=type(self.backbone).__name__,
            blocks=tuple(block_names(self.backbone, self._layout)),
            sites=self._layout.sites,
            known=tuple(sorted(name for name, layout in self.layouts.items() if layout.sites is not None)),
            learns_from_top=lambda num_blocks: self.train_top_blocks(self._layout, num_blocks),
        )

    def compute_cheaply(self) -> None:
        """Let the backbone, as its library made it, compute dropout and feed-forwards as on our own blocks."""
        draw_cheaply(self.backbone)
        if self._layout.sites is not None and not self._layout.is_gated:
            join_activations(self.backbone, block_names(self.backbone, self._layout), self._layout.sites.feed_forward)

    @property
    def pools_first(self) -> bool:
        """Whether rows are pooled before they are projected: no token is read, and a linear map gives the same then."""
        return not self.gives_tokens and not isinstance(self.projection, nn.Conv2d)

    @property
    def pools_at_cut(self) -> bool:
        """Whether what enters above the frozen part is the whole of each row."""
        return self.pools_first and not self._trained

    @property
    def above_cut(self) -> nn.ModuleList:
        """What kept states pass: the blocks from the lowest trainable one on, and the modules after them."""
        after = [self.projection] if self.head is None else [self.projection, self.head]
        return nn.ModuleList([*(self.backbone.get_submodule(name) for name in self._trained), *after])

    def up_to_cut(self, inputs: TokenInputs | PixelInputs) -> Tensor:
        """The inputs of the lowest trainable block; the output of the backbone, maybe pooled, where none of it trains.

        As `PrefixInputs.state` holds them.
        """
        if not self._trained:
            return self.pooled(inputs) if self.pools_at_cut else self.hidden(inputs)

        def stop(module: nn.Module, arguments: tuple[Any, ...]) -> None:  # noqa: ARG001
            raise _Reached(arguments[0])

        hook = self.backbone.get_submodule(self._trained[0]).register_forward_pre_hook(stop)
        try:
            self.hidden(inputs)
        except _Reached as reached:
            return reached.states if isinstance(inputs, PixelInputs) else reached.states[0]
        finally:
            hook.remove()
        raise RecipeError(f"{type(self.backbone).__name__}: never met its block {self._trained[0]}")

    def at_cut(self, inputs: TokenInputs | PixelInputs, state: Tensor) -> PrefixInputs:
        """Rows as they enter above the frozen part, which says `state` of them."""
        packing = inputs.packing if isinstance(inputs, TokenInputs) and not self.pools_at_cut else None
        return PrefixInputs(state, packing, inputs.item_index_R)

    def wholes(self, whole_RH: Tensor) -> TokenStates:
        """What projection and head make of pooled rows."""
        whole_RD = self.projection(whole_RH)
        return TokenStates.of_wholes(whole_RD if self.head is None else self.head(whole_RD))

    def last_states(self, inputs: TokenInputs | PixelInputs | PrefixInputs) -> Tensor:
        """The last hidden state, computed from the item or from its states at the cut; pooled if these are."""
        if not isinstance(inputs, PrefixInputs):
            return self.hidden(inputs)
        if self._trained and self._layout.block_call == "backbone":
            return self._above_frozen(inputs)
        packing, takes_mask = inputs.packing, self._layout.block_call == "hidden_and_mask"
        # A block of transformers reads one long row; its attention keeps the texts apart.
        states = inputs.state if packing is None else inputs.state[None]
        options = {} if packing is None else {"packing": packing}
        for name in self._trained:
            if re.fullmatch(self._layout.pooler, name):
                continue  # not between the blocks and the last hidden state
            module = self.backbone.get_submodule(name)
            is_block = re.fullmatch(self._layout.blocks, name) is not None
            if is_block and self._checkpoints and not hasattr(module, "grad_checkpointing") and torch.is_grad_enabled():
                states = checkpoint(module, states, use_reentrant=False)
            else:
                states = module(states, None, **options) if is_block and takes_mask else module(states)
        return states if packing is None else states[0]

    def _above_frozen(self, inputs: PrefixInputs) -> Tensor:
        """The last hidden state, by the forward of the whole backbone, in which frozen modules pass states on."""
        blocks = block_names(self.backbone, self._layout)
        frozen = [name for name in blocks if name not in self._trained]
        modules = [
            self.backbone.get_submodule(name) for name in [*matching(self.backbone, self._layout.embeddings), *frozen]
        ]
        try:
            for module in modules:
                module.forward = _pass_on
            return self.hidden_of_states(inputs)
        finally:
            for module in modules:
                del module.forward

    def hidden_of_states(self, inputs: PrefixInputs) -> Tensor:
        """The last hidden state, from states that the backbone takes for those of its embeddings."""
        raise NotImplementedError

    def layer_states(self, inputs: TokenInputs | PixelInputs) -> list[Tensor]:
        """What enters the lowest block, and what leaves each block; of images `(R, ...)`, of texts `(1, K, H)`.

        RecipeError where blocks give states of different shapes, as the stages of a ResNet or a Swin do.
        """
        found: list[Tensor] = []
        names = block_names(self.backbone, self._layout)

        def enter(module: nn.Module, arguments: tuple[Any, ...]) -> None:  # noqa: ARG001
            found.append(arguments[0])

        def leave(module: nn.Module, arguments: tuple[Any, ...], out: Any) -> None:  # noqa: ARG001
            found.append(out[0] if isinstance(out, tuple) else out)

        blocks = [self.backbone.get_submodule(name) for name in names]
        hooks = [blocks[0].register_forward_pre_hook(enter), *(block.register_forward_hook(leave) for block in blocks)]
        try:
            self.hidden(inputs)
        finally:
            for hook in hooks:
                hook.remove()
        if len({tuple(states.shape) for states in found}) != 1 or len(found) != len(blocks) + 1:
            raise RecipeError(f"layers: the blocks of {type(self.backbone).__name__} give states of different shapes")
        return found

    def hidden(self, inputs: TokenInputs | PixelInputs) -> Tensor:
        """The library's own last hidden state, `(R, ...)` of images or `(K, H)` of texts."""
        raise NotImplementedError

    def pooled(self, inputs: FieldInputs) -> Tensor:
        """The whole of each row as the backbone gives it, `(R, H)`."""
        raise NotImplementedError

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """Settings of what is done to pixels before the backbone; texts come as token ids."""
        return {}

    @property
    def backbone_facts(self) -> Mapping[str, Any]:
        """What decides the states of the backbone beside its tensors and inputs."""
        kind, configuration = type(self.backbone).__name__, configuration_of(self.backbone)
        return {"class": kind, "configuration": configuration, **self.preprocessing}


def _pass_on(*arguments: Any, **options: Any) -> Any:
    """Stands for the forward of a module that changes nothing."""
    return arguments[0] if arguments and arguments[0] is not None else options["inputs_embeds"]


class FrozenPrefix:
    """The frozen part of one encoder, a function with a fingerprint of its weights at the first request."""

    def __init__(self, encoder: CanBeCut) -> None:
        self._encoder = encoder

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the frozen tensors, the configuration, the cut and the preprocessing."""
        encoder = self._encoder
        trained = tuple(f"{name}." for name in encoder._trained)
        facts = {"version": PREFIX_VERSION, "cut": list(encoder._trained[:1]), **encoder.backbone_facts}
        if self.is_pooled:
            facts["pool"] = encoder._pool
        tensors = {
            name: tensor
            for name, tensor in encoder.backbone.state_dict().items()
            if not name.startswith(trained) and not re.fullmatch(encoder._layout.unused, name)
        }
        return fingerprint_of(facts, tensors)

    @property
    def is_pooled(self) -> bool:
        """Whether each row has one state, the whole of it."""
        return self._encoder.pools_at_cut

    def at_cut(self, inputs: TokenInputs | PixelInputs) -> PrefixInputs:
        """Rows as they enter above this part."""
        return self._encoder.at_cut(inputs, self.states(inputs))

    def states(self, inputs: TokenInputs | PixelInputs) -> Tensor:
        """Float32, without gradients and outside autocast, whatever the training's precision."""
        device = next(self._encoder.parameters()).device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return self._encoder.up_to_cut(to_device(inputs, device)).float()


def fingerprint_of(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over facts and tensors."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def configuration_of(backbone: Any) -> dict[str, Any]:
    """What a configuration says of what a backbone computes; nothing for one of timm."""
    to_dict: Callable[[], dict[str, Any]] | None = getattr(getattr(backbone, "config", None), "to_dict", None)
    if to_dict is None:
        return {}  # a backbone of timm is described by its class and the shapes of its tensors
    return _without_origin(to_dict())


def _without_origin(tree: dict[str, Any]) -> dict[str, Any]:
    """Also without that of configurations inside it, which two-sided models have."""
    kept = {key: value for key, value in tree.items() if not _ORIGIN.fullmatch(key)}
    return {key: _without_origin(value) if isinstance(value, dict) else value for key, value in kept.items()}
