"""What a folder of a pretrained encoder says counts in a run, is told of, and goes on with what is published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import SMALL, Pmmrec, sources

from pmmrec.zoo.checkpoint import Checkpoint, load_recommender

TEXT = "{type: hf_text, weights: text, architecture: null, vocab_size: 8000, lowercase: null, pool: null}"
RUN = (
    *(setting for setting in SMALL if ".text." not in setting),
    f"model.item_encoder.text={TEXT}",
    "model.item_encoder.text.max_tokens=16",
    "model.item_encoder.text.trainable_blocks=0",
    "train.epochs=1",
    "name=folders",
    "cache=c",
)


@pytest.fixture
def text(small_run: Path, home: Path) -> Path:
    """The text encoder of a checkpoint, in a folder that says mean."""
    shutil.copytree(small_run / "hub" / "small" / "text_encoder", home / "text")
    path = home / "text" / "1_Pooling" / "config.json"
    switches = json.loads(path.read_text())
    assert switches["pooling_mode_cls_token"] is True  # as it was trained
    switches |= {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    path.write_text(json.dumps(switches))
    return home / "text"


@pytest.mark.usefixtures("text")
def test_the_folders_pooling_and_case_count_and_are_published(home: Path, world: Path, pmmrec: Pmmrec) -> None:
    told = ("warning: pool: mean, as text says", "warning: lowercase: true, as text says")
    for more in (("--dry-run",), ()):
        result = pmmrec("pretrain", "pretrain/tiny", *RUN, *sources(world), *more)
        assert result.code == 0, result.output
        assert all(result.output.count(words) == 1 for words in told)
    checkpoint = Checkpoint.open(home / "hub" / "folders")
    assert checkpoint.verify() == []
    kept = json.loads((checkpoint.folder / "text_encoder" / "1_Pooling" / "config.json").read_text())
    assert (kept["pooling_mode_cls_token"], kept["pooling_mode_mean_tokens"]) == (False, True)
    encoder = load_recommender(checkpoint).item_encoder
    assert encoder.warnings == []
    tokenizer = encoder.reads["text"].tokenizer
    assert tokenizer.encode(["RED"]) == tokenizer.encode(["red"])


def test_a_folder_that_is_refused_is_refused_before_anything_is_made(
    text: Path, home: Path, world: Path, pmmrec: Pmmrec
) -> None:
    (text / "adapter_config.json").write_text("{}")
    result = pmmrec("pretrain", "pretrain/tiny", *RUN, *sources(world), "--dry-run")
    assert result.code == 3
    assert "error: text/adapter_config.json: adapters beside whole weights" in result.output
    assert not (home / "hub").exists()
