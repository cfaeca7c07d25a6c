"""The checks that adapters inherit, in a user encoder and in a text encoder."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pmmrec.adapters import adapters
from pmmrec.adapters.plan import AdaptedPart, AdapterPlan, adapt
from pmmrec.encoders import text_encoders
from pmmrec.encoders.text import HFTextConfig
from pmmrec.errors import RecipeError
from pmmrec.testing.checks import Inapplicable, assert_close, assert_equal, check, require
from pmmrec.testing.subjects import Subject
from pmmrec.users import user_encoders

NOISE = 0.05  # added to weights of a host, some of which start at 0


def _hosts(subject: Subject) -> dict[str, Subject]:
    """The parts that adapters are inserted into, by their place in a model."""
    users = user_encoders.config({"type": "transformer", "dropout": 0})
    texts = text_encoders.config({"type": "hf_text", **HFTextConfig.examples[0], "trainable_blocks": 0})
    return {
        "user_encoder": Subject(user_encoders, users, subject.folder / "users"),
        "text_encoder": Subject(text_encoders, texts, subject.folder / "texts"),
    }


def _part(host: Subject) -> nn.Module:
    """A part with weights as after a training, the same each time."""
    part: nn.Module = host.build().double().eval()
    _change(part, NOISE, seed=1)
    return part


def _change(part: nn.Module, size: float, seed: int) -> None:
    """Add noise to all that is trained."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in part.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype))


def _adapt(subject: Subject, place: str, part: nn.Module, seed: int = 0) -> AdaptedPart:
    torch.manual_seed(seed)
    return adapt({place: part}, AdapterPlan.model_validate({place: subject.config})).parts[place]


def _run(host: Subject, part: nn.Module) -> list[Tensor]:
    return host.run(part, dtype=torch.float64)


@check("starts equal", adapters)
def new_adapters_change_nothing(subject: Subject) -> Inapplicable:
    """A part with new adapters computes what it computed, in training mode too, since what is frozen stays in eval."""
    for place, host in _hosts(subject).items():
        part = _part(host)
        before = _run(host, part)
        _adapt(subject, place, part)
        for after, expected in zip(_run(host, part.train()), before, strict=True):
            assert_close(after, expected, f"{place} with new adapters")
    return None


@check("learn alone", adapters)
def adapters_learn_and_nothing_else_does(subject: Subject) -> Inapplicable:
    """The tensors of the adapters are all that is trained; each gets a gradient, and no other tensor gets one."""
    for place, host in _hosts(subject).items():
        part = _part(host)
        learned = set(_adapt(subject, place, part).adapter_names)
        _change(part, NOISE, seed=2)  # of a factor that starts at 0 the other one has no gradient
        draw = torch.Generator().manual_seed(3)
        outputs = _run(host, part)
        weighted = [(one * torch.randn(one.shape, generator=draw, dtype=one.dtype)).sum() for one in outputs]
        torch.autograd.backward(torch.stack(weighted).sum())
        for name, parameter in part.named_parameters():
            require(parameter.requires_grad == (name in learned), f"{place}: {name}: trained or frozen by mistake")
            has_gradient = parameter.grad is not None and bool(parameter.grad.any())
            require(has_gradient == (name in learned), f"{place}: {name}: has a gradient of 0, or one that is not due")
    return None


@check("save, load", adapters)
def saved_adapters_open_bit_equal(subject: Subject) -> Inapplicable:
    """Adapters that are saved under their names on disk, and loaded over new ones, compute the same."""
    for place, host in _hosts(subject).items():
        part, other = _part(host), _part(host)
        names, again = (_adapt(subject, place, one, seed).adapter_names for one, seed in ((part, 0), (other, 1)))
        require(names == again, f"{place}: names of tensors change from one insertion to the next")
        require(len(set(names.values())) == len(names), f"{place}: two tensors have one name on disk")
        _change(part, NOISE, seed=2)
        state, path = part.state_dict(), subject.folder / f"{place}.safetensors"
        save_file({on_disk: state[name].contiguous() for name, on_disk in names.items()}, path)
        read = load_file(path)
        other.load_state_dict({name: read[on_disk] for name, on_disk in names.items()}, strict=False)
        assert_equal(_run(host, other), _run(host, part), f"{place} with loaded adapters")
    return None


@check("merged", adapters)
def merged_weights_compute_the_same(subject: Subject) -> Inapplicable:
    """Under `is_mergeable` the part has its own tensors again, and computes the same; otherwise merging is refused."""
    for place, host in _hosts(subject).items():
        part = _part(host)
        names = list(part.state_dict())
        adapted_part: Any = _adapt(subject, place, part)
        _change(part, NOISE, seed=2)
        if not adapted_part.adapter.is_mergeable:
            try:
                adapted_part.merge()
            except RecipeError:
                continue
            raise AssertionError(f"{place}: says that it cannot be merged, and merges")
        before = _run(host, part)
        adapted_part.merge()
        require(set(part.state_dict()) == set(names), f"{place}: merging leaves other tensors than the part had")
        for after, expected in zip(_run(host, part), before, strict=True):
            assert_close(after, expected, f"{place} with merged weights")
    return None


@check("meta", adapters)
def adapters_are_planned_without_memory(subject: Subject) -> Inapplicable:
    """On the meta device the same tensors are trained: so a run is planned."""
    for place, host in _hosts(subject).items():
        part = _part(host)
        _adapt(subject, place, part)
        with torch.device("meta"):
            dry = host.build()
            _adapt(subject, place, dry)
        for name, parameter in dry.named_parameters():
            require(parameter.is_meta, f"{place}: {name} is not on the meta device")
        shapes, planned = (
            [(name, one.shape, one.requires_grad) for name, one in each.named_parameters()] for each in (part, dry)
        )
        require(planned == shapes, f"{place}: other parameters are planned than trained")
    return None
