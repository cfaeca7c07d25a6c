"""The checks that encoders, fusions and item encoders inherit."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pmmrec.context import Backbone, BuildContext
from pmmrec.contracts import ItemVectors, TokenStates
from pmmrec.encoders import joint_encoders, text_encoders, vision_encoders
from pmmrec.fusion import fusions
from pmmrec.models import item_encoders
from pmmrec.rows import laid_out
from pmmrec.settings import validate
from pmmrec.testing.checks import Inapplicable, assert_close, assert_equal, check, require
from pmmrec.testing.subjects import (
    ALL_ITEMS,
    TEXTS,
    Numbers,
    Subject,
    item_inputs,
    joint_inputs,
    modality_states,
    pixel_inputs,
    token_inputs,
)
from pmmrec.testing.world import WIDTH


@check("alone = in batch", text_encoders, vision_encoders, joint_encoders, fusions, item_encoders)
def an_item_alone_is_what_it_is_in_a_batch(subject: Subject) -> Inapplicable:
    """The vectors of an item do not depend on the other items of its batch, nor on their padding."""
    part = subject.build().double().eval()
    with torch.no_grad():
        whole = _vectors(subject, part, ALL_ITEMS)
        for row in ALL_ITEMS:
            for of_all, of_one in zip(whole, _vectors(subject, part, (row,)), strict=True):
                assert_close(of_one[0], of_all[row], f"item {row} alone")
    return None


def _vectors(subject: Subject, part: Any, rows: tuple[int, ...]) -> list[Tensor]:
    if subject.family is text_encoders:
        inputs = token_inputs(part.tokenizer, rows)
        return [laid_out(part(inputs).cls_RD, inputs.item_index_R, len(rows))]
    if subject.family is vision_encoders:
        states: TokenStates = part(pixel_inputs(part.pixel_spec, rows))
        return [torch.stack([states.of_item(row) for row in range(len(rows))]), states.cls_RD]
    if subject.family is fusions:
        given = modality_states(Numbers())
        return [part({modality: _rows_of(states, list(rows)) for modality, states in given.items()})]
    items = item_inputs(part, rows)
    if subject.family is joint_encoders:
        return [part(*joint_inputs(part, items, torch.float64)).cls_RD]
    vectors: ItemVectors = part(items)
    return [vectors.fused_UD, *vectors.cls_UD.values(), *vectors.streams_UD.values()]


def _rows_of(states: TokenStates, rows: list[int]) -> TokenStates:
    """The states of some items alone."""
    length_r, tokens = states.length_R[rows], torch.cat([states.of_item(row) for row in rows])
    first_rD = None if states.first_RD is None else states.first_RD[rows]
    return TokenStates(tokens, np.cumsum(length_r) - length_r, length_r, states.cls_RD[rows], first_RD=first_rD)


@check("missing = zero", fusions, item_encoders)
def a_missing_field_is_a_zero(subject: Subject) -> Inapplicable:
    """An item that lacks a field has zeros there; one that lacks all is the zero vector; nothing is NaN."""
    part = subject.build().double()
    if subject.family is fusions:
        empty = {
            modality: dataclasses.replace(states, length_R=np.zeros_like(states.length_R))
            for modality, states in modality_states(Numbers()).items()
        }
        require(part(empty).isfinite().all(), "gives NaN or infinity for items without any token")
        return None
    if not part.fields:
        return "reads no field"
    for field in part.fields:
        vectors = part(item_inputs(part, lacking={field: (1,)}))
        _check_zero(vectors, field, places=(1,))
    nothing = part(item_inputs(part, lacking=dict.fromkeys(part.fields, (0, 2))))
    for field in part.fields:
        _check_zero(nothing, field, places=(0, 2))
    require(not nothing.fused_UD[[0, 2]].any(), "an item that lacks everything is not the zero vector")
    torch.autograd.backward(nothing.fused_UD.sum())
    for name, parameter in part.named_parameters():
        require(parameter.grad is None or parameter.grad.isfinite().all(), f"the gradient of {name} is not finite")
    return None


def _check_zero(vectors: ItemVectors, field: str, places: tuple[int, ...]) -> None:
    require(vectors.fused_UD.isfinite().all(), f"gives NaN or infinity where an item lacks its {field}")
    require(not vectors.has_U[field][list(places)].any(), f"says that an item has a {field} that it lacks")
    if field in vectors.cls_UD:
        lacking = vectors.cls_UD[field][list(places)]
        require(not lacking.any(), f"the {field} vector of an item without one is not zero")


@check("training streams", item_encoders)
def streams_of_training_are_given_where_they_are_asked_for(subject: Subject) -> Inapplicable:
    """Vectors for objectives alone come where they are asked for, as wide as promised; an item that lacks all has 0."""
    part = subject.build().double().train()
    if not part.training_streams:
        return "gives none"
    promised = set(part.training_streams)
    require(not promised & set(part(item_inputs(part)).streams_UD), "gives streams of training that nobody asks for")
    part.asked = frozenset(promised)
    for mode in (False, True):
        vectors = part.train(mode)(item_inputs(part, lacking=dict.fromkeys(part.fields, (1,))))
        for name, width in part.training_streams.items():
            stream_UD = vectors.streams_UD[name]
            shape = (len(ALL_ITEMS), width)
            require(stream_UD.shape == shape, f"the stream {name} has the shape {tuple(stream_UD.shape)}, not {shape}")
            require(stream_UD.isfinite().all(), f"the stream {name} holds NaN or infinity")
            require(
                not stream_UD[1].any(), f"in the stream {name} an item that lacks everything is not the zero vector"
            )
            require(stream_UD[0].any(), f"in the stream {name} an item that lacks nothing is the zero vector")
    torch.autograd.backward(sum(vectors.streams_UD[name].sum() for name in promised))
    require(any(one.grad is not None for one in part.parameters()), "no parameter learns from its streams of training")
    return None


@check("mask text", item_encoders)
def the_text_of_the_mask_is_one_more_item(subject: Subject) -> Inapplicable:
    """In training the text that stands for hidden items has the vector of an item of which there is this text alone."""
    config: Any = subject.config
    if not config.reads_mask_text:
        return "encodes no text alone"
    part = subject.build().double().eval()
    part.training = True  # without dropout
    plain: ItemVectors = part(item_inputs(part))
    require(plain.mask_D is None and part.mask_vector() is None, "gives a mask that nobody asks for")
    for row in ALL_ITEMS:
        part.mask_text = TEXTS[row]
        vectors: ItemVectors = part(item_inputs(part))
        found: tuple[Any, ...] = (vectors.mask_D, part.mask_vector())
        for mask_D in found:
            require(mask_D is not None, "gives no mask where one is asked for")
            assert_close(mask_D, plain.fused_UD[row], f"the mask that has the text of item {row}")
        assert_close(vectors.fused_UD, plain.fused_UD, "items beside a mask")
    return None


@check("backbone saved", text_encoders, vision_encoders, joint_encoders)
def the_library_reads_the_backbone_back(subject: Subject) -> Inapplicable:
    """`read_backbone` gives the bits that `save_backbone` wrote, though the module that writes is empty."""
    part, prefix = subject.build(), "backbone."
    state = {name.removeprefix(prefix): one for name, one in part.state_dict().items() if name.startswith(prefix)}
    folder = subject.folder / "saved"
    folder.mkdir()
    with torch.device("meta"):
        dry = subject.build()
    dry.save_backbone(folder, state)
    read = part.read_backbone(folder)
    require(set(read) == set(state), f"wrote {set(state)}, read {set(read)}")
    for name, tensor in state.items():
        require(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype, f"{name} is not what was written")
    return None


@check("backbone opened", text_encoders, vision_encoders, joint_encoders)
def a_saved_backbone_opens_as_a_pretrained_one(subject: Subject) -> Inapplicable:
    """The folder that `save_backbone` fills serves as `weights`."""
    part, folder = subject.build(), subject.folder / "saved"
    folder.mkdir()
    part.save_backbone(folder, part.backbone.state_dict())
    tree = {**subject.config.model_dump(exclude_unset=True, exclude={"architecture", "vocab_size"}), "weights": "saved"}
    config = validate(type(subject.config), tree, "example")
    opened = subject.entry.part_class(config, BuildContext(WIDTH, {"": Backbone(folder, is_pretrained=True)}))
    above = {name: tensor for name, tensor in part.state_dict().items() if not name.startswith("backbone.")}
    opened.load_state_dict(above, strict=False)
    assert_equal(subject.run(opened.eval()), subject.run(part.eval()), "the opened encoder")
    return None
