"""The types that cross a boundary between rooms, and the letters that name their shapes."""
# B users, S window positions, L = S - 1 inputs, U distinct items of a batch, N items of a catalogue, D width,
# R rows given to one encoder (the items that have its modality), T text tokens, P image tokens,
# C colour channels, H height, W breadth.

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from pmmrec.modality import Modality as Modality  # noqa: PLC0414 - these two are contracts as well
from pmmrec.modality import PixelSpec as PixelSpec  # noqa: PLC0414

_T = TypeVar("_T")


class View(str, Enum):
    """What an objective may ask for beyond item vectors and hidden states."""

    MODALITIES = "modalities"  # cls vectors of text and of image
    CORRUPTED = "corrupted"  # a second pass of the user encoder over corrupted windows
    POPULARITY = "popularity"  # log of how often the sampler is expected to show each item
    CATALOGUE = "catalogue"  # the batch holds every item of the run's domains, not those of its windows alone


class Noise(int, Enum):
    """What corruption did to one input of a window; the classes of NID in this order."""

    UNCHANGED = 0
    SHUFFLED = 1
    REPLACED = 2


def to_device(value: _T, device: torch.device | str) -> _T:
    """A copy of a contract (or of a mapping of them) whose tensors live on `device`."""
    moved: Any = value
    if isinstance(value, Tensor):
        moved = value.to(device, non_blocking=True)
    elif isinstance(value, Mapping):
        moved = {name: to_device(entry, device) for name, entry in value.items()}
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        entries = {f.name: to_device(getattr(value, f.name), device) for f in dataclasses.fields(value)}
        moved = dataclasses.replace(value, **entries)
    result: _T = moved
    return result


class Tokenizer(Protocol):
    """What the data room needs of a text encoder's tokenizer."""

    max_tokens: int
    pad_token_id: int

    @property
    def fingerprint(self) -> str:
        """Changes whenever any text could get other tokens."""
        ...

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text with the special tokens, at most `max_tokens` each, without padding."""
        ...


@dataclass(frozen=True)
class TokenInputs:
    """Texts of the items that have one. R is never 0: a row for item 0 stands in when no item has a text."""

    token_id_RT: Tensor  # int64, right-padded to the longest row
    is_valid_RT: Tensor  # bool
    item_index_R: Tensor  # int64, places in U


@dataclass(frozen=True)
class PixelInputs:
    """Images of the items that have one. R is never 0: a grey image for item 0 stands in when no item has one."""

    pixels_RCHW: Tensor  # uint8, 0..255; the encoder scales and normalises on its own device
    item_index_R: Tensor  # int64, places in U


@dataclass(frozen=True)
class PrefixSlots:
    """Where the kept states of items lie, before they are fetched. R is never 0: slot -1 stands in."""

    domain_R: Tensor  # int64, which domain of the run
    slot_R: Tensor  # int64, place in that domain's table; -1: a state of zeros
    item_index_R: Tensor  # int64, places in U


@dataclass(frozen=True)
class PrefixInputs:
    """What the frozen part of an encoder says of items, in place of their token ids or pixels."""

    state_R: Tensor  # floating point: (R, T, H) right-padded for texts, (R, ...) of one shape for images
    is_valid_RT: Tensor  # bool; (R, 0) for images, which have no padding
    item_index_R: Tensor  # int64, places in U


class Prefix(Protocol):
    """The part of an encoder below its lowest trainable block: a pure function of the item."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever any state could change: with weights, configuration and preprocessing."""
        ...

    def states(self, inputs: TokenInputs | PixelInputs) -> Tensor:
        """States of the inputs' rows, as `PrefixInputs.state_R` holds them; float32, without gradients."""
        ...


@dataclass(frozen=True)
class ItemInputs:
    """Distinct items, ready to be encoded: each occurs once."""

    domain_U: Tensor  # int64, which domain of the run
    row_U: Tensor  # int64, row in that domain's items.arrow
    has_U: Mapping[Modality, Tensor]  # bool; holds exactly the modalities that the model reads
    text: TokenInputs | PrefixSlots | PrefixInputs | None = None  # None: the model reads no text
    image: PixelInputs | PrefixSlots | PrefixInputs | None = None  # None: the model reads no image

    @property
    def num_items(self) -> int:
        return self.row_U.shape[0]


@dataclass(frozen=True)
class Corruption:
    """Inputs of the second, corrupted pass over the same items. Padding keeps index 0 and label UNCHANGED."""

    item_index_BL: Tensor  # int64, places in U
    noise_BL: Tensor  # int64, values of Noise


@dataclass(frozen=True)
class Windows:
    """Left-padded windows of users over the items of the batch; the most recent item stands last."""

    item_index_BS: Tensor  # int64, places in U; 0 where padding
    is_valid_BS: Tensor  # bool
    corruption: Corruption | None = None

    @property
    def is_input_BL(self) -> Tensor:
        """Which inputs hold an item."""
        return self.is_valid_BS[:, :-1]

    @property
    def has_next_BL(self) -> Tensor:
        """Which inputs hold an item that is followed by another: the positions of DAP and NICL."""
        return self.is_valid_BS[:, :-1] & self.is_valid_BS[:, 1:]


@dataclass(frozen=True)
class Together:
    """What every process knows of a step whose items are encoded by all processes together, each item by one.

    U are then the distinct items of all windows of the step: item i is encoded by process i % world. A process without
    any encodes item 0 once more, and nobody asks for that vector.
    """

    num_users: int  # of all processes; process r has the r-th of as many spans, the longer ones first
    num_slots_U: Tensor  # int64, valid slots of each item in the windows of all processes
    has_U: Mapping[Modality, Tensor]  # bool; holds exactly the modalities that the model reads


@dataclass(frozen=True)
class Batch:
    """One step's input: distinct items and the windows over them."""

    items: ItemInputs  # with `together`: those that this process encodes
    windows: Windows
    log_q_U: Tensor | None = None  # float32, log of the expected slots of each item in a batch of this size
    user_id: tuple[str, ...] = field(default=())  # "domain/user" for messages, in the order of B
    together: Together | None = None  # None: the windows are over `items`, and negatives come from them alone
    more: tuple[Batch, ...] = ()  # the rest of the step, where its users pass in parts, each with its own negatives


@dataclass(frozen=True)
class TokenStates:
    """What one encoder says of R items: a vector for each token, and one for the whole."""

    tokens_RTD: Tensor  # without the token that cls_RD stands for
    is_valid_RT: Tensor  # bool
    cls_RD: Tensor


@dataclass(frozen=True)
class ItemVectors:
    """Items as the rest of the model sees them."""

    fused_UD: Tensor
    cls_UD: Mapping[Modality, Tensor] = field(default_factory=dict)  # zeros where the item lacks the modality
    has_U: Mapping[Modality, Tensor] = field(default_factory=dict)  # bool
    streams_UD: Mapping[str, Tensor] = field(default_factory=dict)  # named extra vectors of two-stream systems

    @property
    def is_readable_U(self) -> Tensor:
        """Which items have something that the model reads; all of them where items are known by id."""
        if not self.has_U:
            return torch.ones(len(self.fused_UD), dtype=torch.bool, device=self.fused_UD.device)
        return torch.stack(list(self.has_U.values())).any(dim=0)


class Peers(Protocol):
    """The users of all processes of a step."""

    @property
    def first(self) -> int:
        """The place of this process's first user among all of them."""
        ...

    def of_all(self, rows_BD: Tensor) -> Tensor:
        """Rows of all users, given those of this process; gradients flow to whoever gave them. All must call it."""
        ...


@dataclass(frozen=True)
class Views:
    """All that an objective may see of one step. Objectives never see a model."""

    items: ItemVectors
    windows: Windows
    hidden_BLD: Tensor
    corrupted_hidden_BLD: Tensor | None = None
    log_q_U: Tensor | None = None
    num_slots_U: Tensor | None = None  # int64, slots of each item in all processes; None: the windows are all there are
    peers: Peers | None = None  # None: the users of the windows are all there are


@dataclass(frozen=True)
class Term:
    """One objective's share of a step: its mean is sum / count, over all processes and accumulation steps."""

    sum: Tensor  # scalar, float32 or wider, carries gradients
    count: Tensor  # scalar, float32 or wider, no gradients; 0 when the step has nothing to say
    metrics: Mapping[str, Tensor] = field(default_factory=dict)  # name -> (2,) sum and count of a figure to log

    @property
    def mean(self) -> Tensor:
        """The loss of this step alone; 0 with a gradient of 0 where nothing was counted."""
        return self.sum / self.count.clamp(min=1)
