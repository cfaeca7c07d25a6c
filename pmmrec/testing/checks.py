"""The checks that every part inherits, whatever its family."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pmmrec.family import Family
from pmmrec.settings import validate
from pmmrec.testing.subjects import MODULES, NUM_ITEMS, Numbers, Subject
from pmmrec.testing.world import NUM_POSITIONS, WINDOWS
from pmmrec.train.memory_simulation import LiveBytes, StepSize

ATOL = 1e-12  # float64; measured at most 1.4e-14
Inapplicable = str | None  # why a check does not apply to a part; None: it was done


@dataclass(frozen=True)
class Check:
    """A property that a part must have.

    Args:
        name: A word or two, as the table shows it.
        families: Names of the families it is for; empty for all.
        run: Raises AssertionError where the part lacks the property.
    """

    name: str
    families: frozenset[str]
    run: Callable[[Subject], Inapplicable]


CHECKS: list[Check] = []


def check(name: str, *families: Family[Any]) -> Callable[[Callable[[Subject], Inapplicable]], Callable[..., Any]]:
    """Decorator that adds a check for some families, or for all."""

    def add(run: Callable[[Subject], Inapplicable]) -> Callable[[Subject], Inapplicable]:
        CHECKS.append(Check(name, frozenset(family.name for family in families), run))
        return run

    return add


def checks_of(family: Family[Any]) -> Iterator[Check]:
    """The checks that a family's parts inherit."""
    return (one for one in CHECKS if not one.families or family.name in one.families)


def require(is_true: object, message: str) -> None:
    """Raise AssertionError with the message unless true."""
    if not is_true:
        raise AssertionError(message)


def assert_close(actual: Tensor, expected: Tensor, message: str) -> None:
    """AssertionError unless two tensors differ by `ATOL` at most; nothing is relative."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=ATOL, msg=lambda text: f"{message}: {text}")


def assert_equal(actual: list[Tensor], expected: list[Tensor], message: str) -> None:
    """AssertionError unless all tensors are equal to the bit."""
    require(len(actual) == len(expected), f"{message}: gave {len(actual)} tensors, then {len(expected)}")
    for first, second in zip(actual, expected, strict=True):
        require(torch.equal(first, second), f"{message}: the outputs differ")


@check("summary")
def first_line_says_what_it_is(subject: Subject) -> Inapplicable:
    """The first line of its docstring is a sentence; the help of the command line shows it."""
    require(len(subject.entry.summary) > 10, f"{subject.entry.part_class.__name__} needs a docstring of one sentence")
    return None


@check("settings")
def settings_survive_a_round_trip(subject: Subject) -> Inapplicable:
    """Settings that are dumped to JSON and read again are equal."""
    again = validate(type(subject.config), subject.config.model_dump(mode="json"), "example")
    require(again == subject.config, f"settings change when they are saved and read: {subject.config} -> {again}")
    return None


@check("finite", *MODULES)
def outputs_are_finite(subject: Subject) -> Inapplicable:
    """It runs, and what it gives is finite and of the promised shape."""
    for tensor in subject.run(subject.build()):
        require(tensor.isfinite().all(), "gives NaN or infinity")
    return None


@check("gradients", *MODULES)
def gradients_reach_every_parameter(subject: Subject) -> Inapplicable:
    """Every trainable parameter gets a gradient other than 0, and no frozen one gets any."""
    part, numbers = subject.build().eval(), Numbers(torch.float32)
    if not any(parameter.requires_grad for parameter in part.parameters()):
        return "has no trainable parameters"
    weighted = [(tensor * numbers.normal(*tensor.shape)).sum() for tensor in subject.run(part)]
    torch.autograd.backward(torch.stack(weighted).sum())
    for name, parameter in part.named_parameters():
        if not parameter.requires_grad:
            require(parameter.grad is None, f"{name} is frozen, yet has a gradient")
            continue
        require(parameter.grad is not None, f"{name} is trainable, yet gets no gradient")
        require(parameter.grad.any(), f"{name} is trainable, yet its gradient is 0")
    return None


@check("all used", *MODULES)
def every_parameter_is_used_in_training(subject: Subject) -> Inapplicable:
    """In training mode too, every trainable parameter takes part; a process group would wait for one that does not."""
    part = subject.build().train()
    if not any(parameter.requires_grad for parameter in part.parameters()):
        return "has no trainable parameters"
    torch.autograd.backward(torch.stack([tensor.square().sum() for tensor in subject.run(part)]).sum())
    for name, parameter in part.named_parameters():
        require((parameter.grad is not None) == parameter.requires_grad, f"{name} is not used in training")
    return None


@check("repeatable", *MODULES)
def eval_is_repeatable(subject: Subject) -> Inapplicable:
    """In evaluation mode equal inputs give equal outputs."""
    part = subject.build().eval()
    assert_equal(subject.run(part), subject.run(part), "two runs in evaluation mode")
    return None


@check("seed", *MODULES)
def equal_seeds_build_equal_parts(subject: Subject) -> Inapplicable:
    """Weights are drawn from torch's generator alone."""
    state, again = subject.build().state_dict(), subject.build().state_dict()
    require(list(state) == list(again), "two builds have other tensors")
    assert_equal(list(state.values()), list(again.values()), "two builds from one seed")
    return None


@check("save, load", *MODULES)
def a_saved_part_opens_bit_equal(subject: Subject) -> Inapplicable:
    """What is saved to a file and loaded into a part of another seed gives the same outputs."""
    part, other = subject.build(), subject.build(seed=1)
    path = subject.folder / "state.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in part.state_dict().items()}, path)
    other.load_state_dict(load_file(path))
    assert_equal(subject.run(other.eval()), subject.run(part.eval()), "the loaded part")
    return None


@check("meta", *MODULES)
def it_runs_on_the_meta_device(subject: Subject) -> Inapplicable:
    """It is built and run, backward too, without memory: so a run is planned, and so it is told what it needs.

    A mask has no count there: `nonzero` and indexing by a mask are answered as in a dry run.
    """
    real = subject.build()
    with torch.device("meta"):
        part = subject.build()
    shapes = [(name, tensor.shape, tensor.requires_grad) for name, tensor in real.named_parameters()]
    dry = [(name, tensor.shape, tensor.requires_grad) for name, tensor in part.named_parameters()]
    require(dry == shapes, "is built with other parameters on the meta device")
    tensors: list[nn.Parameter | Tensor] = [*part.parameters(), *part.buffers()]
    require(all(tensor.is_meta for tensor in tensors), "some of its tensors are not on the meta device")
    users = len(WINDOWS["shared items"])
    size = StepSize(users=users, positions=NUM_POSITIONS, items=NUM_ITEMS, encoded=NUM_ITEMS, tokens=4, filled=1.0)
    with LiveBytes([], size):
        outputs = subject.run(part.train(), device="meta")
        require(all(tensor.is_meta for tensor in outputs), "gives tensors that are not on the meta device")
        torch.autograd.backward(torch.stack([tensor.sum() for tensor in outputs]).sum())
    return None


@check("float64", *MODULES)
def it_runs_in_float64(subject: Subject) -> Inapplicable:
    """With weights and inputs in float64 all outputs are float64."""
    for tensor in subject.run(subject.build().double().eval(), dtype=torch.float64):
        require(tensor.dtype == torch.float64, f"gives {tensor.dtype} where all is float64")
    return None
