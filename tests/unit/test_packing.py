"""Attention over packed rows says what loops over rows say, whichever way rows are grouped."""
# Shapes: R rows, T places of the longest, K places of all, H heads, E width of a head.

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from pmmrec import packing as module
from pmmrec.contracts import to_device
from pmmrec.dropout import dropout as dropped
from pmmrec.packing import HostArray, Packing, attend, attend_last, left_padded, lengths_of, packing_of, sent

torch.set_num_threads(1)
HEADS, SIZE = 2, 3
LENGTHS = {
    "one row": [4],
    "even": [3, 3, 3],
    "uneven": [7, 5, 5, 2, 1, 1],
    "all different": [9, 8, 6, 5, 3, 2, 1],
    "single places": [1, 1],
}
# Spans for each distinct length; as measured; all rows in one span.
GROUPINGS = {"each length alone": 0, "as measured": module.PAIRS_OF_SPAN["cpu"], "all in one": 10**9}


def drawn(packing: Packing, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shape = (packing.num_places, HEADS, SIZE)
    return [torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(3)]


def by_loops(query: Tensor, key: Tensor, value: Tensor, lengths: list[int], sees: object, scale: float) -> Tensor:
    """Attention of each place of each row and head to the places of the row that `sees(i, j)` allows."""
    out, start = [], 0
    for length in lengths:
        for i in range(length):
            heads = []
            for head in range(HEADS):
                seen = [start + j for j in range(length) if sees(i, j)]  # type: ignore[operator]
                scores = torch.stack([query[start + i, head] @ key[place, head] * scale for place in seen])
                heads.append(sum(w * value[place, head] for w, place in zip(scores.softmax(0), seen, strict=True)))
            out.append(torch.stack(heads))
        start += length
    return torch.stack(out)


@pytest.mark.parametrize("grouping", list(GROUPINGS))
@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("name", list(LENGTHS))
def test_values_and_gradients_are_those_of_loops(
    name: str, is_causal: bool, window: int | None, grouping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.PAIRS_OF_SPAN, "cpu", GROUPINGS[grouping])  # type: ignore[arg-type]
    packing = Packing(LENGTHS[name])

    def sees(i: int, j: int) -> bool:
        return (not is_causal or j <= i) and (window is None or abs(i - j) <= window)

    inputs = drawn(packing)
    expected = by_loops(*inputs, LENGTHS[name], sees, 0.7)
    actual = attend(*inputs, packing, is_causal=is_causal, window=window, scale=0.7)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad((actual * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("grouping", list(GROUPINGS))
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("name", list(LENGTHS))
def test_the_last_place_of_each_row_attends_as_among_all(
    name: str, is_causal: bool, grouping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.PAIRS_OF_SPAN, "cpu", GROUPINGS[grouping])  # type: ignore[arg-type]
    packing = Packing(LENGTHS[name])
    query, key, value = inputs = drawn(packing)
    expected = packing.last(attend(*inputs, packing, is_causal=is_causal))
    actual = attend_last(packing.last(query), key, value, packing)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad((actual * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_dropout_of_the_weights_of_last_places_keeps_their_mean() -> None:
    packing = Packing([3, 2])
    query, key, value = drawn(packing)
    plain = attend_last(packing.last(query), key, value, packing)
    torch.manual_seed(0)
    many = [attend_last(packing.last(query), key, value, packing, dropout=0.3) for _ in range(4000)]
    torch.testing.assert_close(torch.stack(many).mean(0), plain, rtol=0, atol=0.06)  # measured 0.01


@pytest.mark.parametrize("grouping", list(GROUPINGS))
@pytest.mark.parametrize("window", [None, 1])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("name", list(LENGTHS))
def test_dropped_weights_are_those_of_plain_attention_with_the_same_draws(
    name: str, is_causal: bool, window: int | None, grouping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.PAIRS_OF_SPAN, "cpu", GROUPINGS[grouping])  # type: ignore[arg-type]
    packing = Packing(LENGTHS[name])
    inputs = drawn(packing)
    torch.manual_seed(5)
    actual = attend(*inputs, packing, is_causal=is_causal, window=window, dropout=0.4)
    torch.manual_seed(5)
    rows = []
    for span, *some in zip(
        packing.spans(torch.device("cpu")),
        *(x.split([span.num_places for span in packing.spans(torch.device("cpu"))]) for x in inputs),
        strict=True,
    ):
        lengths, places = span.length_G.tolist(), range(span.longest)
        padded = [torch.nn.utils.rnn.pad_sequence(x.split(lengths), batch_first=True).transpose(1, 2) for x in some]
        sees = torch.tensor(
            [
                [
                    [j < n and (not is_causal or j <= i) and (window is None or abs(i - j) <= window) for j in places]
                    for i in places
                ]
                for n in lengths
            ]
        )[:, None]
        sees |= ~sees.any(dim=-1, keepdim=True)  # of padding, which is cut off
        weight = (padded[0] @ padded[1].mT / SIZE**0.5).masked_fill(~sees, -torch.inf).softmax(-1)
        mixed = (dropped(weight, 0.4) @ padded[2]).transpose(1, 2)
        rows += [of_row[:length] for of_row, length in zip(mixed, lengths, strict=True)]
    expected = torch.cat(rows)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    pairs = (torch.autograd.grad(one.sin().sum(), inputs) for one in (actual, expected))
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("is_autocast", [False, True])
def test_short_numbers_are_attended_to_in_float32(is_autocast: bool) -> None:
    packing = Packing([9, 9, 4])
    short = [x.detach().bfloat16().requires_grad_() for x in drawn(packing)]
    found = []
    for inputs in (short, [x.detach().double().requires_grad_() for x in short]):
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast and inputs is short):
            mixed = attend(*inputs, packing, dropout=0.4)
        found.append([mixed, *torch.autograd.grad(mixed.double().sum(), inputs)])
    for one, other in zip(*found, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one, other.bfloat16(), rtol=1e-2, atol=1e-3)  # one rounding


@pytest.mark.parametrize("name", list(LENGTHS))
def test_a_second_backward_through_dropped_weights_gives_the_same_gradients(name: str) -> None:
    packing = Packing(LENGTHS[name])
    inputs = drawn(packing)
    total = attend(*inputs, packing, dropout=0.4).sin().sum()
    once, again = (torch.autograd.grad(total, inputs, retain_graph=True) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))


def test_dropped_weights_keep_a_byte_each() -> None:
    packing, kept_bytes = Packing([64]), []
    inputs = drawn(packing)
    known = {x.untyped_storage().data_ptr() for x in inputs}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept_bytes.append(0 if x.untyped_storage().data_ptr() in known else x.nbytes) or x, lambda x: x
    ):
        attend(*inputs, packing, dropout=0.4)
    assert sum(kept_bytes) <= HEADS * 64 * 64 + 8 * HEADS * 64 * SIZE


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_under_autocast_any_types_attend_together(dropout: float) -> None:
    packing = Packing([4, 2])
    inputs = [x.detach().float().requires_grad_() for x in drawn(packing)]
    query, key, value = inputs
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attend(query.bfloat16(), key, value, packing, dropout=dropout)
    assert mixed.dtype == torch.bfloat16
    mixed.float().sum().backward()
    assert all(x.grad is not None and x.grad.dtype == torch.float32 for x in inputs)


def test_dropout_of_weights_keeps_their_mean() -> None:
    packing = Packing([4, 2])
    query, key, value = (x.detach() for x in drawn(packing))
    plain = attend(query, key, value, packing)
    torch.manual_seed(0)
    many = torch.stack([attend(query, key, value, packing, dropout=0.3) for _ in range(4000)])
    assert not torch.equal(many[0], many[1])
    torch.testing.assert_close(many.mean(0), plain, rtol=0, atol=0.05)  # 4 standard errors of 4000 draws


@pytest.mark.parametrize("pairs", [0, 8, 100, 1 << 10, 10**9])
def test_rows_are_grouped_as_cheaply_as_can_be(pairs: int) -> None:
    lengths = np.array([9, 9, 8, 5, 5, 5, 2, 1])
    found = list(module._spans(lengths, pairs))
    assert np.concatenate([span.length_G for span in found]).tolist() == lengths.tolist()

    def cost(groups: list[list[int]]) -> int:
        total = 0
        for group in groups:
            places = len(group) * max(group)
            total += pairs + places * max(group) + (min(group) < max(group)) * module.PAIRS_OF_PLACE * places
        return total

    tried = []
    for cuts in range(1 << (len(lengths) - 1)):  # every division; rows of one length are never better apart
        groups, current = [], [int(lengths[0])]
        for place in range(1, len(lengths)):
            if cuts >> (place - 1) & 1:
                groups.append(current)
                current = []
            current.append(int(lengths[place]))
        tried.append(cost([*groups, current]))
    assert cost([span.length_G.tolist() for span in found]) == min(tried)


def test_padding_and_packing_undo_one_another() -> None:
    packing = Packing([3, 2, 1])
    x_K = torch.arange(6)
    padded_RT = packing.padded(x_K, fill=-1)
    assert padded_RT.tolist() == [[0, 1, 2], [3, 4, -1], [5, -1, -1]]
    assert torch.equal(packing.packed(padded_RT), x_K)
    assert Packing([2, 2]).padded(x_K[:4]).tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("grouping", list(GROUPINGS))
def test_the_first_place_and_the_mean_of_rows(grouping: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.PAIRS_OF_SPAN, "cpu", GROUPINGS[grouping])  # type: ignore[arg-type]
    packing = Packing([3, 3, 2, 1])
    x_KD = torch.randn(9, 2, dtype=torch.float64)
    rows = [x_KD[:3], x_KD[3:6], x_KD[6:8], x_KD[8:]]
    assert torch.equal(packing.first(x_KD), torch.stack([row[0] for row in rows]))
    torch.testing.assert_close(packing.mean(x_KD), torch.stack([row.mean(0) for row in rows]), rtol=0, atol=1e-15)


def test_some_rows_and_their_places() -> None:
    some, places = Packing([4, 3, 3, 1]).some(np.array([1, 3]))
    assert some.length_R.tolist() == [3, 1]
    assert places.values.tolist() == [4, 5, 6, 10]


def test_rows_are_sorted_and_equal_ones_keep_their_order() -> None:
    packing, order = packing_of(np.array([2, 5, 2, 7]))
    assert (packing.length_R.tolist(), order.tolist()) == ([7, 5, 2, 2], [3, 1, 0, 2])


def test_left_padded_rows_lie_where_they_stood() -> None:
    is_valid_BL = torch.tensor([[False, False, True], [True, True, True], [False, False, False]])
    lengths = lengths_of(is_valid_BL)
    assert lengths.values.tolist() == [1, 3, 0]
    packing, place_K, from_end_K, row_B = left_padded(lengths.values, 3)
    assert packing.length_R.tolist() == [3, 1, 1]
    assert place_K.values.tolist() == [3, 4, 5, 2, 8]  # a row without any has its last place
    assert from_end_K.values.tolist() == [2, 1, 0, 0, 0]
    assert row_B.values.tolist() == [1, 0, 2]


def test_rows_with_gaps_are_refused() -> None:
    with pytest.raises(ValueError, match="must be padded on the left"):
        lengths_of(torch.tensor([[True, False, True]]))


@pytest.mark.parametrize("lengths", [[1, 2], [3, 0]])
def test_lengths_that_rise_or_are_none_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="longer rows must come first"):
        Packing(lengths)


def test_arrays_of_the_host_stay_there_and_are_copied_once_to_a_device() -> None:
    array = HostArray([3, 1, 2])
    assert to_device(array, "cpu") is array
    assert array.on(torch.device("cpu")) is array.on(torch.device("cpu"))
    assert array.on(torch.device("meta")).shape == (3,)


def test_packings_and_arrays_pass_to_other_processes() -> None:
    packing = Packing([3, 1])
    packing.spans(torch.device("cpu"))
    travelled, array = pickle.loads(pickle.dumps((packing, HostArray([2, 5]))))  # noqa: S301  of this test
    assert (travelled.length_R.tolist(), array.values.tolist()) == ([3, 1], [2, 5])


def test_a_tensor_stays_where_it_is_unless_a_copy_is_asked_for() -> None:
    x = torch.arange(3)
    assert sent(x, torch.device("cpu")) is x
    assert sent(x, torch.device("cpu"), copy=True).data_ptr() != x.data_ptr()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="memory is page-locked for a GPU")
@pytest.mark.parametrize("most", [0, 1 << 20])
def test_what_goes_to_a_gpu_arrives_with_and_without_page_locked_memory(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(module, "MAX_PINNED_BYTES", most)
    for x in (torch.arange(1000), torch.zeros(0), torch.ones(3, 4).T):
        assert torch.equal(sent(x, torch.device("cuda")).cpu(), x)


def test_a_packing_that_was_used_under_inference_mode_serves_training() -> None:
    packing = Packing([3, 2])
    tensors = drawn(packing)
    with torch.inference_mode():
        attend(*tensors, packing)
    attend(*tensors, packing).sum().backward()
    assert all(tensor.grad is not None for tensor in tensors)


def test_a_compiled_function_asks_for_numbers_of_the_host_without_a_break() -> None:
    places = HostArray([2, 0])

    def chosen(x_K: Tensor) -> Tensor:
        return x_K.index_select(0, places.on(x_K.device))

    x_K = torch.tensor([1.0, 2.0, 3.0])
    compiled = torch.compile(chosen, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x_K), torch.tensor([3.0, 1.0]))
