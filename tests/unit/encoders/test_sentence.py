"""A folder of sentence-transformers says how texts are pooled and lowercased; a recipe that says so itself wins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pmmrec.context import Backbone, BuildContext
from pmmrec.contracts import TokenInputs, TokenStates
from pmmrec.encoders.text import HFText, HFTextConfig
from pmmrec.errors import CheckpointError

TEXTS = ["Red shoe for a RUN", "blue"]
SWITCHES = {"word_embedding_dimension": 8, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False}


def sentence_folder(folder: Path, pooling: dict[str, Any], *more: str, **texts: Any) -> Path:
    """Write what sentence-transformers writes beside a backbone: `pooling` and the kinds of modules after it."""
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), *((kind, f"{2 + i}_{kind}") for i, kind in enumerate(more))]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20, **texts}))
    return folder


@pytest.fixture
def saved(fresh_text: Callable[..., HFText], tmp_path: Path) -> Path:
    """A tiny bert in a folder of transformers alone."""
    encoder = fresh_text()
    encoder.backbone.save_pretrained(tmp_path / "saved")
    encoder.tokenizer.save(tmp_path / "saved")
    return tmp_path / "saved"


def opened(folder: Path, *, is_pretrained: bool = True, **settings: Any) -> HFText:
    config = HFTextConfig(weights="saved", **{"max_tokens": 20, **settings})
    torch.manual_seed(0)
    return HFText(config, BuildContext(6, {"": Backbone(folder, is_pretrained)})).eval()


def states(encoder: HFText, texts: list[str] = TEXTS) -> TokenStates:
    return encoder(TokenInputs.of(encoder.tokenizer.encode(texts)))


def one_row(encoder: HFText) -> TokenInputs:
    return TokenInputs.of(encoder.tokenizer.encode(TEXTS[:1]))


def test_without_modules_the_whole_is_token_zero_and_case_counts(saved: Path) -> None:
    encoder = opened(saved)
    assert encoder.warnings == ()
    assert torch.equal(states(encoder).cls_RD, states(opened(saved, pool="cls", lowercase=False)).cls_RD)


@pytest.mark.parametrize(
    ("pooling", "pool"),
    [
        ({**SWITCHES, "pooling_mode_mean_tokens": True}, "mean"),
        ({**SWITCHES, "pooling_mode_cls_token": True}, "cls"),
        ({"embedding_dimension": 8, "pooling_mode": "mean"}, "mean"),
        ({"embedding_dimension": 8, "pooling_mode": ["cls"]}, "cls"),
        ({"word_embedding_dimension": 8}, "mean"),  # its default
    ],
)
@pytest.mark.parametrize("lowercase", [True, False])
def test_pooling_and_case_of_the_folder_count_where_the_recipe_is_silent(
    saved: Path, pooling: dict[str, Any], pool: str, lowercase: bool
) -> None:
    sentence_folder(saved, pooling, do_lower_case=lowercase)
    encoder = opened(saved)
    expected = states(opened(saved, pool=pool, lowercase=lowercase))
    assert torch.equal(states(encoder).cls_RD, expected.cls_RD)
    told = [warning.partition(", as ")[0] for warning in encoder.warnings]
    assert told == ["pool: mean"] * (pool == "mean") + ["lowercase: true"] * lowercase


def test_it_is_what_sentence_transformers_makes_of_the_folder(saved: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    sentence_folder(saved, {**SWITCHES, "pooling_mode_mean_tokens": True}, do_lower_case=True)
    theirs = library.SentenceTransformer(str(saved), device="cpu").encode(TEXTS, convert_to_tensor=True)
    encoder = opened(saved)
    torch.testing.assert_close(
        states(encoder).cls_RD, encoder.projection(theirs.clone()), rtol=0, atol=1e-6
    )  # measured 1e-7


@pytest.mark.parametrize("said", [True, False])
def test_a_recipe_that_says_otherwise_wins_and_is_told_so(saved: Path, said: bool) -> None:
    mode = "pooling_mode_mean_tokens" if said else "pooling_mode_cls_token"
    sentence_folder(saved, {**SWITCHES, mode: True}, do_lower_case=said)
    encoder = opened(saved, pool="cls" if said else "mean", lowercase=not said)
    hidden_TD, mean_RD = encoder.projection(encoder.hidden(one_row(encoder))), states(encoder, TEXTS[:1]).cls_RD
    torch.testing.assert_close(mean_RD[0], hidden_TD[0] if said else hidden_TD.mean(0))
    assert (encoder.tokenizer.encode(["RED"]) == encoder.tokenizer.encode(["red"])) is not said
    assert [warning.partition(" the ")[0] for warning in encoder.warnings] == ["pool:", "lowercase:"]
    assert all("the recipe counts" in warning for warning in encoder.warnings)


def test_a_recipe_that_says_the_same_is_not_told_of(saved: Path) -> None:
    sentence_folder(saved, {**SWITCHES, "pooling_mode_mean_tokens": True}, "Normalize", do_lower_case=True)
    assert opened(saved, pool="mean", lowercase=True).warnings == ()


@pytest.mark.parametrize(
    ("pooling", "named"),
    [
        ({**SWITCHES, "pooling_mode_max_tokens": True}, "max"),
        ({**SWITCHES, "pooling_mode_lasttoken": True}, "lasttoken"),
        ({**SWITCHES, "pooling_mode_weightedmean_tokens": True}, "weightedmean"),
        ({**SWITCHES, "pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len_tokens"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({**SWITCHES, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls and mean"),
        ({"pooling_mode": ["cls", "max"]}, "cls and max"),
        ({"pooling_mode": 5}, "5"),
        ({"pooling_mode": None}, "None"),
    ],
)
def test_a_pooling_that_is_not_done_here_is_refused_unless_the_recipe_chooses(
    saved: Path, pooling: dict[str, Any], named: str
) -> None:
    sentence_folder(saved, pooling)
    with pytest.raises(
        CheckpointError, match=rf"1_Pooling/config\.json: pools by {named}; texts are pooled by cls or mean"
    ):
        opened(saved)
    (warning,) = opened(saved, pool="mean").warnings
    assert warning.endswith(f"{named}; the recipe counts")


def test_a_pooling_that_was_not_copied_is_missed_unless_the_recipe_chooses(saved: Path) -> None:
    sentence_folder(saved, {})
    (saved / "1_Pooling" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"1_Pooling/config\.json: cannot be read"):
        opened(saved)
    assert opened(saved, pool="mean").warnings == ()


def test_modules_that_are_left_out_and_prompts_that_are_not_put_are_told_of(saved: Path) -> None:
    sentence_folder(saved, {**SWITCHES, "pooling_mode_cls_token": True}, "Dense", "Normalize")
    prompts = {"prompts": {"passage": "passage: "}, "default_prompt_name": "passage"}
    (saved / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    dense, prompt = opened(saved).warnings
    assert "modules.json: Dense is left out" in dense
    assert "'passage: ' before each text" in prompt
    (saved / "config_sentence_transformers.json").write_text(json.dumps({**prompts, "default_prompt_name": None}))
    assert len(opened(saved).warnings) == 1


def test_texts_longer_than_those_of_its_training_are_told_of(saved: Path) -> None:
    sentence_folder(saved, {**SWITCHES, "pooling_mode_cls_token": True}, max_seq_length=12)
    (warning,) = opened(saved).warnings
    assert warning.startswith("max_tokens: 20, but ")
    assert opened(saved, max_tokens=12).warnings == ()


def test_a_backbone_below_its_modules_is_pooled_as_they_say(saved: Path) -> None:
    inner = saved.parent / "model" / "0_Transformer"
    inner.parent.mkdir()
    saved.rename(inner)
    sentence_folder(inner.parent, {**SWITCHES, "pooling_mode_mean_tokens": True})
    modules = json.loads((inner.parent / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (inner.parent / "modules.json").write_text(json.dumps(modules))
    (inner / "sentence_roberta_config.json").write_text('{"max_seq_length": 20, "do_lower_case": true}')
    expected = states(opened(inner, pool="mean", lowercase=True))
    assert torch.equal(states(opened(inner)).cls_RD, expected.cls_RD)


@pytest.mark.parametrize(
    "content", ['{"modules": []}', '["Transformer"]', '[{"type": "a.Pooling", "path": "../other"}]']
)
def test_modules_that_are_none_or_lead_outside_are_refused(saved: Path, content: str) -> None:
    (saved / "modules.json").write_text(content)
    with pytest.raises(
        CheckpointError, match=r"modules\.json: (must hold a list of modules|path '\.\./other' leads out)"
    ):
        opened(saved)


@pytest.mark.parametrize("settings", [{}, {"pool": "cls"}, {"lowercase": False}], ids=str)
def test_what_was_trained_is_read_again_as_it_was(saved: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    sentence_folder(saved, {**SWITCHES, "pooling_mode_mean_tokens": True}, do_lower_case=True)
    encoder = opened(saved, **settings)
    encoder.save_backbone(tmp_path / "kept", encoder.backbone.state_dict())
    again = opened(tmp_path / "kept", is_pretrained=False, **settings)
    again.load_state_dict(encoder.state_dict())
    assert again.warnings == ()
    assert again.tokenizer.fingerprint == encoder.tokenizer.fingerprint
    assert torch.equal(states(again).cls_RD, states(encoder).cls_RD)
    assert torch.equal(states(again).token_KD, states(encoder).token_KD)


def test_a_fresh_backbone_is_pooled_by_token_zero_and_its_case_counts(bert: dict[str, Any]) -> None:
    config = HFTextConfig(architecture=bert)
    assert (config.pool, config.lowercase) == ("cls", False)
    assert HFTextConfig(architecture=bert, pool="mean", lowercase=True).model_dump()["pool"] == "mean"
    assert HFTextConfig.model_validate(config.model_dump(mode="json")) == config
    assert HFTextConfig(weights="saved").pool is None
