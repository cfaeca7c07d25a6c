"""One forward of one module: what is encoded, how often, and what comes out."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from pmmrec.contracts import History, ItemVectors, Nodes, WindowPass
from pmmrec.data.batches import DataConfig
from pmmrec.models.build import ModelConfig, build
from pmmrec.objectives import objectives
from pmmrec.requests import DrawnNegatives, NextItems, Noised, Requests, View
from pmmrec.testing.twins.drawn_negatives import drawn_by_loops
from pmmrec.train.prepare import Batches
from pmmrec.train.task import TrainingTask, _history


def test_each_encoder_runs_once_for_a_batch_with_clean_and_corrupted_windows(reading) -> None:
    encoder = reading.task.recommender.item_encoder
    calls: dict[str, list[int]] = {}

    def count(name: str):
        def add(_, inputs) -> None:
            given = inputs[0].item_BLD if isinstance(inputs[0], History) else inputs[0].item_index_R
            calls.setdefault(name, []).append(len(given))

        return add

    encoder.text_encoder.register_forward_pre_hook(count("text"))
    encoder.vision_encoder.register_forward_pre_hook(count("vision"))
    reading.task.recommender.user_encoder.register_forward_pre_hook(count("user"))
    views = reading.task.views(reading.batch)
    assert set(views.states) == {NextItems(), Noised()}
    num_users = reading.batch.windows.is_valid_BS.shape[0]
    with_text = reading.batch.items.fields["text"].packing.num_rows
    with_image = reading.batch.items.fields["image"].pixels_RCHW.shape[0]
    assert calls == {"text": [with_text], "vision": [with_image], "user": [2 * num_users]}
    assert with_text < int(reading.batch.windows.is_valid_BS.sum())


def test_windows_that_are_reworded_read_second_texts_where_they_say_so() -> None:
    items = ItemVectors(torch.randn(3, 2), streams_UD={"reworded": torch.randn(3, 2)})
    index_BL, is_valid_BL = torch.tensor([[2, 0], [0, 1]]), torch.tensor([[True, True], [False, True]])
    nothing_BL = torch.zeros_like(is_valid_BL)
    plain = WindowPass(index_BL, is_valid_BL, torch.zeros_like(index_BL), nothing_BL)
    reworded = dataclasses.replace(plain, is_reworded_BL=torch.tensor([[False, True], [False, True]]))
    history = _history(Nodes(items), [plain, reworded], None, last_alone=False)
    clean, second = items.fused_UD, items.streams_UD["reworded"]
    nothing = torch.zeros(2)
    rows = [[clean[2], clean[0]], [nothing, clean[1]], [clean[2], second[0]], [nothing, second[1]]]
    assert torch.equal(history.item_BLD, torch.stack([torch.stack(row) for row in rows]))


def test_both_passes_of_one_forward_equal_two_separate_passes(reading) -> None:
    recommender, windows = reading.task.recommender, reading.batch.windows
    with torch.no_grad():
        views = reading.task.views(reading.batch)
        items, alone = recommender.item_encoder(reading.batch.items), {}
        for request, of_pass in windows.passes.items():
            history = History.of(items, of_pass.item_index_BL, of_pass.is_valid_BL)
            alone[request] = recommender.states(history).hidden_BLD
            # float32, values near 1; measured 0
            torch.testing.assert_close(views.states[request].hidden_BLD, alone[request], rtol=0, atol=1e-6)
    assert not torch.equal(alone[NextItems()], alone[Noised()])


def test_no_pass_with_noise_is_run_where_no_objective_asks(workshop) -> None:
    shop = workshop({"dap": {"type": "next_item"}})
    batch = next(iter(shop.batches(8).epoch(1)))
    assert shop.task.requests == Requests.of(NextItems())
    assert set(shop.task.views(batch).states) == {NextItems()}


S2O = {"bce": {"type": "bce", "targets": "last"}, "l2": {"type": "embedding_l2", "targets": "last"}}


def test_the_last_states_alone_give_the_loss_and_gradients_of_all_states(workshop) -> None:
    found = []
    for reads_histories in (False, True):
        shop = workshop(S2O)
        task, batch = shop.task.double(), next(iter(shop.batches(8).epoch(1)))
        task.recommender.scorer.reads_histories = reads_histories
        states = task.views(batch).states[NextItems()]
        assert states.hidden_BLD.shape[1] == (batch.windows.item_index_BS.shape[1] - 1 if reads_histories else 1)
        figures = task(batch)
        gradients = torch.autograd.grad(figures["bce"][0], list(task.parameters()), allow_unused=True)
        found.append([*figures.values(), *gradients])
    for alone, whole in zip(*found, strict=True):
        torch.testing.assert_close(alone, whole, rtol=0, atol=1e-12)  # float64


@pytest.mark.parametrize("name", ["bce", "bpr"])
def test_the_last_target_alone_with_its_own_negatives_gives_the_loss_of_loops(workshop, name: str) -> None:
    shop = workshop({name: {"type": name, "targets": "last", "negatives": {"count": 3}}})
    task, batch = shop.task.double(), next(iter(shop.batches(8).epoch(1)))
    task.recommender.scorer.reads_histories = True  # all states, where the loops look them up
    term, views = task.objectives[name], task.views(batch)
    total, count = drawn_by_loops(term, views)
    found = term(views)
    assert float(found.count) == count == len(batch.user_id)
    torch.testing.assert_close(found.sum, total, rtol=0, atol=1e-12)  # float64


def test_negatives_are_drawn_for_all_targets_that_one_objective_compares() -> None:
    def asked(targets: str, count: int) -> Requests:
        return objectives.config({"type": "bce", "targets": targets, "negatives": {"count": count}}).requests(
            negatives=DrawnNegatives(count=count)
        )

    both = Requests.union([asked("last", 1), asked("last", 2), asked("next", 2)])
    assert both.drawn == {DrawnNegatives(count=1), DrawnNegatives(count=2)}
    assert both.drawn_for_last == {(NextItems(), DrawnNegatives(count=1))}
    assert Requests.union([both, asked("next", 1)]).drawn_for_last == frozenset()
    assert Requests.union([asked("last", 1), asked("last", 1)]).drawn_for_last == both.drawn_for_last


def test_all_states_are_computed_where_one_objective_reads_them(workshop) -> None:
    shop = workshop({**S2O, "dap": {"type": "next_item"}})
    batch = next(iter(shop.batches(8).epoch(1)))
    assert not shop.task.requests.last_alone
    assert shop.task.views(batch).states[NextItems()].hidden_BLD.shape[1] == batch.windows.item_index_BS.shape[1] - 1


def test_passes_whose_last_states_are_read_stand_apart_from_others_of_their_length(workshop) -> None:
    shop = workshop({**S2O, "nid": {"type": "noise_detection"}})
    batch = next(iter(shop.batches(8).epoch(1)))
    assert shop.task.requests.last_alone == {NextItems()}
    states, num_inputs = shop.task.views(batch).states, batch.windows.item_index_BS.shape[1] - 1
    assert {request: one.hidden_BLD.shape[1] for request, one in states.items()} == {
        NextItems(): 1,
        Noised(): num_inputs,
    }


def test_the_task_needs_what_its_objectives_need(reading) -> None:
    assert reading.task.requests == Requests.of(NextItems(), Noised(), views=(View.MODALITIES, View.ORDER))


def test_forward_gives_sum_and_count_of_every_objective_and_metric(reading) -> None:
    with torch.no_grad():
        figures = reading.task(reading.batch)
        terms = reading.task.terms(reading.task.views(reading.batch))
    assert {"dap", "nicl", "nid", "rcl", "dap/chance", "nid/accuracy"} <= figures.keys()
    for name, term in terms.items():
        assert figures[name].tolist() == [float(term.sum), float(term.count)]
    has_next = reading.batch.windows.has_next_BL.sum()
    assert figures["dap"][1] == has_next


def test_gradient_norms_are_those_of_each_weighted_objective_alone(reading) -> None:
    norms = reading.task.gradient_norms(reading.batch)
    views = reading.task.views(reading.batch)
    loss = reading.task.terms(views)["rcl"].mean * 2.0  # its weight
    (gradient,) = torch.autograd.grad(loss, views.items.fused_UD)
    torch.testing.assert_close(norms["rcl"], float(gradient.norm()), rtol=1e-5, atol=0)  # measured 1e-7
    assert all(norm > 0 for norm in norms.values())


def test_gradient_norms_show_objectives_on_either_side_of_a_graph(workshop) -> None:
    shop = workshop()
    parts = {"user_encoder": {"type": "user_table"}, "propagation": {"type": "lightgcn"}}
    config = ModelConfig.model_validate({"width": 8, "item_encoder": {"type": "ids"}, **parts})
    recommender = build(config, {}, shop.sources.catalogues, shop.sources.graphs)
    terms = {name: objectives.config({"type": name}) for name in ("bpr", "embedding_l2")}
    task, data = TrainingTask.of(recommender, terms, 8), DataConfig(examples="interactions")
    batches = Batches(data, shop.sources, shop.reader, task, 16, 1, shop.processes, shop.log)
    norms = task.gradient_norms(next(iter(batches.epoch(1))))
    assert all(norms[name] > 0 for name in terms), norms


def test_gradient_norms_leave_no_gradient_behind(reading) -> None:
    reading.task.gradient_norms(reading.batch)
    assert all(parameter.grad is None for parameter in reading.task.parameters())


def test_all_parameters_stand_under_one_root(reading) -> None:
    names = {name.split(".")[0] for name, _ in reading.task.named_parameters()}
    assert names == {"recommender", "objectives"}
    assert isinstance(reading.task.objectives, nn.ModuleDict)
