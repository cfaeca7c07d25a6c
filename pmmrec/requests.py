"""What an objective asks for: passes of the user encoder over windows, drawn negatives, and further views."""
# S window positions, L inputs of a pass.

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from pmmrec.settings import Config


class Holding(str, Enum):
    """What an example of training may hold."""

    USER = "user"
    HISTORY = "history"  # items in the order in which the user touched them
    TARGET = "target"  # an item that the user touched, after the history if there is one
    CANDIDATES = "candidates"  # items that the user was shown, some of which were clicked


class Noise(int, Enum):
    """What corruption did to one input of a window; the classes of NID in this order."""

    UNCHANGED = 0
    SHUFFLED = 1
    REPLACED = 2


class View(str, Enum):
    """What an objective may ask for beside item vectors and passes over windows."""

    MODALITIES = "modalities"  # cls vectors of text and of image
    ORDER = "order"  # which item of a window comes after which
    POPULARITY = "popularity"  # log of how often the sampler is expected to show each item
    CATALOGUE = "catalogue"  # the batch holds every item of the run's domains, not those of its windows alone
    REWORDED = "reworded"  # item vectors from a second text, as a stream of this name, in training
    SYNTHETIC = "synthetic"  # vectors of items that do not exist, one made from each item, likewise
    WORDS = "words"  # the loss of each item's hidden words, guessed from the others, as a stream of one number
    PATCHES = "patches"  # the loss of the hidden patches of each item's image, likewise
    TOKENS = "tokens"  # all that a fusion reads of each item, as a stream, to fuse a text with another item's image
    NODES = "nodes"  # vectors of items and of users known by id, before a graph propagates them and after
    GRAPH_VIEWS = "graph_views"  # the same as graphs give them that lack edges or nodes, drawn anew in every step


class WindowRequest(Config):
    """A pass of the user encoder over every window of a batch. Equal requests are one pass.

    Attributes:
        needs: What an example must hold for it.
        reads_last: Whether the last item of a window is among the inputs.
        hides_targets: Whether a user encoder that reads the whole window still sees none of the items to be predicted.
    """

    needs: ClassVar[Holding] = Holding.HISTORY
    reads_last: ClassVar[bool] = False
    hides_targets: ClassVar[bool] = False


class NextItems(WindowRequest):
    """The window as it is: all items but the last are inputs (L = S - 1), and each input's target is the next item."""

    needs = Holding.TARGET


class Noised(WindowRequest):
    """The inputs of `NextItems` with noise (PMMRec's NID, eq. 10): some are shuffled, others are replaced."""

    shuffle: float = Field(default=0.15, ge=0, le=1, description="Mean share of a window's inputs that change places.")
    replace: float = Field(default=0.05, ge=0, le=1, description="Mean share of a window's inputs that are replaced.")
    replace_from: Literal["domain", "batch"] = Field(
        default="domain",
        description="domain: by items of other users of the same domain (another domain is told by its style). "
        "batch: by items of any other user of the batch (paper).",
    )

    @model_validator(mode="after")
    def _check_room(self) -> Self:
        if self.shuffle + self.replace > 1:
            raise ValueError("shuffle and replace fall on different inputs; their sum must be at most 1")
        if not self.shuffle and not self.replace:
            raise ValueError(
                "shuffle and replace are both 0, which changes no input; raise one, or leave the objective out"
            )
        return self


class Masked(WindowRequest):
    """All items of the window (L = S), some of them masked, at least one; a masked item is its own target."""

    reads_last = True
    hides_targets = True

    share: float = Field(default=0.2, gt=0, le=1, description="Chance of each item to be masked.")


class Others(WindowRequest):
    """All items of the window (L = S); each is the target of the state at its place, which reads the others alone."""

    hides_targets = True
    reads_last = True


class Dropped(WindowRequest):
    """The inputs of `NextItems` without some of them, or read by other words; there are no targets."""

    share: float = Field(default=0.2, gt=0, lt=1, description="Chance of each input but the first to be left out.")
    reworded: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Chance of a window to keep all inputs, and to read them by their second text (UniSRec: 0.1).",
    )
    reworded_items: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Chance of each input of such a window to be read so; the rest stays (released UniSRec: 0.2).",
    )

    @model_validator(mode="after")
    def _rewords_something(self) -> Self:
        if not self.reworded and self.reworded_items != 1:
            raise ValueError("reworded_items: has no effect without reworded; leave it out")
        return self


class Shown(WindowRequest):
    """All items of the window (L = S), for the one state that ranks, and the candidates that it is to rank."""

    needs = Holding.CANDIDATES
    reads_last = True
    hides_targets = True

    num_not_clicked: int | None = Field(
        default=None, ge=1, description="So many candidates that were not clicked, drawn at each visit; null: all."
    )


NegativeWeight = Literal["uniform", "popularity"]


class DrawnNegatives(Config):
    """Items drawn for every target, that its user did not touch in training; each joins the items of the batch."""

    count: int = Field(default=1, ge=1, le=1000, description="Negatives of each target.")
    by: NegativeWeight = Field(
        default="uniform", description="popularity: in proportion to how often an item was touched in training."
    )
    per: Literal["position", "pair"] = Field(
        default="position",
        description="position: anew for every target (SASRec). pair: once an epoch for each user and item, so that an "
        "item that a user touched several times has the same negatives each time (BPR over pairs).",
    )


@dataclass(frozen=True)
class Hiding:
    """What of an item is hidden from its encoder, to be guessed from the rest."""

    view: View  # WORDS or PATCHES
    share: float
    normalize: bool = True  # of patches: each is guessed with mean 0 and variance 1


LOSSES_OF_ITEMS = frozenset({View.WORDS, View.PATCHES})
DRAWS_OF_ITEMS = LOSSES_OF_ITEMS | {View.TOKENS}
DRAWS = DRAWS_OF_ITEMS | {View.GRAPH_VIEWS}  # for these a batch says what is random about its items, or about the graph
STREAMS_OF_TRAINING = frozenset({View.REWORDED, View.SYNTHETIC}) | DRAWS_OF_ITEMS


@dataclass(frozen=True)
class Requests:
    """What one objective asks for, or all objectives of a task together."""

    passes: Mapping[WindowRequest, frozenset[DrawnNegatives]] = field(default_factory=dict)  # and for its targets
    views: frozenset[View] = frozenset()
    last_alone: frozenset[WindowRequest] = frozenset()  # passes of which nothing but the last state of a window is read
    drawn_for_last: frozenset[tuple[WindowRequest, DrawnNegatives]] = (
        frozenset()
    )  # for the last target of a window alone
    streams: frozenset[str] = (
        frozenset()
    )  # names of streams of items that are read, whether a ranking reads them or not

    @property
    def drawn(self) -> frozenset[DrawnNegatives]:
        """The kinds of negatives that are drawn for the targets of any pass."""
        return frozenset().union(*self.passes.values())

    @property
    def needs(self) -> Mapping[Holding, str]:
        """What an example must hold to serve them, and what of it is read, in words."""
        needs = {one.needs: f"{type(one).__name__} windows" for one in self.passes}
        return needs | ({Holding.HISTORY: "the order of its items"} if View.ORDER in self.views else {})

    @classmethod
    def of(
        cls,
        *windows: WindowRequest,
        negatives: DrawnNegatives | None = None,
        views: Iterable[View] = (),
        last_alone: bool = False,
        streams: Iterable[str] = (),
    ) -> Self:
        """Passes over windows, with `negatives` drawn for the targets of each, views, and streams of items.

        `last_alone`: of these passes the last state of each window is read and no other, so others need not be there,
        and negatives are drawn for the last target alone.
        """
        passes = dict.fromkeys(windows, frozenset(() if negatives is None else (negatives,)))
        last = cls(passes)._drawn if last_alone else frozenset()
        return cls(passes, frozenset(views), frozenset(windows if last_alone else ()), last, frozenset(streams))

    @classmethod
    def union(cls, several: Iterable[Requests]) -> Self:
        """All that is asked for, each thing once; the windows as they are come first."""
        passes: dict[WindowRequest, frozenset[DrawnNegatives]] = {}
        views: frozenset[View] = frozenset()
        whole: set[WindowRequest] = set()
        streams: frozenset[str] = frozenset()
        drawn_for_all: set[tuple[WindowRequest, DrawnNegatives]] = set()
        for requests in several:
            views, streams = views | requests.views, streams | requests.streams
            whole |= requests.passes.keys() - requests.last_alone
            drawn_for_all |= requests._drawn - requests.drawn_for_last
            for window, drawn in requests.passes.items():
                passes[window] = passes.get(window, frozenset()) | drawn
        in_order = dict(sorted(passes.items(), key=lambda entry: not isinstance(entry[0], NextItems)))
        return cls(in_order, views, frozenset(passes.keys() - whole), cls(passes)._drawn - drawn_for_all, streams)

    @property
    def asked_streams(self) -> frozenset[str]:
        """Names of the streams of items that are read, those that views stand for among them."""
        return self.streams | frozenset(view.value for view in self.views & STREAMS_OF_TRAINING)

    @property
    def _drawn(self) -> frozenset[tuple[WindowRequest, DrawnNegatives]]:
        return frozenset((window, one) for window, drawn in self.passes.items() for one in drawn)
