"""Try a step on the meta device, where tensors have shapes and no numbers, and count the bytes it holds."""
# Shapes: B users, S window positions, L = S - 1, U distinct items, R rows given to one encoder, T tokens.

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from pmmrec.attention_dropout import keeps_weights
from pmmrec.contracts import (
    Batch,
    Candidates,
    ItemInputs,
    ItemVectors,
    WindowPass,
    Windows,
)
from pmmrec.feed_forward import computed_again
from pmmrec.models import ItemEncoder
from pmmrec.packing import HostArray, lengths_like
from pmmrec.requests import DrawnNegatives, Masked, Noised, Shown, WindowRequest
from pmmrec.train.accumulate import encode_in_parts
from pmmrec.train.meta_items import item_inputs
from pmmrec.train.task import TrainingTask

_ops: Any = torch.ops.aten
_INDEXED = (_ops.index.Tensor, _ops.index_put.default, _ops.index_put_.default, _ops._index_put_impl_.default)
_HALVED = (F.linear, torch.conv2d, F.conv2d, F.scaled_dot_product_attention)
_PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, torch.baddbmm)
_WIDENED = (F.layer_norm, torch.layer_norm, F.softmax, torch.softmax, Tensor.softmax, F.normalize)


@dataclass(frozen=True)
class StepSize:
    """What one process meets in a step."""

    users: int
    positions: int  # of a window
    filled: float  # share of them that hold an item
    items: int  # distinct ones that its windows are over
    encoded: int  # how many of them it encodes
    tokens: int  # of a text, on average
    candidates: int = 0  # of an impression
    texts: tuple[int, ...] = ()  # tokens of some texts; (): all have as many as the average
    windows: tuple[int, ...] = ()  # items of each window; (): all are filled alike


@dataclass(frozen=True)
class Kernels:
    """How the device computes."""

    on_gpu: bool  # fused attention, dropout that keeps a byte for each number
    half: torch.dtype | None = None  # in which autocast does products; None: float32


@dataclass(frozen=True)
class StepMemory:
    """Bytes of tensors in one forward and backward, weights left out."""

    batch: int
    activations: int  # the most there are at a time where every gradient leaves as soon as it is whole
    with_gradients: int  # the most there are at a time where gradients stay


def step_memory(task: TrainingTask, size: StepSize, kernels: Kernels, prefixes: Iterable[str]) -> StepMemory:
    """Of a task on the meta device; its forward and backward are the real ones, only their tensors hold nothing.

    `prefixes`: fields whose frozen states are kept. A mask counts as true as often as the windows are filled, other
    masks everywhere. On a GPU, where attention pads rows of different lengths, rows have the lengths that `size` tells.
    """
    if not kernels.on_gpu:
        size = dataclasses.replace(size, texts=(), windows=())
    # A batch for each trial: one that was tried holds tensors of what the host knows.
    fields = frozenset(prefixes)
    batch = _batch(task, size, fields)
    freed = _peak(task, _batch(task, size, fields), size, kernels, keeps_gradients=False)
    kept = _peak(task, _batch(task, size, fields), size, kernels, keeps_gradients=True)
    return StepMemory(sum(tensor.nbytes for tensor in _tensors(batch)), freed, kept)


def _peak(task: TrainingTask, batch: Batch, size: StepSize, kernels: Kernels, *, keeps_gradients: bool) -> int:
    live = LiveBytes([*task.parameters(), *task.buffers(), *_tensors(batch)], size)
    hooks: list[Any] = []
    if not keeps_gradients:
        hooks = [_hooked(parameter) for parameter in task.parameters() if parameter.requires_grad]
    encoder, parts = task.recommender.item_encoder, task.item_parts
    task.recommender.item_encoder, task.item_parts = _SharedOut(encoder, size.items, parts, live), 1
    task.train()
    try:
        with live, _Computing(kernels):
            figures = task(batch)
            losses = [weight * figures[name][0] / figures[name][1] for name, weight in task.weights.items()]
            loss = torch.stack(losses).sum()
            del figures, losses
            _go_back(loss)
            del loss
    finally:
        task.recommender.item_encoder, task.item_parts = encoder, parts
        task.zero_grad(set_to_none=True)
        for hook in hooks:
            hook.remove()
    return live.peak


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped in torch
    """Counts the bytes of all tensors made under it that are alive, and the most there were.

    On the meta device it answers what would depend on numbers: see `step_memory`.
    """

    def __init__(self, known: Iterable[Tensor], size: StepSize | None = None) -> None:
        """`known`: tensors that are not counted. `size`: of the step that is tried."""
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self.now = self.peak = 0
        self.row_parts = 1  # where rows are cut into parts: a mask of rows is true for those of one part
        self._size = size
        self._seen: dict[int, weakref.ref[Any]] = {}
        self._known = [tensor.untyped_storage() for tensor in known]
        self._keys = {storage._cdata for storage in self._known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = self._answer(func, args) if self._size is not None else None
        if out is None:
            out = func(*self._placed(func, args), **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return out

    def _see(self, tensor: Tensor) -> None:
        if tensor.is_sparse:
            return  # its indices and values are tensors themselves
        storage = tensor.untyped_storage()
        key, num_bytes = storage._cdata, storage.nbytes()
        if key in self._seen or key in self._keys:
            return

        def gone(_: Any) -> None:
            if self._seen.pop(key, None) is not None:
                self.now -= num_bytes

        self._seen[key] = weakref.ref(storage, gone)
        self.now += num_bytes
        self.peak = max(self.peak, self.now)

    def _answer(self, func: Any, args: Any) -> Any:
        if func is _ops.nonzero.default and args[0].is_meta:
            return args[0].new_empty((self._count(args[0]), args[0].dim()), dtype=torch.int64)
        if func is _ops._unique2.default and args[0].is_meta and self._size is not None:
            values = args[0].new_empty(min(args[0].numel(), self._size.items))
            return values, torch.empty_like(args[0]), torch.empty_like(values)
        return None

    def _placed(self, func: Any, args: Any) -> Any:
        """Replace masks, whose count is unknown on the meta device, by indices."""
        if func not in _INDEXED or not args[0].is_meta:
            return args
        places: list[Tensor | None] = []
        for index in args[1]:
            if index is not None and index.dtype == torch.bool:
                places += [index.new_empty(self._count(index), dtype=torch.int64) for _ in range(index.dim())]
            else:
                places.append(index)
        return (args[0], places, *args[2:])

    def _count(self, mask: Tensor) -> int:
        if mask.dim() == 1:
            return math.ceil(len(mask) / self.row_parts)
        of_windows = self._size is not None and mask.shape == (self._size.users, self._size.positions - 1)
        return max(1, round(mask.numel() * (self._size.filled if self._size and of_windows else 1.0)))


class _Computing(TorchFunctionMode):
    """Lets attention, dropout and products keep what they keep on another device, or at another precision."""

    def __init__(self, kernels: Kernels) -> None:
        super().__init__()
        self._kernels = kernels
        self._halves: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._kernels.half is not None and func in _WIDENED:
            return func(*tree_map(_wide, args), **tree_map(_wide, kwargs))
        is_product = func in _PRODUCTS and args[0].dim() > 2  # objectives multiply matrices, outside autocast
        if self._kernels.half is not None and (func in _HALVED or is_product):
            args, kwargs = tree_map(self._half, args), tree_map(self._half, kwargs)
        if func is F.scaled_dot_product_attention and (self._kernels.on_gpu or not _dropout_of(*args, **kwargs)):
            return _FusedAttention.apply(*_inputs_of(*args, **kwargs))
        if func is F.scaled_dot_product_attention:
            return _DroppedAttention.apply(*_inputs_of(*args, **kwargs))
        if func is computed_again and (self._kernels.on_gpu or self._kernels.half is not None):
            x, weight, bias, activation, p = args
            with self:
                return F.linear(F.dropout(activation(x), p), weight, bias)
        if self._kernels.on_gpu and func is F.dropout:
            return _dropped(*args, **kwargs)
        return func(*args, **kwargs)

    def _half(self, value: Any) -> Any:
        """As autocast does it: a weight that learns is brought to half precision once."""
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not isinstance(value, nn.Parameter):
            return value.to(self._kernels.half)
        if not value.requires_grad:
            return value.to(self._kernels.half)
        if id(value) not in self._halves:
            self._halves[id(value)] = value.to(self._kernels.half)
        return self._halves[id(value)]


class _DroppedAttention(torch.autograd.Function):
    """Keeps its inputs, a byte for each weight, and small weights, as `AttentionWithDropout` does on a CPU."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, is_allowed: Tensor | None) -> Tensor:  # noqa: ARG004  # as the one below
        weight = _wide(query) @ _wide(key).transpose(-2, -1)
        kept = weight if keeps_weights(query) else None
        ctx.save_for_backward(query, key, value, torch.empty_like(weight, dtype=torch.uint8), kept)
        mixed: Tensor = (weight @ _wide(value)).to(query.dtype)
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, _, weight = ctx.saved_tensors
        query, key, value, gradient = map(_wide, (query, key, value, gradients[0]))
        if weight is None:
            weight = query @ key.transpose(-2, -1)
        of_score = (gradient @ value.transpose(-2, -1)) * weight
        found = (of_score @ key, of_score.transpose(-2, -1) @ query, weight.transpose(-2, -1) @ gradient)
        return (*(one.to(gradients[0].dtype) for one in found), None)


class _FusedAttention(torch.autograd.Function):
    """Keeps its inputs, its output and a number for each row, as fused kernels do; the matrix of scores is not kept."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, is_allowed: Tensor | None) -> Tensor:
        *rows, heads, length, _ = query.shape
        out = query.new_empty((*rows, length, heads, value.shape[-1])).transpose(-2, -3)  # so their heads join as views
        rows_sum = query.new_empty(query.shape[:-1], dtype=torch.float32)
        bias = is_allowed if is_allowed is None else query.new_empty(is_allowed.shape)  # torch makes numbers of masks
        ctx.save_for_backward(query, key, value, out, rows_sum, bias)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ARG004  # as autograd asks
        return (*(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3]), None)


class _SharedOut(ItemEncoder):
    """An item encoder some of whose items others encode: their vectors stand beside its own."""

    def __init__(self, encoder: ItemEncoder, num_items: int, parts: int, live: LiveBytes) -> None:
        super().__init__()
        self._encoder, self._num_items, self._parts, self._live = encoder, num_items, parts, live

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        return self._encoder.parts

    def fused_pairs(self, items: ItemVectors, text_P: Tensor, image_P: Tensor) -> Tensor:
        return self._encoder.fused_pairs(items, text_P, image_P)

    def forward(self, items: ItemInputs) -> ItemVectors:
        own: ItemVectors
        if self._parts == 1:
            own = self._encoder(items)
        else:
            self._live.row_parts = self._parts
            own = encode_in_parts(self._encoder, items, self._parts)
            self._live.row_parts = 1
        if items.num_items == self._num_items:
            return own

        def of_all(vectors: Tensor) -> Tensor:
            copies = -(-self._num_items // len(vectors))
            return torch.cat([vectors] * copies)[: self._num_items]

        return ItemVectors(
            of_all(own.fused_UD),
            {field: of_all(vectors) for field, vectors in own.cls_UD.items()},
            {field: of_all(has_U) for field, has_U in own.has_U.items()},
            {name: of_all(vectors) for name, vectors in own.streams_UD.items()},
            own.mask_D,
        )


def _batch(task: TrainingTask, size: StepSize, prefixes: frozenset[str]) -> Batch:
    """A batch of these sizes on the meta device; every item has all that the model reads."""
    with torch.device("meta"):
        index_BS = torch.zeros((size.users, size.positions), dtype=torch.int64)
        even = 1 + max(1, round(size.filled * (size.positions - 1)))
        length_B = HostArray(lengths_like(size.windows or (even,), size.users))
        windows = Windows(index_BS, torch.ones_like(index_BS, dtype=torch.bool), length_B=length_B)
        passes = {request: _pass(request, drawn, windows, size) for request, drawn in task.requests.passes.items()}
        users_B = torch.zeros(size.users, dtype=torch.int64)
        windows = dataclasses.replace(windows, passes=passes, user_index_B=users_B)
        items = item_inputs(task.recommender, size.encoded, size.texts or (size.tokens,), prefixes)
        return Batch(items, windows, log_q_U=torch.zeros(size.items))


def _pass(request: WindowRequest, drawn: frozenset[DrawnNegatives], windows: Windows, size: StepSize) -> WindowPass:
    """A pass over windows on the meta device."""
    plain = windows.next_items
    if request.reads_last:
        index_BS, is_valid_BS = windows.item_index_BS, windows.is_valid_BS
        is_masked_BS = is_valid_BS.clone() if isinstance(request, Masked) else None
        plain = WindowPass(index_BS, is_valid_BS, index_BS, is_valid_BS.clone(), is_masked_BS, windows.length_B)
    elif isinstance(request, Noised):
        index_BL = plain.item_index_BL.clone()
        plain = dataclasses.replace(plain, item_index_BL=index_BL, noise_BL=index_BL.clone())
    shape = plain.item_index_BL.shape
    if isinstance(request, Shown):
        index_BC = torch.zeros((size.users, size.candidates), dtype=torch.int64)
        is_shown_BC = torch.ones_like(index_BC, dtype=torch.bool)
        plain = dataclasses.replace(plain, candidates=Candidates(index_BC, is_shown_BC, is_shown_BC.clone()))
    negatives = {one: torch.zeros((*shape, one.count), dtype=torch.int64) for one in drawn}
    return dataclasses.replace(plain, negative_index_BLC=negatives)


def _tensors(value: Any) -> list[Tensor]:
    """All tensors of a contract."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for entry in value.values() for tensor in _tensors(entry)]
    if dataclasses.is_dataclass(value):
        return [tensor for field in dataclasses.fields(value) for tensor in _tensors(getattr(value, field.name))]
    return []


def _inputs_of(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any
) -> tuple[Tensor | None, ...]:
    """Of scaled_dot_product_attention, what is kept."""
    return query, key, value, attn_mask


def _dropout_of(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, dropout_p: float = 0.0, *_: Any, **__: Any
) -> float:
    del query, key, value, attn_mask  # only their places matter
    return dropout_p


def _dropped(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:  # noqa: ARG001  # torch's
    return torch.native_dropout(x, p, train=True)[0] if training and p > 0 else x


def _go_back(loss: Tensor) -> None:
    """`loss.backward()` under the function mode that is on, so that what is computed once more is computed alike."""
    engine: Any = torch.autograd.Variable._execution_engine
    engine.run_backward(
        (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def _hooked(parameter: Tensor) -> Any:
    """Let its gradient go as soon as it is whole; what undoes this."""

    def let_go(whole: Tensor) -> None:
        whole.grad = None

    return parameter.register_post_accumulate_grad_hook(let_go)  # type: ignore[no-untyped-call]  # untyped in torch


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16) else value
