"""A transfer plan covers every part; applying it loads all parts that it names, or nothing."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from sealing import edit_tensors, seal
from torch import Tensor, nn

from pmmrec.contracts import Modality, PixelInputs, TokenInputs
from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.models.build import ModelConfig, build, parameter_table
from pmmrec.packing import HostArray
from pmmrec.settings import validate
from pmmrec.zoo.about import group_of
from pmmrec.zoo.checkpoint import Checkpoint
from pmmrec.zoo.transfer import FULL, NAMED, TransferPlan, apply, model_after, plan_full

SCRATCH = TransferPlan(fresh=("*",), drop=("*",))
ENCODERS = ("text_encoder", "vision_encoder")
ITEMS = (*ENCODERS, "fusion")
ALL = (*ITEMS, "user_encoder")
GROUPS = {**dict.fromkeys(ITEMS, "items"), "user_encoder": "users"}


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def is_equal(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return list(state) == list(other) and all(torch.equal(tensor, other[name]) for name, tensor in state.items())


def came_over(source: Any, target: Any) -> dict[str, bool]:
    """Which parts of the target are now those of the source."""
    theirs = source.recommender.parts
    return {
        name: is_equal(part.state_dict(), theirs[name].state_dict()) for name, part in target.recommender.parts.items()
    }


def test_full_transfer_loads_every_part(run: Any, other: Any, saved: Path) -> None:
    report = apply(FULL, Checkpoint.open(saved), other.recommender)
    assert came_over(run, other) == dict.fromkeys(ALL, True)
    assert {(row.part, row.action) for row in report.rows} == {
        *((name, "loaded") for name in ALL),
        ("objectives/noise_detection", "dropped"),
    }


def test_a_start_from_scratch_loads_nothing(other: Any, saved: Path) -> None:
    before = snapshot(other.recommender)
    report = apply(SCRATCH, Checkpoint.open(saved), other.recommender)
    assert is_equal(before, other.recommender.state_dict())
    assert [row.action for row in report.rows].count("fresh") == 4
    assert [row.action for row in report.rows].count("dropped") == 5


@pytest.mark.parametrize(
    ("plan", "loaded"),
    [
        (TransferPlan(load=ITEMS, fresh=("user_encoder",), drop=("user_encoder",)), ITEMS),
        (TransferPlan(load=("*",), fresh=("user_encoder",), drop=("user_encoder",)), ITEMS),
        (TransferPlan(load=("user_encoder",), fresh=ITEMS, drop=ITEMS), ("user_encoder",)),
        (TransferPlan(load=("user_encoder",), fresh=("*",), drop=("*",)), ("user_encoder",)),
        (TransferPlan(load=("item_encoder",), fresh=("user_encoder",), drop=("user_encoder",)), ITEMS),
        (TransferPlan(load=("user_encoder",), fresh=("item_encoder",), drop=("item_encoder",)), ("user_encoder",)),
    ],
)
def test_exactly_the_planned_parts_are_loaded(
    run: Any, other: Any, saved: Path, plan: TransferPlan, loaded: tuple[str, ...]
) -> None:
    apply(plan, Checkpoint.open(saved), other.recommender)
    assert came_over(run, other) == {name: name in loaded for name in ALL}


def test_a_text_model_loads_the_text_parts_of_a_multimodal_model(run: Any, text_only: Any, saved: Path) -> None:
    plan = TransferPlan(load=("text_encoder", "user_encoder"), drop=("vision_encoder", "fusion"))
    apply(plan, Checkpoint.open(saved), text_only.recommender)
    assert came_over(run, text_only) == {"text_encoder": True, "user_encoder": True}


def test_parts_of_the_checkpoint_that_a_plan_forgets_are_named(text_only: Any, saved: Path) -> None:
    with pytest.raises(RecipeError, match=r"vision_encoder of the checkpoint \(load it or drop it\), fusion of the"):
        apply(FULL, Checkpoint.open(saved), text_only.recommender)


def test_parts_of_the_model_that_a_plan_forgets_are_named(other: Any, text_only: Any, tmp_path: Path) -> None:
    text_only.save(tmp_path / "text")
    with pytest.raises(RecipeError, match=r"fusion of the model \(load it or start it fresh\)"):
        apply(FULL, Checkpoint.open(tmp_path / "text"), other.recommender)


def test_a_dropped_part_that_the_model_needs_is_explained(other: Any, saved: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"fusion of the model .*; with model=null the model is the checkpoint's, less"
    ):
        apply(NAMED["text"], Checkpoint.open(saved), other.recommender)


def test_the_full_plan_names_every_part(other: Any, text_only: Any, saved: Path, tmp_path: Path) -> None:
    text_only.save(tmp_path / "text")
    assert plan_full(Checkpoint.open(saved), text_only.recommender) == TransferPlan(
        load=("text_encoder", "user_encoder"), drop=("vision_encoder", "fusion")
    )
    assert plan_full(Checkpoint.open(tmp_path / "text"), other.recommender) == TransferPlan(
        load=("text_encoder", "user_encoder"), fresh=("vision_encoder", "fusion")
    )


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (TransferPlan(load=("user_encodr",)), r"transfer\.load: 'user_encodr' .*did you mean 'user_encoder'\?"),
        (TransferPlan(load=("*",), fresh=("zzz",)), r"transfer\.fresh: 'zzz' is not a part of the model; there are"),
        (TransferPlan(load=("*",), drop=("zzz",)), r"transfer\.drop: 'zzz' is not a part of the checkpoint"),
        (TransferPlan(load=("*",), train=("objectives",)), r"transfer\.train: 'objectives' is not a part of the model"),
        (TransferPlan(load=("*", "objectives")), r"'objectives' is not a part of checkpoint and model"),
    ],
)
def test_parts_that_are_not_there_are_refused(other: Any, saved: Path, plan: TransferPlan, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        apply(plan, Checkpoint.open(saved), other.recommender)


@pytest.mark.parametrize(
    ("plan", "loads", "keeps"),
    [
        (FULL, ALL, ALL),
        (SCRATCH, (), ALL),
        (NAMED["items"], ITEMS, ALL),
        (NAMED["user"], ("user_encoder",), ALL),
        (NAMED["text"], (ALL[0], ALL[3]), (ALL[0], ALL[3])),
        (NAMED["vision"], (ALL[1], ALL[3]), (ALL[1], ALL[3])),
        (NAMED["frozen"], ALL, ALL),
        (TransferPlan(load=("*",), drop=("vision_encoder", "fusion")), (ALL[0], ALL[3]), (ALL[0], ALL[3])),
    ],
)
def test_a_plan_tells_which_parts_it_loads_and_keeps(
    plan: TransferPlan, loads: tuple[str, ...], keeps: tuple[str, ...]
) -> None:
    assert plan.loads(GROUPS) == loads
    assert plan.keeps(GROUPS) == keeps


def test_the_model_after_a_plan_lacks_dropped_parts(saved: Path) -> None:
    checkpoint = Checkpoint.open(saved)
    assert model_after(FULL, checkpoint) == checkpoint.model_config
    assert model_after(SCRATCH, checkpoint) == checkpoint.model_config
    texts = model_after(TransferPlan(load=("text_encoder", "user_encoder"), drop=("*",)), checkpoint)
    assert set(texts.item_encoder.encoders) == {"text_encoder"}
    assert texts.user_encoder == checkpoint.model_config.user_encoder
    with pytest.raises(RecipeError, match=r"keeps user_encoder of .* that makes no item encoder"):
        model_after(TransferPlan(load=("user_encoder",), drop=("*",)), checkpoint)


@pytest.mark.parametrize("field", ["fresh", "drop"])
def test_a_part_cannot_be_both_loaded_and_dropped(field: str) -> None:
    with pytest.raises(RecipeError, match=f"fusion is in load and in {field}; keep one"):
        validate(TransferPlan, {"load": ["fusion"], field: ["fusion"]}, "transfer")


def test_a_plan_can_be_written_in_a_recipe() -> None:
    plan = validate(TransferPlan, {"load": ["*"], "train": ["fusion"]}, "transfer")
    assert plan == TransferPlan(load=("*",), train=("fusion",))
    assert TransferPlan.model_validate(plan.model_dump(mode="json")) == plan


def damage(folder: Path, part: str, change: Callable[[dict[str, Tensor]], None]) -> None:
    edit_tensors(folder, f"{part}/part.safetensors", change)
    seal(folder, f"{part}/part.safetensors")


def test_every_misfit_of_every_part_is_listed_and_nothing_changes(other: Any, saved_copy: Path) -> None:
    damage(saved_copy, "fusion", lambda state: state.update(mm_cls=torch.ones(9)))
    damage(saved_copy, "user_encoder", lambda state: state.update(renamed=state.pop(next(iter(state)))))
    before = snapshot(other.recommender)
    with pytest.raises(CheckpointError) as caught:
        apply(FULL, Checkpoint.open(saved_copy), other.recommender)
    message = str(caught.value)
    assert "does not fit the model; nothing was loaded" in message
    assert "fusion: of another shape in the checkpoint: mm_cls (9,) for (8,)" in message
    assert "user_encoder: missing in the checkpoint: " in message
    assert "user_encoder: unknown to the model in the checkpoint: renamed" in message
    assert is_equal(before, other.recommender.state_dict())


@pytest.mark.parametrize("max_inputs", [3, 6])
def test_a_checkpoint_with_positions_for_shorter_or_longer_histories_is_refused(
    run: Any, backbones: Any, saved: Path, max_inputs: int
) -> None:
    tree = run.model_config.model_dump()
    tree["user_encoder"]["max_inputs"] = max_inputs
    model = build(validate(ModelConfig, tree, "test"), backbones)
    before = snapshot(model)
    shapes = rf"position\.weight \(4, 8\) for \({max_inputs}, 8\)"
    with pytest.raises(CheckpointError, match=rf"user_encoder: of another shape in the checkpoint: {shapes}"):
        apply(FULL, Checkpoint.open(saved), model)
    assert is_equal(before, model.state_dict())


def test_a_broken_part_that_is_dropped_stops_the_transfer_before_anything_changes(other: Any, saved_copy: Path) -> None:
    (saved_copy / "fusion" / "part.safetensors").write_bytes(b"short")
    before = snapshot(other.recommender)
    plan = TransferPlan(load=("*",), fresh=("fusion",), drop=("fusion",))
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        apply(plan, Checkpoint.open(saved_copy), other.recommender)
    assert is_equal(before, other.recommender.state_dict())


def test_heads_of_pretraining_are_loaded_on_request(run: Any, other: Any, saved: Path) -> None:
    plan = TransferPlan(load=("*", "objectives"))
    apply(plan, Checkpoint.open(saved), other.recommender, other.objectives)
    head = "noise_detection"
    assert is_equal(other.objectives[head].state_dict(), run.objectives[head].state_dict())


def test_heads_start_fresh_by_default(other: Any, saved: Path) -> None:
    before = snapshot(other.objectives["noise_detection"])
    report = apply(FULL, Checkpoint.open(saved), other.recommender, other.objectives)
    assert is_equal(before, other.objectives["noise_detection"].state_dict())
    assert [row.action for row in report.rows if row.part == "objectives/noise_detection"] == ["fresh", "dropped"]


def test_heads_of_other_objectives_do_not_fit(other: Any, saved: Path) -> None:
    before = snapshot(other.recommender)
    heads = {"noise": other.objectives["noise_detection"]}
    with pytest.raises(
        CheckpointError, match=r"objectives: missing in the checkpoint: noise\n.*unknown.*noise_detection"
    ):
        apply(TransferPlan(load=("*", "objectives")), Checkpoint.open(saved), other.recommender, heads)
    assert is_equal(before, other.recommender.state_dict())


def test_parts_that_do_not_train_are_frozen_and_stay_in_eval_mode(other: Any, saved: Path, score: Any) -> None:
    recommender = other.recommender
    apply(TransferPlan(load=("*",), train=("user_encoder",)), Checkpoint.open(saved), recommender)
    recommender.train()
    first = score(recommender)
    parts = recommender.parts
    assert {name for name, part in parts.items() if any(p.requires_grad for p in part.parameters())} == {"user_encoder"}
    assert {name for name, part in parts.items() if any(m.training for m in part.modules())} == {"user_encoder"}
    assert not torch.equal(first, score(recommender))  # dropout of the user encoder alone is at work


def test_a_frozen_encoder_ignores_its_trainable_blocks(other: Any, saved: Path) -> None:
    encoders = other.recommender.item_encoder.encoders
    assert [encoder.prefix for encoder in encoders.values()] == [None, None]  # all blocks learn
    apply(TransferPlan(load=("*",), train=("fusion", "user_encoder")), Checkpoint.open(saved), other.recommender)
    pixels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    inputs = {
        Modality.TEXT: TokenInputs.of([[2, 20, 3], [2, 3]]),
        Modality.IMAGE: PixelInputs(pixels, HostArray(range(2))),
    }
    for modality, encoder in encoders.items():
        assert torch.equal(encoder.prefix.states(inputs[modality]), encoder.hidden(inputs[modality]))


def test_without_train_every_part_is_trained_as_configured(other: Any, saved: Path) -> None:
    before = {name: parameter.requires_grad for name, parameter in other.recommender.named_parameters()}
    apply(FULL, Checkpoint.open(saved), other.recommender)
    assert {name: parameter.requires_grad for name, parameter in other.recommender.named_parameters()} == before


def test_a_plan_that_trains_nothing_is_refused_before_anything_changes(other: Any, saved: Path) -> None:
    before = snapshot(other.recommender)
    with pytest.raises(RecipeError, match=r"transfer\.train: no part: nothing there can be trained"):
        apply(TransferPlan(load=("*",), train=()), Checkpoint.open(saved), other.recommender)
    assert is_equal(before, other.recommender.state_dict())


def test_the_report_counts_every_tensor_and_prints_as_one_table(other: Any, saved: Path) -> None:
    plan = TransferPlan(load=("*",), fresh=("fusion",), drop=("fusion",), train=("fusion", "user_encoder"))
    report = apply(plan, Checkpoint.open(saved), other.recommender)
    fusion = other.recommender.parts["fusion"].state_dict()
    size = sum(tensor.numel() for tensor in fusion.values())
    table = report.table(parameter_table(other.recommender.parts))
    assert table.columns == ["part", "action", "tensors", "parameters", "learning"]
    learning = sum(tensor.numel() for tensor in other.recommender.parts["fusion"].parameters() if tensor.requires_grad)
    counts = [row[2:] for row in table.rows if row[0] == "fusion"]
    assert counts == [[len(fusion), size, learning], [len(fusion), size, None]]
    assert table.rows[0][::4] == ["text_encoder", 0]
    assert len(table.rows) == 4 + 2


def test_a_plan_can_be_given_by_its_name() -> None:
    assert TransferPlan.model_validate("items") == NAMED["items"]
    with pytest.raises(ValueError, match="no plan is called 'all'; there are full, items, user, text, vision, frozen"):
        TransferPlan.model_validate("all")


def test_two_names_for_the_same_part_are_refused(other: Any, text_only: Any, saved: Path) -> None:
    twice = TransferPlan(load=("item_encoder", "text_encoder", "user_encoder"))
    with pytest.raises(RecipeError, match="load names a part twice"):
        apply(twice, Checkpoint.open(saved), other.recommender)
    both = TransferPlan(load=("text_encoder", "user_encoder"), drop=("item_encoder",))
    with pytest.raises(RecipeError, match="text_encoder is in load and in drop"):
        apply(both, Checkpoint.open(saved), text_only.recommender)


def test_parts_are_grouped_by_their_family(run: Any, saved: Path) -> None:
    assert Checkpoint.open(saved).part_groups == dict(run.recommender.part_groups) == GROUPS
    assert group_of("scorer") == "scorer"
    with pytest.raises(CheckpointError, match="no family of parts is called 'choir'; there are text encoder"):
        group_of("choir")
