"""Build a part from its settings and run it on small inputs."""
# Shapes: B users, L positions, U items, R rows of one encoder, T text tokens, D width, K queries, C candidates.

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pmmrec.adapters import adapters
from pmmrec.context import Backbone, BuildContext, Catalogue, InteractionGraph, ItemFeature
from pmmrec.contracts import (
    FieldInputs,
    History,
    IdSpec,
    ItemInputs,
    ItemVectors,
    Nodes,
    PixelInputs,
    PixelSpec,
    Query,
    StoredInputs,
    TextSpec,
    TokenInputs,
    TokenStates,
    UserStates,
    ValueInputs,
    ValueSpec,
    to_device,
)
from pmmrec.data.examples import example_kinds
from pmmrec.data.importers.kinds import importers
from pmmrec.data.splits import splits
from pmmrec.encoders import (
    VISUAL,
    EncoderConfig,
    JointEncoder,
    encoder_class,
    joint_encoders,
    text_encoders,
    vision_encoders,
)
from pmmrec.family import Entry, Family
from pmmrec.fusion import fusions
from pmmrec.modality import Tokenizer, VectorSpec
from pmmrec.models import ItemEncoder, ItemEncoderConfig, item_encoders, scorers
from pmmrec.objectives import objectives
from pmmrec.packing import HostArray
from pmmrec.propagations import Propagation, propagations
from pmmrec.settings import PartConfig
from pmmrec.testing.world import WIDTH, batch_of, task_of
from pmmrec.users import UserEncoder, user_encoders

MODULES: tuple[Family[Any], ...] = (  # families of parts of a model, which are built, run and saved alike
    text_encoders,
    vision_encoders,
    joint_encoders,
    fusions,
    item_encoders,
    user_encoders,
    propagations,
    scorers,
    objectives,
)
FAMILIES: tuple[Family[Any], ...] = (*MODULES, adapters, splits, example_kinds, importers)
TEXTS = ("red shoes", "a blue shirt", "green")
VALUES = (11, 22, 33)  # of an attribute; items of the catalogue have the first two
NUM_ITEMS = len(TEXTS)
ALL_ITEMS = tuple(range(NUM_ITEMS))
HISTORY_LENGTHS = (4, 2, 1)
FEATURE_LENGTH = 4  # of the vectors by which a graph compares items
TOUCHED = ((0, 0), (0, 1), (1, 1), (1, 1))  # user and item; one pair occurs twice, one user and one item not at all


@dataclass(frozen=True)
class Subject:
    """A part with example settings, as the checks build and run it.

    Args:
        family: The family of the part.
        config: Its settings.
        folder: An empty folder, for backbones and for what checks write.
    """

    family: Family[Any]
    config: PartConfig
    folder: Path

    @property
    def entry(self) -> Entry[Any]:
        """The registered name, settings class and part class."""
        return self.family[self.config.type]

    @cached_property
    def context(self) -> BuildContext:
        """The context that the part is built with; fresh backbones are written to the folder."""
        encoders: Mapping[str, EncoderConfig] = {}
        if isinstance(self.config, EncoderConfig):
            encoders = {"": self.config}
        elif isinstance(self.config, ItemEncoderConfig):
            encoders = self.config.encoders
        backbones = {name: self._backbone(name, config) for name, config in encoders.items()}
        catalogues = [
            Catalogue("books", NUM_ITEMS, "aa", len(HISTORY_LENGTHS), "bb", lambda _: dict.fromkeys(VALUES[:2], 1))
        ]
        return BuildContext(WIDTH, backbones, catalogues, [graph_of(TOUCHED)])

    def _backbone(self, name: str, config: EncoderConfig) -> Backbone:
        folder = self.folder / (name or "backbone")
        folder.mkdir(parents=True)
        encoder_class(config).start(config, folder, TEXTS)
        return Backbone(folder, is_pretrained=False)

    def build(self, seed: int = 0) -> Any:
        """A part of a model, with fresh weights drawn from `seed`."""
        context = self.context
        torch.manual_seed(seed)
        part = self.entry.part_class(self.config, context)
        if isinstance(part, ItemEncoder):
            part.graph_streams = frozenset(part.training_streams)  # else nobody reads those of with_streams
        return part

    def run(
        self, part: nn.Module, *, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 1
    ) -> list[Tensor]:
        """The tensors that the part gives for small random inputs; shapes are checked on the way."""
        return RUNS[self.family.name](part, Numbers(dtype, device, seed))


class Numbers:
    """Draws inputs of one type of number on one device."""

    def __init__(self, dtype: torch.dtype = torch.float64, device: str = "cpu", seed: int = 1) -> None:
        self.dtype, self.device = dtype, device
        self._draw = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """Normal numbers that take gradients."""
        drawn = torch.randn(shape, generator=self._draw, dtype=torch.float64)
        return drawn.to(self.device, self.dtype).requires_grad_()

    def pixels(self, num_rows: int, size: int) -> Tensor:
        """Random images."""
        shape = (num_rows, 3, size, size)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=self._draw)


def is_valid(lengths: Sequence[int], longest: int, *, left: bool = False) -> Tensor:
    """`(rows, longest)`: True in the first `length` places of each row, or in the last with `left`."""
    place, length = torch.arange(longest), torch.tensor(lengths)[:, None]
    return place >= longest - length if left else place < length


def history_of(
    numbers: Numbers, part: UserEncoder, lengths: Sequence[int] = HISTORY_LENGTHS, longest: int | None = None
) -> History:
    """Left-padded histories of random items, with the streams that a user encoder reads."""
    longest = longest or max(lengths)
    is_valid_BL = is_valid(lengths, longest, left=True).to(numbers.device)

    def vectors() -> Tensor:
        return torch.where(is_valid_BL[:, :, None], numbers.normal(len(lengths), longest, WIDTH), 0.0)

    item_BLD, streams_BLD = vectors(), {name: vectors() for name in sorted(part.streams)}
    return History(item_BLD, is_valid_BL, streams_BLD, user_index_B=torch.arange(len(lengths), device=numbers.device))


def graph_of(touched: Sequence[tuple[int, int]], items: Sequence[int] = ALL_ITEMS) -> InteractionGraph:
    """The graph of the example users and items with these pairs of a user and an item.

    `items`: which of the example items stands at each place; their stored features are those of `item_inputs`.
    """
    user_E, item_E = np.array(touched, dtype=np.int64).T

    def feature(name: str) -> ItemFeature:
        def read() -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
            return _vectors_of(name, (FEATURE_LENGTH,))[list(items)].numpy(), np.ones(len(items), dtype=bool)

        return ItemFeature(name, read)

    return InteractionGraph(len(HISTORY_LENGTHS), NUM_ITEMS, lambda: (user_E, item_E), feature)


def nodes_of(numbers: Numbers, part: Propagation) -> Nodes:
    """Random vectors of the example items and users, and the streams of items that a propagation reads."""
    items_ND, users_MD = numbers.normal(NUM_ITEMS, WIDTH), numbers.normal(len(HISTORY_LENGTHS), WIDTH)
    streams_ND = {name: numbers.normal(NUM_ITEMS, WIDTH) for name in sorted(part.streams)}
    return Nodes(ItemVectors(items_ND, streams_UD=streams_ND), users_MD)


def query_of(numbers: Numbers) -> Query:
    """The last states of two users."""
    hidden_BLD = numbers.normal(2, 4, WIDTH)
    return Query.last(UserStates(hidden_BLD, is_valid((4, 2), 4, left=True).to(numbers.device)))


def token_inputs(tokenizer: Tokenizer, rows: Sequence[int] = ALL_ITEMS) -> TokenInputs:
    """Some of the texts."""
    return TokenInputs.of(tokenizer.encode([TEXTS[row] for row in rows]))


def pixel_inputs(spec: PixelSpec, rows: Sequence[int] = ALL_ITEMS) -> PixelInputs:
    """Some of the random images."""
    pixels = Numbers(seed=2).pixels(NUM_ITEMS, spec.size)
    return PixelInputs(pixels[list(rows)], HostArray(range(len(rows))))


def item_inputs(
    encoder: ItemEncoder | JointEncoder,
    rows: Sequence[int] = ALL_ITEMS,
    lacking: Mapping[str, Sequence[int]] | None = None,
) -> ItemInputs:
    """Some items; those at the places `lacking[field]` lack the field."""
    has_U, fields = dict[str, Tensor](), dict[str, FieldInputs]()
    for field, spec in encoder.reads.items():
        absent = (lacking or {}).get(field, ())
        places = [place for place in range(len(rows)) if place not in absent]
        has_U[field] = torch.tensor([place in places for place in range(len(rows))])
        if isinstance(spec, IdSpec):
            continue
        given = _inputs_of(field, spec, [rows[place] for place in places] or [0])
        index = np.array(places or [len(rows)])[given.item_index_R.values]
        fields[field] = dataclasses.replace(given, item_index_R=HostArray(index))
    return ItemInputs(torch.zeros(len(rows), dtype=torch.long), torch.tensor(rows), has_U, fields)


def joint_inputs(
    part: JointEncoder, items: ItemInputs, dtype: torch.dtype
) -> tuple[dict[str, FieldInputs | TokenStates], Mapping[str, Tensor]]:
    """What a joint encoder is called with: the fields of items, and tokens of images where it reads those."""
    if not part.reads_visual:
        return dict(items.fields), items.has_U
    draw, row_U = torch.Generator().manual_seed(3), items.row_U
    tokens_NVD = torch.randn(NUM_ITEMS, 2, part.visual_width, generator=draw, dtype=torch.float64).to(dtype)
    tokens_UVD = tokens_NVD.to(row_U.device).index_select(0, row_U)
    return {**items.fields, VISUAL: TokenStates.of_even(tokens_UVD, tokens_UVD[:, 0])}, items.has_U


def _inputs_of(
    field: str, spec: TextSpec | PixelSpec | ValueSpec | VectorSpec, rows: Sequence[int]
) -> TokenInputs | PixelInputs | ValueInputs | StoredInputs:
    """Of a field of these items; two features differ."""
    if isinstance(spec, TextSpec):
        return token_inputs(spec.tokenizer, rows)
    if isinstance(spec, PixelSpec):
        return pixel_inputs(spec, rows)
    if isinstance(spec, ValueSpec):
        return ValueInputs(torch.tensor(VALUES)[list(rows)], HostArray(range(len(rows))))
    vectors = _vectors_of(field, spec.shape, spec.num_values)
    return StoredInputs(vectors[list(rows)], HostArray(range(len(rows))))


def _vectors_of(field: str, shape: tuple[int, ...], num_values: int | None = None) -> Tensor:
    """What is stored of all example items under this name."""
    draw = torch.Generator().manual_seed(sum(field.encode()))
    if num_values is None:
        return torch.randn(NUM_ITEMS, *shape, generator=draw)
    return torch.randint(0, num_values, (NUM_ITEMS, *shape), generator=draw).float()


def modality_states(numbers: Numbers) -> dict[str, TokenStates]:
    """States of three items: with text and image, without an image, without a text."""

    def states(*lengths: int) -> TokenStates:
        length_R = np.array(lengths)
        tokens_KD = numbers.normal(int(length_R.sum()), WIDTH)
        first_RD = cls_RD = numbers.normal(3, WIDTH)
        return TokenStates(tokens_KD, np.cumsum(length_R) - length_R, length_R, cls_RD, first_RD=first_RD)

    return {"text": states(4, 2, 0), "image": states(5, 0, 5)}


def _expect(tensor: Tensor, *shape: int) -> None:
    if tuple(tensor.shape) != shape:
        raise AssertionError(f"gave a tensor of shape {tuple(tensor.shape)}; its family promises {shape}")


def _tensors_of(states: TokenStates) -> list[Tensor]:
    _expect(states.cls_RD, NUM_ITEMS, WIDTH)
    tokens = [states.of_item(row) for row in ALL_ITEMS]
    for token_TD, length in zip(tokens, states.length_R.tolist(), strict=True):
        _expect(token_TD, length, WIDTH)
    return [torch.cat(tokens), states.cls_RD]


def _run_text(part: Any, numbers: Numbers) -> list[Tensor]:
    return _tensors_of(part(to_device(token_inputs(part.tokenizer), numbers.device)))


def _run_vision(part: Any, numbers: Numbers) -> list[Tensor]:
    return _tensors_of(part(to_device(pixel_inputs(part.pixel_spec), numbers.device)))


def _run_joint(part: JointEncoder, numbers: Numbers) -> list[Tensor]:
    items = to_device(item_inputs(part), numbers.device)
    return _tensors_of(part(*joint_inputs(part, items, numbers.dtype)))


def _run_fusion(part: Any, numbers: Numbers) -> list[Tensor]:
    fused_UD = part(modality_states(numbers))
    _expect(fused_UD, 3, WIDTH)
    return [fused_UD]


def _run_items(part: Any, numbers: Numbers) -> list[Tensor]:
    vectors: ItemVectors = part(to_device(item_inputs(part), numbers.device))
    _expect(vectors.fused_UD, NUM_ITEMS, WIDTH)
    if set(vectors.has_U) != set(part.fields):
        raise AssertionError(f"says who has {set(vectors.has_U)}, but reads {set(part.fields)}")
    if set(vectors.cls_UD) != set(part.cls_fields):
        raise AssertionError(f"gives vectors of {set(vectors.cls_UD)}, but promises those of {set(part.cls_fields)}")
    for name, width in part.streams.items():
        _expect(vectors.streams_UD[name], NUM_ITEMS, width)
    return [vectors.fused_UD, *vectors.cls_UD.values(), *vectors.streams_UD.values()]


def _run_users(part: Any, numbers: Numbers) -> list[Tensor]:
    history = history_of(numbers, part)
    is_masked_BL = is_valid((1, 1, 0), 4, left=True).to(numbers.device) if part.attends == "all" else None
    states = part(dataclasses.replace(history, is_masked_BL=is_masked_BL))
    _expect(states.hidden_BLD, *history.item_BLD.shape)
    return [torch.where(history.is_valid_BL[:, :, None], states.hidden_BLD, 0.0)]


def _run_propagation(part: Any, numbers: Numbers) -> list[Tensor]:
    part.begin_epoch(1)
    nodes: Nodes = part(nodes_of(numbers, part))
    _expect(nodes.items.fused_UD, NUM_ITEMS, WIDTH)
    if nodes.user_MD is None:
        raise AssertionError("gives no vectors of users, though it was given some")
    _expect(nodes.user_MD, len(HISTORY_LENGTHS), WIDTH)
    return [nodes.items.fused_UD, nodes.user_MD]


def _run_scorer(part: Any, numbers: Numbers) -> list[Tensor]:
    score_KN = part(query_of(numbers), ItemVectors(numbers.normal(3, WIDTH)))
    _expect(score_KN, 2, 3)
    return [score_KN, part.ranked(score_KN, torch.tensor([0, 4, 1], device=numbers.device))]


def _run_objective(part: Any, numbers: Numbers) -> list[Tensor]:
    task = task_of(part).to(device=numbers.device, dtype=numbers.dtype)
    figures = task(to_device(batch_of(part.requests), numbers.device))
    return [figures["objective"][0]]


RUNS: dict[str, Callable[[Any, Numbers], list[Tensor]]] = {
    text_encoders.name: _run_text,
    vision_encoders.name: _run_vision,
    joint_encoders.name: _run_joint,
    fusions.name: _run_fusion,
    item_encoders.name: _run_items,
    user_encoders.name: _run_users,
    propagations.name: _run_propagation,
    scorers.name: _run_scorer,
    objectives.name: _run_objective,
}
