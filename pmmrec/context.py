"""What a part of a model is built with, beside its own settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmmrec.errors import RecipeError


@dataclass(frozen=True)
class Backbone:
    """Where an encoder finds its backbone: always a local folder."""

    folder: Path
    is_pretrained: bool  # False: only configuration and tokenizer are read, weights are drawn fresh


def _no_values(attribute: str) -> Mapping[int, int]:
    del attribute
    return {}


@dataclass(frozen=True)
class Catalogue:
    """The items and users of a domain, as parts must know them that have a row for each."""

    name: str
    num_items: int
    fingerprint: str  # of the item ids in order
    num_users: int = 0
    users_fingerprint: str = ""  # of the users and what they did, in order
    value_counts: Callable[[str], Mapping[int, int]] = field(default=_no_values, compare=False, repr=False)
    # How many items have each value of an attribute, by the number that stands for the value in every domain.


@dataclass(frozen=True)
class ItemFeature:
    """A stored vector of each item, as a graph of similar items reads it.

    `read` gives the vectors `(N, F)`, and which items have one `(N,)`.
    """

    fingerprint: str  # the SHA-256 of the stored vectors
    read: Callable[[], tuple[NDArray[Any], NDArray[np.bool_]]]


def _no_feature(name: str) -> ItemFeature:
    raise RecipeError(f"propagation: compares items by the feature {name}, and none is given to build it with")


@dataclass(frozen=True)
class InteractionGraph:
    """Who touched what in the training part of a domain, and what is stored of its items.

    `read` gives the user row and the item row of each interaction; one that occurs twice may be given twice. `feature`
    gives a stored feature by its name.
    """

    num_users: int
    num_items: int
    read: Callable[[], tuple[NDArray[np.int64], NDArray[np.int64]]]
    feature: Callable[[str], ItemFeature] = _no_feature


@dataclass(frozen=True)
class BuildContext:
    """What parts may know of the model and the domains that they are built for.

    Every part is built as `part_class(config, context)`, and takes from the context what it needs.

    Args:
        width: Length D of item vectors and hidden states.
        backbones: The backbone folder of each encoder, by the name of its part in a checkpoint.
        catalogues: The domains of the run, in their order; empty where a model must serve any catalogue.
        graphs: The training interactions of the same domains; empty where they are not known.
        seed: Decides what a part draws in training, beside its first weights and dropout.
        part: Name of the part that is being built, where one class builds several parts (see `at`).
    """

    width: int
    backbones: Mapping[str, Backbone] = field(default_factory=dict)
    catalogues: Sequence[Catalogue] = ()
    graphs: Sequence[InteractionGraph] = ()
    seed: int = 0
    part: str = ""

    def at(self, part: str) -> BuildContext:
        """The same context for the part of this name."""
        return dataclasses.replace(self, part=part)

    @property
    def backbone(self) -> Backbone:
        """The backbone of the part that is being built. RecipeError where it has none."""
        if self.part not in self.backbones:
            there = ", ".join(self.backbones) or "none"
            raise RecipeError(f"item_encoder: no backbone folder for {self.part}; there are: {there}")
        return self.backbones[self.part]
