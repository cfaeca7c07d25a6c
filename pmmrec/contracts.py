"""The types that cross a boundary between rooms, and the letters that name their shapes."""
# B users, S window positions, L = S - 1 inputs, U distinct items of a batch, N items of a catalogue, D width,
# R rows given to one encoder (the items that have its field), K tokens of all its rows, T tokens of one,
# C colour channels, H height, W breadth.

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self

from pmmrec.modality import FieldSpec as FieldSpec  # noqa: PLC0414 - these are contracts as well
from pmmrec.modality import IdSpec as IdSpec  # noqa: PLC0414
from pmmrec.modality import Modality as Modality  # noqa: PLC0414
from pmmrec.modality import PixelSpec as PixelSpec  # noqa: PLC0414
from pmmrec.modality import TextSpec as TextSpec  # noqa: PLC0414
from pmmrec.modality import ValueSpec as ValueSpec  # noqa: PLC0414
from pmmrec.nodes import GraphView as GraphView  # noqa: PLC0414
from pmmrec.nodes import ItemVectors as ItemVectors  # noqa: PLC0414
from pmmrec.nodes import Nodes as Nodes  # noqa: PLC0414
from pmmrec.packing import HostArray, Ints, Packing, packing_of, sent
from pmmrec.requests import WindowRequest
from pmmrec.windows import Candidates as Candidates  # noqa: PLC0414
from pmmrec.windows import ItemPlaces as ItemPlaces  # noqa: PLC0414
from pmmrec.windows import Places as Places  # noqa: PLC0414
from pmmrec.windows import WindowPass as WindowPass  # noqa: PLC0414
from pmmrec.windows import Windows as Windows  # noqa: PLC0414

_T = TypeVar("_T")

SIZES = ("users", "slots", "items_encoded")  # of a batch, see `Batch.sizes`


def to_device(value: _T, device: torch.device | str) -> _T:
    """A copy of a contract (or of a mapping of them) whose tensors live on `device`."""
    moved: Any = value
    if isinstance(value, Tensor):
        moved = sent(value, torch.device(device))
    elif isinstance(value, Mapping):
        moved = {name: to_device(entry, device) for name, entry in value.items()}
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        entries = {f.name: to_device(getattr(value, f.name), device) for f in dataclasses.fields(value)}
        moved = dataclasses.replace(value, **entries)
    result: _T = moved
    return result


@dataclass(frozen=True)
class TokenInputs:
    """Texts of the items that have one, longer ones first. R is never 0: a row stands in when no item has a text."""

    token_id_K: Tensor  # int64, the tokens of all texts, one text after another
    packing: Packing  # where each text lies in K
    item_index_R: HostArray  # int64, places in U; U itself for a row that stands in

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]]) -> Self:
        """The inputs of items of which each has a text, given as token ids."""
        packing, order_R = packing_of(np.array([len(text) for text in texts]))
        token_ids = [token_id for row in order_R.tolist() for token_id in texts[row]]
        return cls(torch.tensor(token_ids, dtype=torch.int64), packing, HostArray(order_R))


@dataclass(frozen=True)
class PixelInputs:
    """Images of the items that have one. R is never 0: a grey image stands in when no item has one."""

    pixels_RCHW: Tensor  # uint8, 0..255; the encoder scales and normalises on its own device
    item_index_R: HostArray  # int64, places in U; U itself for a row that stands in


@dataclass(frozen=True)
class PrefixSlots:
    """Where the kept states of items lie, before they are fetched. R is never 0: slot -1 stands in."""

    domain_R: Tensor  # int64, which domain of the run
    slot_R: Tensor  # int64, place in that domain's table, longer texts first; -1: a state of zeros
    item_index_R: HostArray  # int64, places in U; U itself for a row that stands in


@dataclass(frozen=True)
class PrefixInputs:
    """What the frozen part of an encoder says of items, in place of their token ids or pixels."""

    state: Tensor  # floating point: (K, H), a state for each token of all texts; (R, ...) of one shape for others
    packing: Packing | None  # where each text lies in K; None for images and pooled texts
    item_index_R: HostArray  # int64, places in U; U itself for a row that stands in


@dataclass(frozen=True)
class StoredInputs:
    """Stored features of the items that have one. R is never 0: zeros stand in when no item has one."""

    vector_RF: Tensor  # floating point, as stored; (R, F), or (R, T, F) for features of several vectors
    item_index_R: HostArray  # int64, places in U; U itself for a row that stands in


@dataclass(frozen=True)
class ValueInputs:
    """Values of an attribute of the items that have one. R is never 0: key 0 stands in when no item has one."""

    key_R: Tensor  # int64, stands for the value in every domain
    item_index_R: HostArray  # int64, places in U; U itself for a row that stands in


FieldInputs: TypeAlias = TokenInputs | PixelInputs | PrefixSlots | PrefixInputs | StoredInputs | ValueInputs


class Prefix(Protocol):
    """The part of an encoder below its lowest trainable block: a pure function of the item."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever any state could change: with weights, configuration and preprocessing."""
        ...

    @property
    def is_pooled(self) -> bool:
        """Whether a text has one state, whatever its length."""
        ...

    def states(self, inputs: TokenInputs | PixelInputs) -> Tensor:
        """States of the inputs' rows, as `PrefixInputs.state` holds them; float32, without gradients."""
        ...

    def at_cut(self, inputs: TokenInputs | PixelInputs) -> PrefixInputs:
        """Rows as they enter above this part."""
        ...


@dataclass(frozen=True)
class ItemInputs:
    """Distinct items, ready to be encoded: each occurs once.

    A field is something that an item can be read by: `text`, `image`, a stored feature by its name, or its id, which is
    `row_U` itself.
    """

    domain_U: Tensor  # int64, which domain of the run
    row_U: Tensor  # int64, row in that domain's items.arrow
    has_U: Mapping[str, Tensor]  # bool, by field; holds exactly the fields that the model reads
    fields: Mapping[str, FieldInputs] = field(default_factory=dict)  # those but the id; none where vectors are computed
    draw: Tensor | None = (
        None  # int64 scalar, the same in all processes: decides what is hidden of items or graph; None: nothing
    )

    @property
    def num_items(self) -> int:
        return self.row_U.shape[0]


@dataclass(frozen=True)
class GlobalItems:
    """The items of a step that all processes encode together, each item by one process.

    U are then the distinct items of all windows of the step: item i is encoded by process i % world. A process without
    any encodes item 0 once more, and nobody asks for that vector.
    """

    num_users: int  # of all processes; process r has the r-th of as many spans, the longer ones first
    num_slots_U: Tensor  # int64, valid slots of each item in the windows of all processes
    has_U: Mapping[str, Tensor]  # bool, by field; holds exactly the fields that the model reads


@dataclass(frozen=True)
class Batch:
    """One step's input: distinct items and the windows over them."""

    items: ItemInputs  # with `global_items`: those that this process encodes
    windows: Windows
    log_q_U: Tensor | None = None  # float32, log of the expected slots of each item in a batch of this size
    user_id: tuple[str, ...] = field(default=())  # "domain/user" for messages, in the order of B
    global_items: GlobalItems | None = None  # None: the windows are over `items`, and negatives come from them alone
    more: tuple[Batch, ...] = ()  # the rest of the step, where its users pass in parts, each with its own negatives
    unit: str = "users"  # what its examples are called

    @property
    def device(self) -> torch.device:
        return self.windows.is_valid_BS.device

    def sizes(self) -> dict[str, Tensor]:
        """The figures named in `SIZES`, each a scalar on the device of the batch: users, filled slots, items encoded.

        Nothing is copied to a GPU: the host would wait until the device has finished all earlier work.
        """
        num_slots = self.windows.is_valid_BS.sum().float()
        if self.windows.candidates is not None:
            num_slots = num_slots + self.windows.candidates.is_shown_BC.sum()
        num_users, num_items = len(self.windows.is_valid_BS), self.items.num_items
        sizes = num_slots.new_full((), num_users), num_slots, num_slots.new_full((), num_items)
        return dict(zip(SIZES, sizes, strict=True))

    def describe(self) -> str:
        """How large it is, for messages."""
        num_users, num_positions = self.windows.is_valid_BS.shape
        candidates = self.windows.candidates
        num_inputs = num_positions - (candidates is None)
        inputs = f", {num_inputs} inputs" if num_inputs else ""
        shown = "" if candidates is None else f", {candidates.is_shown_BC.shape[1]} candidates"
        return f"{num_users} {self.unit}{inputs}{shown} and {self.items.num_items} items"


@dataclass(frozen=True)
class TokenStates:
    """What one encoder says of R items: a vector for each token, and one for the whole."""

    token_KD: Tensor  # without the first token (cls), where there is one
    start_R: Ints  # on the host: where the tokens of each item begin in K; they lie one after another
    length_R: Ints  # on the host: how many tokens each item has; may be 0
    cls_RD: Tensor
    has_R: NDArray[np.bool_] | None = None  # on the host: which items have the field; None: those with tokens
    first_RD: Tensor | None = None  # the first token, which is none of the above; None: the encoder has no cls token

    @classmethod
    def of_wholes(cls, whole_RD: Tensor) -> Self:
        """States of items of which nobody reads the tokens."""
        none_R = np.zeros(len(whole_RD), dtype=np.int64)
        return cls(whole_RD[:0], none_R, none_R, whole_RD)

    @property
    def is_there_R(self) -> NDArray[np.bool_]:
        """Which items have the field, on the host."""
        return self.length_R > 0 if self.has_R is None else self.has_R

    @classmethod
    def of_even(cls, token_RTD: Tensor, cls_RD: Tensor, first_RD: Tensor | None = None) -> Self:
        """States of items that have equally many tokens."""
        num_rows, length = token_RTD.shape[:2]
        start_R, length_R = np.arange(num_rows) * length, np.full(num_rows, length)
        return cls(token_RTD.flatten(0, 1), start_R, length_R, cls_RD, first_RD=first_RD)

    def of_item(self, row: int) -> Tensor:
        """The vectors of the tokens of one item, `(T, D)`."""
        return self.token_KD[self.start_R[row] : self.start_R[row] + self.length_R[row]]


@dataclass(frozen=True)
class History:
    """What users touched, as a user encoder reads it: left-padded vectors of items, the most recent last."""

    item_BLD: Tensor  # zeros where padding or masked
    is_valid_BL: Tensor  # bool, which positions hold an item, masked ones among them
    streams_BLD: Mapping[str, Tensor] = field(default_factory=dict)  # named extra vectors of the items
    is_masked_BL: Tensor | None = None  # bool, positions whose item is hidden; None: no position
    user_index_B: Tensor | None = None  # int64, among the users of all domains of the run
    user_BD: Tensor | None = None  # vectors of these users as a graph gave them; None: there is no graph
    length_B: HostArray | None = None  # positions of each user that hold an item; None: as the mask says
    mask_D: Tensor | None = None  # what stands for a hidden item; None: the user encoder's own vector
    last_alone: bool = False  # only the state at the last position is read: an encoder may leave out the others

    @classmethod
    def of(
        cls,
        items: ItemVectors,
        item_index_BL: Tensor,
        is_valid_BL: Tensor,
        is_masked_BL: Tensor | None = None,
        user_index_B: Tensor | None = None,
        user_MD: Tensor | None = None,
        length_B: HostArray | None = None,
    ) -> Self:
        """Histories given as rows of `items`; `user_MD`: the vectors of all users that a graph gave."""
        user_BD = None
        if user_MD is not None and user_index_B is not None:
            user_BD = F.embedding(user_index_B.to(user_MD.device), user_MD)
        is_shown_BL = is_valid_BL if is_masked_BL is None else is_valid_BL & ~is_masked_BL

        def gathered(vectors_UD: Tensor) -> Tensor:
            return torch.where(is_shown_BL[:, :, None], F.embedding(item_index_BL, vectors_UD), 0.0)

        streams_BLD = {name: gathered(vectors_UD) for name, vectors_UD in items.streams_UD.items()}
        item_BLD, mask_D = gathered(items.fused_UD), items.mask_D
        return cls(item_BLD, is_valid_BL, streams_BLD, is_masked_BL, user_index_B, user_BD, length_B, mask_D)


@dataclass(frozen=True)
class UserStates:
    """What a user encoder says of users at every position of their histories, or of the last one alone (L = 1)."""

    hidden_BLD: Tensor  # of padding: anything
    is_valid_BL: Tensor  # bool


@dataclass(frozen=True)
class Query:
    """The K states for which items are scored: a position of a user each."""

    states: UserStates
    user_K: Tensor  # int64, rows of the states
    position_K: Tensor  # int64

    @classmethod
    def at(cls, states: UserStates, places: Places) -> Self:
        """The states at some positions."""
        return cls(states, places.user_K, places.position_K)

    @classmethod
    def last(cls, states: UserStates) -> Self:
        """The last position of every user: the states that rank."""
        return cls.at(states, Places.last(states.is_valid_BL))

    def __len__(self) -> int:
        return len(self.user_K)

    def __getitem__(self, some: slice) -> Self:
        return dataclasses.replace(self, user_K=self.user_K[some], position_K=self.position_K[some])

    @property
    def hidden_KD(self) -> Tensor:
        return self.states.hidden_BLD[self.user_K, self.position_K]


class Score(Protocol):
    """Scores of items for queries, as the model's scorer gives them."""

    def __call__(self, query: Query, candidate_KC: Tensor | None = None, stream: str | None = None) -> Tensor:
        """`(K, U)` of all items of the step, or `(K, C)` of the candidates of each query, given by places in U.

        `stream`: the vectors of this stream stand for the items.
        """


class Peers(Protocol):
    """The users of all processes of a step."""

    @property
    def first(self) -> int:
        """The place of this process's first user among all of them."""

    def of_all(self, rows_BD: Tensor) -> Tensor:
        """Rows of all users, given those of this process; gradients flow to whoever gave them. All must call it."""


@dataclass(frozen=True)
class Views:
    """All that an objective may see of one step. Objectives never see a model."""

    items: ItemVectors
    windows: Windows
    states: Mapping[WindowRequest, UserStates]  # of each pass; the last alone where no objective reads others
    score: Score
    log_q_U: Tensor | None = None
    num_slots_U: Tensor | None = None  # int64, slots of each item in all processes; None: the windows are all there are
    peers: Peers | None = None  # None: the users of the windows are all there are
    unpropagated: Nodes | None = None  # None: no objective asks for `View.NODES`, or vectors are not at hand
    propagated: Nodes | None = None  # what the graph made of them; None likewise
    draw: Tensor | None = None  # as that of `ItemInputs`
    fuse: Callable[[Tensor, Tensor], Tensor] | None = None  # texts and images, `(P,)` places in U each -> `(P, D)`

    def read(self, request: WindowRequest, objective: str) -> tuple[WindowPass, UserStates]:
        """A pass and its states. ValueError that names the objective where the batch does not hold the pass."""
        if request not in self.states or request not in self.windows.passes:
            raise ValueError(f"{objective}: the views hold no pass {request!r}; ask for it in the requests")
        return self.windows.passes[request], self.states[request]


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
