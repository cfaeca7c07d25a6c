"""Models: parts composed into a recommender."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from pmmrec.contracts import FieldSpec, ItemInputs, ItemVectors, Modality, Query
from pmmrec.encoders import Encoder, EncoderConfig
from pmmrec.errors import RecipeError
from pmmrec.family import Family
from pmmrec.requests import Hiding
from pmmrec.settings import PartConfig


class ItemEncoderConfig(PartConfig):
    """Settings of an item encoder."""

    @property
    def encoders(self) -> Mapping[str, EncoderConfig]:
        """The encoders with a backbone, by the name of their part in a checkpoint."""
        return {}

    @property
    def fields(self) -> frozenset[str]:
        """The fields that the item encoder reads."""
        return frozenset()

    @property
    def knows_ids(self) -> bool:
        """Whether it has a row for each item of the domains that it was built for, and serves these alone."""
        return not self.fields

    @property
    def reads_mask_text(self) -> bool:
        """Whether it can encode a text alone, which then stands for hidden items."""
        return False

    @property
    def reads_new_items(self) -> bool:
        """Whether it can say something of an item of which only texts, an image and further columns are known."""
        return not self.knows_ids

    @property
    def texts(self) -> tuple[str, ...]:
        """The fields that are read as texts; a tokenizer that starts with a run is learned from them."""
        return (Modality.TEXT.value,)

    @property
    def for_objectives(self) -> Mapping[str, str]:
        """Settings that serve a training stream alone: its name, by the path of the setting."""
        return {}

    def keeping(self, parts: Collection[str]) -> ItemEncoderConfig:
        """The settings without the parts that are not named. ValueError where that leaves nothing to read."""
        del parts  # an encoder of one part has nothing to do without
        return self


class ItemEncoder(nn.Module, ABC):
    """What an item is, as vectors. Built as `part_class(config, context)`.

    Attributes:
        asked: The training streams that objectives ask for; it gives them, and reads what they need.
        graph_streams: The streams that the propagation reads, in training and in ranking. An encoder whose streams may
            be read by it or by objectives has these alone among `streams`.
        mask_text: In training it encodes this text as one more item and gives its vector as `ItemVectors.mask_D`.
            None: the user encoder has a vector of its own for hidden items.
        gives_vectors: False: nobody reads vectors of items, and zeros stand for them.
    """

    asked: frozenset[str] = frozenset()
    graph_streams: frozenset[str] = frozenset()
    mask_text: str | None = None
    gives_vectors: bool = True

    @property
    def reads(self) -> Mapping[str, FieldSpec]:
        """How it reads each of its fields, by name; nothing where items are known by id."""
        return {}

    @property
    def fields(self) -> frozenset[str]:
        """The names of the fields that it reads."""
        return frozenset(self.reads)

    @property
    def knows_ids(self) -> bool:
        """Whether it has a row for each item of the domains that it was built for, and serves these alone."""
        return not self.fields

    @property
    def cls_fields(self) -> frozenset[str]:
        """The fields of which it gives a vector each (`cls_UD`), beside an item's own."""
        return frozenset()

    @property
    def streams(self) -> Mapping[str, int]:
        """The widths of the vectors that it gives beside an item's own, by name."""
        return {}

    @property
    def training_streams(self) -> Mapping[str, int]:
        """The widths of further streams that it can give to objectives, by name; no ranking reads them."""
        return {}

    @property
    @abstractmethod
    def parts(self) -> Mapping[str, nn.Module]:
        """The parts that are saved and transferred alone, by their name in a checkpoint."""

    @property
    def encoders(self) -> Mapping[str, Encoder]:
        """The encoders with a backbone, by what they read."""
        return {}

    @property
    def warnings(self) -> list[str]:
        """Where the folders of its backbones and what is done here differ."""
        found = [warning for encoder in self.encoders.values() for warning in encoder.warnings]
        return list(dict.fromkeys(found))  # an encoder may read several fields

    def begin_epoch(self, frozen: Collection[str]) -> None:
        """Called before each epoch of training, in which the parts named in `frozen` do not learn."""
        del frozen

    def end_epoch(self) -> None:
        """Called after each epoch, before it is validated and kept, in every process alike."""

    def keep_states(self) -> None:
        """Called before weights are sharded, where items will come as kept states: keep that of `mask_text` too."""

    def mask_vector(self) -> Tensor | None:
        """The vector `(D,)` of `mask_text`; None where there is none, or where it no longer changes."""
        return None

    def restore(self, hiding: Hiding) -> nn.Module:
        """From now on give, as a training stream of one number, the loss of guessing what is hidden of each item.

        Returns the head that guesses, which is no part of the item encoder; the objective trains it. RecipeError where
        nothing of the kind can be hidden here.
        """
        raise RecipeError(
            f"model.item_encoder: {type(self).__name__} has no encoder from which {hiding.view.value} could be hidden; "
            "use towers with one that reads them"
        )

    def restoring(self) -> Sequence[nn.Module]:
        """What guessing hidden words and patches reads of this module, beside the heads."""
        return ()

    def fused_pairs(self, items: ItemVectors, text_P: Tensor, image_P: Tensor) -> Tensor:
        """The vectors `(P, D)` of the texts of some items with the images of others, given by places in U.

        `items` hold the stream `tokens`. The host waits for the places.
        """
        raise NotImplementedError

    @abstractmethod
    def forward(self, items: ItemInputs) -> ItemVectors:
        """Vectors of U distinct items, each encoded once."""


class Scorer(nn.Module, ABC):
    """How well items suit users, given the states of the users. Built as `part_class(config, context)`.

    Attributes:
        reads_counts: Whether `ranked` reads how often items were touched. Where not, items with the same vectors score
            the same.
        reads_histories: Whether a score depends on more than the queried state: on the states before it.
        streams: Names of the streams of items that it reads beside their vectors.
        unit_states: Whether queried states are divided by their norms before they are multiplied with keys.
    """

    reads_counts: bool = False
    reads_histories: bool = False
    streams: frozenset[str] = frozenset()
    unit_states: bool = False

    @abstractmethod
    def forward(self, query: Query, items: ItemVectors, candidate_KC: Tensor | None = None) -> Tensor:
        """Scores, larger is better: `(K, N)` of all items, or `(K, C)` of the candidates, given by rows of `items`.

        Training minimises objectives of these scores. It must run on meta tensors.
        """

    def ranked(self, score_KN: Tensor, count_N: Tensor | None) -> Tensor:
        """What a ranking sorts by: the scores with what is known of all items.

        `count_N`: how often each item was touched, as far as is known.
        """
        del count_N
        return score_KN

    def keys(self, items: ItemVectors, count_N: Tensor | None) -> Tensor | None:
        """The items as keys `(N, D)` or `(N, D + 1)`, for a search by inner product.

        The inner product of a key with what `asked` gives for a state, which a 1 follows where keys are one longer, is
        the ranked score. None: the score is no such product.
        """
        del items, count_N
        return None

    def asked(self, hidden_KD: Tensor) -> Tensor:
        """Queried states `(K, D)` as they are multiplied with keys."""
        return as_asked(hidden_KD, unit_states=self.unit_states)


def as_asked(hidden_KD: Tensor, *, unit_states: bool) -> Tensor:
    """States as a scorer with these `unit_states` multiplies them with keys."""
    return F.normalize(hidden_KD, dim=1) if unit_states else hidden_KD


item_encoders: Family[ItemEncoder] = Family("item encoder", home=__name__, group="items")
scorers: Family[Scorer] = Family("scorer", home=__name__, group="scorer")
