"""BERT4Rec over texts that reads hidden items by a text, which is encoded with the items and kept for ranking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import train_gathered
import train_systems
from command_line import Pmmrec, working_in
from safetensors.torch import load_file
from torch import Tensor

from pmmrec.contracts import History, ItemInputs, ItemVectors, PrefixInputs, TokenInputs
from pmmrec.data.domain import Domain
from pmmrec.models.towers import Towers
from pmmrec.serving.service import load_index
from pmmrec.system import load
from pmmrec.train.accumulate import encode_in_parts
from pmmrec.train.task import TrainingTask
from pmmrec.zoo.checkpoint import Checkpoint, load_recommender

TEXT = "model.user_encoder.mask_text=a hidden item"
QUICK = ("train.epochs=2", "train.batch_users=16", "machine.device=cpu", "cache=c", "name=run")
ROWS = np.array([3, 0, 10, 7, 12])  # of shop: items 3 and 10 have no text


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mask")
    train_gathered.make_home(folder)
    return folder


def task_of(home: Path) -> TrainingTask:
    system = train_systems.SYSTEMS["mask text"]
    return train_gathered.task_of(home, system.terms, train_gathered.sources_of(home), system.model)


def items_of(home: Path, task: TrainingTask, rows: np.ndarray = ROWS) -> ItemInputs:
    return train_gathered.reader_of(home, task, train_gathered.sources_of(home)).read(np.zeros_like(rows), rows)


def text_vector(encoder: Towers) -> Tensor:
    """The text, encoded alone."""
    tower = encoder.text_encoder
    text_1D = tower(TokenInputs.of(tower.tokenizer.encode([encoder.mask_text]))).cls_RD
    return torch.nn.functional.layer_norm(text_1D[0], (train_gathered.WIDTH,))


def assert_same_with_gradients(actual: Tensor, expected: Tensor, task: TrainingTask) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)  # measured 9e-16
    weights = [one for one in task.recommender.parameters() if one.requires_grad]
    rules = {"allow_unused": True, "retain_graph": True}  # the graph of the items is shared
    ours, theirs = (torch.autograd.grad(one.square().sum(), weights, **rules) for one in (actual, expected))
    assert sum(one is not None and bool(one.any()) for one in ours) > 10
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)  # measured 4e-15


def test_hidden_items_are_read_as_the_text_with_its_gradients(home: Path) -> None:
    task = task_of(home)
    model = task.recommender.train()
    vectors = model.item_encoder(items_of(home, task))
    index_BL = torch.tensor([[4, 1, 0, 3], [0, 2, 3, 1]])
    is_valid_BL = torch.tensor([[True] * 4, [False, True, True, True]])
    is_masked_BL = torch.tensor([[False, True, False, True], [False, False, True, False]])
    actual = model.states(History.of(vectors, index_BL, is_valid_BL, is_masked_BL)).hidden_BLD
    text_D = text_vector(model.item_encoder)
    shown_BLD = torch.zeros(2, 4, train_gathered.WIDTH, dtype=torch.float64)
    for user, place in [(0, 0), (0, 2), (1, 1), (1, 3)]:
        shown_BLD[user, place] = vectors.fused_UD[index_BL[user, place]]
    for user, place in [(0, 1), (0, 3), (1, 2)]:
        shown_BLD[user, place] = text_D
    assert_same_with_gradients(actual, model.states(History(shown_BLD, is_valid_BL)).hidden_BLD, task)


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], ROWS[1:2]], ids=["some", "without a text", "one"])
@pytest.mark.parametrize("parts", [1, 2])
def test_items_are_what_they_are_without_the_text(home: Path, rows: np.ndarray, parts: int) -> None:
    task = task_of(home)
    encoder, items = task.recommender.item_encoder.train(), items_of(home, task, rows)
    found = encoder(items) if parts == 1 else encode_in_parts(encoder, items, parts)
    assert torch.equal(found.is_readable_U, torch.tensor([row % 7 != 3 for row in rows]))
    torch.testing.assert_close(found.mask_D, text_vector(encoder), rtol=0, atol=1e-12)
    encoder.mask_text = None
    assert_close_vectors(found, encoder(items))
    assert encoder(items).mask_D is None


def assert_close_vectors(actual: ItemVectors, expected: ItemVectors) -> None:
    torch.testing.assert_close(actual.fused_UD, expected.fused_UD, rtol=0, atol=1e-12)  # measured 9e-16
    torch.testing.assert_close(actual.cls_UD["text"], expected.cls_UD["text"], rtol=0, atol=1e-12)
    assert torch.equal(actual.has_U["text"], expected.has_U["text"])


def test_kept_states_give_what_tokens_give(home: Path) -> None:
    task = task_of(home)
    encoder, items = task.recommender.item_encoder, items_of(home, task)
    tower = encoder.text_encoder
    tower.train_top_blocks(tower._layout, 0)
    encoder.train()
    rows = items.fields["text"]
    kept = PrefixInputs(tower.prefix.states(rows).double(), rows.packing, rows.item_index_R)
    expected = encoder(items)
    items.fields["text"] = kept
    for _ in range(2):  # the second time with the state of the text kept as well
        found = encoder(items)
        torch.testing.assert_close(found.mask_D, expected.mask_D, rtol=0, atol=1e-6)  # states are float32
        torch.testing.assert_close(found.fused_UD, expected.fused_UD, rtol=0, atol=1e-6)
        encoder.keep_states()


@pytest.mark.parametrize("more", [(), ("train.average.decay=0.9",)], ids=["last weights", "averaged weights"])
def test_it_is_ranked_listed_and_served_as_it_was_saved(
    world: Path, tmp_path: Path, pmmrec: Pmmrec, more: tuple[str, ...]
) -> None:
    with working_in(tmp_path):
        where = ("--from", "none", "--on", world / "boutique")
        told = pmmrec("finetune", "zoo/content/small/bert4rec_text", *where, *QUICK, TEXT, *more)
        assert told.code == 0, told.output
        run, kept = Path("runs/run"), Path("runs/run/checkpoint")
        mask_D = load_file(kept / "user_encoder" / "part.safetensors")["mask"]
        encoder = load_recommender(Checkpoint.open(kept)).item_encoder
        torch.testing.assert_close(mask_D, encoder.mask_vector(), rtol=0, atol=1e-6)
        told = pmmrec("evaluate", kept, world / "boutique", "--out", "again", "--cache", "c")
        assert told.code == 0, told.output
        ranks = [pq.read_table(place / "ranks.parquet")["rank"].to_pylist() for place in (run, Path("again"))]
        assert ranks[0] == ranks[1]
        for out in ("lists.csv", "again.csv"):  # the second time from kept vectors, without the text encoder
            told = pmmrec("score", kept, world / "boutique", "--top-k", 5, "--out", out, "--cache", "c")
            assert told.code == 0, told.output
        assert Path("lists.csv").read_text() == Path("again.csv").read_text()
        told = pmmrec("index", kept, world / "boutique", "--out", "index", "--kind", "flat", "--cache", "c")
        assert told.code == 0, told.output
        domain, system = Domain.open(world / "boutique"), load(kept, cache="c", device="cpu")
        system.encode_items(domain)
        history = [domain.item_ids[row].as_py() for row in domain.sequence(1).tolist()]
        listed, expected = load_index("index").recommend(history, 5), system.recommend(history, 5)
        assert [item for item, _ in listed] == [item for item, _ in expected]
        masked = "objectives={dap: null, bce: {type: bce, targets: masked}}"
        told = pmmrec(
            "finetune", "finetune/frozen", "--from", kept, "--on", world / "boutique", *QUICK, "name=frozen", masked
        )
        assert told.code == 0, told.output
        frozen_D = load_file("runs/frozen/checkpoint/user_encoder/part.safetensors")["mask"]
        torch.testing.assert_close(frozen_D, mask_D, rtol=0, atol=1e-6)  # the text encoder did not learn


@pytest.mark.parametrize("plan", [(), ("--dry-run",)], ids=["run", "plan"])
def test_frozen_blocks_and_averaged_weights_read_it_too(
    world: Path, tmp_path: Path, pmmrec: Pmmrec, plan: tuple[str, ...]
) -> None:
    with working_in(tmp_path):
        frozen = ("model.item_encoder.text.trainable_blocks=1", "prefix_cache=on", "train.average={decay: 0.9}", TEXT)
        where = ("--from", "none", "--on", world / "boutique", *plan)
        told = pmmrec("finetune", "zoo/content/small/bert4rec_text", *where, *QUICK, *frozen)
        assert told.code == 0, told.output
        if not plan:
            kept = Path("runs/run/checkpoint")
            mask_D = load_file(kept / "user_encoder" / "part.safetensors")["mask"]
            encoder = load_recommender(Checkpoint.open(kept)).item_encoder
            torch.testing.assert_close(mask_D, encoder.mask_vector(), rtol=0, atol=1e-6)
