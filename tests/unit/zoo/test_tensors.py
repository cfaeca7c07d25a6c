"""The tensors of a file that differ from the index are named."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sealing import edit_tensors, seal
from torch import Tensor

from pmmrec.encoders.weights import is_finite
from pmmrec.errors import CheckpointError
from pmmrec.zoo.checkpoint import Checkpoint, load_recommender
from pmmrec.zoo.tensors import TensorEntry, damage, differences, parse, promises_of

Change = Callable[[dict[str, Tensor]], object]
FUSION, TEXT = "fusion/part.safetensors", "text_encoder/model.safetensors"
NAMES = {FUSION: "mm_cls", TEXT: "embeddings.word_embeddings.weight"}
ZEROS = hashlib.sha256(bytes(12)).hexdigest()


def flip(tensor: Tensor) -> None:
    tensor.view(torch.int32).flatten()[0] ^= 1


CHANGES: dict[str, tuple[Callable[[str], Change], str]] = {
    "missing": (lambda name: lambda state: state.pop(name), "missing: {name}"),
    "renamed": (lambda name: lambda state: state.update(other=state.pop(name)), "renamed: {name} to other"),
    "extra": (lambda _: lambda state: state.update(stray=torch.ones(1)), "extra: stray"),
    "reshaped": (lambda name: lambda state: state.update({name: state[name][:3].clone()}), "reshaped: {name} (3"),
    "flipped": (lambda name: lambda state: flip(state[name]), "other numbers in: {name}"),
}


@pytest.mark.parametrize("is_sealed", [False, True], ids=["honest", "with the right hash of the file"])
@pytest.mark.parametrize("path", [FUSION, TEXT])
@pytest.mark.parametrize("kind", CHANGES)
def test_a_changed_tensor_is_named(saved_copy: Path, kind: str, path: str, is_sealed: bool) -> None:
    change, words = CHANGES[kind]
    edit_tensors(saved_copy, path, change(NAMES[path]))
    if is_sealed:
        seal(saved_copy, path, with_tensors=False)
    reason = "its tensors are not those that model_index.json lists" if is_sealed else "sha256 differs"
    expected = f"{path} was changed after it was written ({reason}; {words.format(name=NAMES[path])}"
    (problem,) = Checkpoint.open(saved_copy).verify()
    assert problem.startswith(expected)
    assert problem.count(";") == 1  # and nothing else is said to have changed
    with pytest.raises(CheckpointError) as caught:
        load_recommender(Checkpoint.open(saved_copy))
    assert expected.rpartition("/")[2] in str(caught.value)


def test_a_tensor_of_another_type_is_named(saved_copy: Path) -> None:
    edit_tensors(saved_copy, FUSION, lambda state: state.update(mm_cls=state["mm_cls"].bfloat16()))
    (problem,) = Checkpoint.open(saved_copy).verify()
    assert problem.endswith("(sha256 differs; of another type: mm_cls BF16 for F32)")


def test_a_file_with_only_a_changed_header_says_so(saved_copy: Path) -> None:
    save_file(load_file(saved_copy / FUSION), saved_copy / FUSION, metadata={"format": "pt", "by": "another"})
    (problem,) = Checkpoint.open(saved_copy).verify()
    assert problem.endswith("(sha256 differs; only its header differs, every tensor is unchanged)")


@pytest.mark.parametrize("content", [b"short", b"\xff" * 999, (10).to_bytes(8, "little") + b"{nonsense}" + bytes(99)])
def test_an_unreadable_header_is_reported(saved_copy: Path, content: bytes) -> None:
    (saved_copy / FUSION).write_bytes(content)
    (problem,) = Checkpoint.open(saved_copy).verify()
    assert problem.startswith(f"{FUSION} was changed after it was written (sha256 differs; not a ")
    seal(saved_copy, FUSION, with_tensors=False)
    (problem,) = Checkpoint.open(saved_copy).verify()
    assert problem.startswith(f"{FUSION} was changed after it was written (not a ")


def test_a_file_is_described_tensor_by_tensor(tmp_path: Path) -> None:
    tensors = {"b": torch.zeros(3), "a": torch.tensor(7), "none": torch.zeros(0, 2), "c": torch.ones(2, 3).half()}
    save_file(tensors, tmp_path / "x.safetensors")
    (tmp_path / "notes.txt").write_text("mine")
    told = promises_of(tmp_path)
    found = told["x.safetensors"].tensors
    assert told["notes.txt"].tensors is None
    assert found is not None
    assert found["b"] == TensorEntry("F32", (3,), ZEROS)
    assert {name: (entry.dtype, entry.shape, entry.size) for name, entry in found.items()} == {
        "a": ("I64", (), 1),
        "b": ("F32", (3,), 3),
        "c": ("F16", (2, 3), 6),
        "none": ("F32", (0, 2), 0),
    }
    for promise in told.values():
        assert promise.sha256 in {hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()}
    assert damage(tmp_path / "x.safetensors", told["x.safetensors"]) == ""


@pytest.mark.parametrize("shape", [(), (0,), (8,), (2, 3, 4)])
def test_a_tensor_is_written_in_one_line_and_read_back(shape: tuple[int, ...]) -> None:
    entry = TensorEntry("F8_E4M3", shape, ZEROS)
    assert parse(str(entry)) == entry


def test_tensors_that_are_the_same_are_each_renamed_once() -> None:
    zeros = TensorEntry("F32", (3,), ZEROS)
    assert differences({"x": zeros, "y": zeros}, {"a": zeros, "b": zeros, "c": zeros}) == [
        "missing: c",
        "renamed: a to x, b to y",
    ]


FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2)


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_and_infinity_are_found_and_large_numbers_are_not_taken_for_infinity(dtype: torch.dtype) -> None:
    large = torch.full((100,), torch.finfo(dtype).max, dtype=torch.float64)
    assert is_finite(large.to(dtype))
    for numbers in ([float("nan")], [float("inf")], [float("inf"), float("-inf")]):
        assert not is_finite(torch.cat((large, torch.tensor(numbers, dtype=torch.float64))).to(dtype))


def test_whole_numbers_are_always_finite() -> None:
    assert is_finite(torch.ones(3).int())
