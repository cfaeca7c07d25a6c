"""Kinds of examples: what one draw of the sampler stands for."""
# N items of the domain, C items of an impression.

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, PlainSerializer

from pmmrec.data.splits import Split
from pmmrec.errors import RecipeError
from pmmrec.family import Family
from pmmrec.requests import Holding, Requests
from pmmrec.settings import PartConfig

if TYPE_CHECKING:
    from pmmrec.data.examples.windows import WindowConfig

NOBODY = -1  # in place of a user, where examples have none


class Impression(NamedTuple):
    """The items that a user was shown at once."""

    item_C: NDArray[np.int32]  # item rows, all different
    is_clicked_C: NDArray[np.bool_]


class Examples(ABC):
    """The examples of one domain, numbered from 0: of its training part, or of validation.

    Attributes:
        split: What of the domain is for training.
        last_alone_counts: Whether only the last item of an example counts as a target, as in validation.
        least_touched: How many items a user touched in training, at least, who has an example.
    """

    split: Split
    last_alone_counts: bool = False
    least_touched: int = 1

    @property
    def draws(self) -> bool:
        """Whether `items` reads its generator; to make one for each example takes time."""
        return True

    @property
    @abstractmethod
    def num_examples(self) -> int:
        """How many there are; an epoch with natural weights shows each once."""

    @property
    def warning(self) -> str | None:
        """What a user must know of them, such as users that are left out; None: nothing."""
        return None

    @abstractmethod
    def user(self, number: int) -> int:
        """The user that an example belongs to; NOBODY where examples have none."""

    @abstractmethod
    def items(self, number: int, generator: np.random.Generator) -> NDArray[np.int32]:
        """Item rows of an example, oldest first. `generator` decides what is random about it."""

    @abstractmethod
    def length(self, number: int) -> int:
        """How many items an example has."""

    def impression(self, number: int) -> Impression | None:
        """The candidates of an example; None where it has none."""
        del number
        return None

    @property
    def most_candidates(self) -> int:
        """The most candidates that an example has; 0 where there are none."""
        return 0

    @abstractmethod
    def expected_slots(self) -> NDArray[np.float64]:
        """In how many slots each item is expected when every example is shown once, `(N,)`."""

    def touched(self, user: int) -> NDArray[np.int32]:
        """Item rows that may not be drawn as negatives of a user."""
        return self.split.train(user)

    def users_who_touched(self, num_items: int) -> Iterator[int]:
        """Users of the examples who touched so many items or more, each time counted."""
        for first, lengths in self.split.train_lengths():
            yield from (first + np.flatnonzero(lengths >= max(num_items, self.least_touched))).tolist()


class ExampleKind(ABC):
    """What one example of training is. Built as `part_class(config, window)`, with the recipe's `data.window`.

    Attributes:
        holds: What an example holds; objectives and user encoders that need more are refused.
        reads_window: Whether `data.window` changes anything.
        of_history: The names of its settings that have no effect where the user encoder reads no history.
        unit: What examples are called in the log.
    """

    holds: frozenset[Holding]
    reads_window: bool = False
    of_history: frozenset[str] = frozenset()
    unit: str = "users"

    def __init__(self, config: PartConfig, window: WindowConfig) -> None:
        self.config, self.window = config, window

    @property
    @abstractmethod
    def longest(self) -> int:
        """The most items that an example can have, candidates left out."""

    @property
    def num_inputs(self) -> int:
        """The most inputs of a user encoder that an example gives."""
        return self.longest if Holding.CANDIDATES in self.holds else self.longest - 1

    @property
    def num_blank(self) -> int:
        """Places without an item before those of an example: one, where a target has no history before it."""
        return int(Holding.TARGET in self.holds and Holding.HISTORY not in self.holds)

    def refuse_unheld(self, requests: Requests, objective: str = "an objective") -> None:
        """RecipeError where what an objective asks for needs more than an example holds."""
        for need, asked in requests.needs.items():
            if need not in self.holds:
                others = " or ".join(entry.name for entry in example_kinds if need in entry.part_class.holds)
                raise RecipeError(
                    f"data.examples: {self.config.type} have no {need.value}, but {objective} reads {asked}; choose "
                    f"data.examples={others}, or another objective"
                )

    @abstractmethod
    def training(self, split: Split) -> Examples:
        """The examples of one domain's training part. RecipeError where the split has none of this kind."""

    @abstractmethod
    def validation(self, split: Split, num_users: int | None) -> Examples:
        """The examples that a validation loss is computed on: of `num_users`, always the same ones, or of all.

        Raises DataError where there are none.
        """


example_kinds: Family[ExampleKind] = Family("kind of examples", home=__name__)


def kind_of(config: PartConfig, window: WindowConfig) -> ExampleKind:
    """The kind of examples that `config` asks for."""
    return example_kinds.part_class(config)(config, window)


def _from_name(value: Any) -> Any:
    """Settings, where only the name of a kind is given."""
    return {"type": value} if isinstance(value, str) else value


def _to_name(config: PartConfig) -> str | Mapping[str, Any]:
    """The name alone where all settings are the usual ones."""
    chosen = config.model_dump(mode="json", exclude_defaults=True, exclude={"type"})
    return config.model_dump(mode="json") if chosen else config.type


if TYPE_CHECKING:
    ExamplesField: TypeAlias = PartConfig
else:
    ExamplesField = Annotated[example_kinds.field, BeforeValidator(_from_name), PlainSerializer(_to_name)]
