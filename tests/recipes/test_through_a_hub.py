"""From a finished run to a hub and back: push, list, show, compare, fine-tune from one part, evaluate, go offline."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from command_line import Pmmrec, Result, working_in
from hub_client import point_client_at
from hub_server import TOKEN, HubServer, Repository, serving

from pmmrec.encoders.text import DEFAULT_VOCAB_SIZE
from pmmrec.zoo.checkpoint import Checkpoint

PLACE = "hf://alice/small"
ITEMS = ("text_encoder", "vision_encoder", "fusion")
QUICK = ("train.epochs=1", "train.batch_users=16", "cache=c")


@pytest.fixture(scope="module")
def hub(small_run: Path, tmp_path_factory: pytest.TempPathFactory, pmmrec: Pmmrec) -> Iterator[HubServer]:
    """A hub to which the tiny pretraining was pushed; we stand in a folder with the run, and the cache is empty."""
    home = tmp_path_factory.mktemp("through")
    shutil.copytree(small_run / "hub", home / "hub")
    with pytest.MonkeyPatch.context() as patch, working_in(home), serving() as server:
        patch.setenv("HOME", str(home))
        point_client_at(server.url, patch, home)
        pushed = done(pmmrec("zoo", "push", "small", PLACE, "--message", "The first"))
        assert f"published: {PLACE}, commit {commit(server)}\n" in pushed
        assert f"pinned to this commit: {PLACE}@{commit(server)}" in pushed
        yield server
        huggingface_hub.close_session()


def done(result: Result) -> str:
    assert result.code == 0, result.output
    return result.output


def commit(server: HubServer) -> str:
    return server.repositories["alice/small"].branches["main"]


def test_the_card_says_how_to_load_it_from_where_it_is(hub: HubServer, pmmrec: Pmmrec) -> None:
    path = Path("README.md")
    path.write_bytes(hub.files("alice/small")["README.md"])
    data = huggingface_hub.ModelCard.load(path).data
    assert data.library_name == "pmmrec"
    assert data.datasets == ["bazaar", "gallery"]
    measured = {(found.dataset_name, found.metric_type) for found in data.eval_results}
    assert measured == {(name, metric) for name in data.datasets for metric in ("hr@10", "ndcg@10")}
    assert f"pmmrec.load('{PLACE}')" in path.read_text()
    assert f"pmmrec finetune finetune/full --from {PLACE}" in path.read_text()
    assert "'small'" in Path("hub/small/README.md").read_text()  # the checkpoint itself stays as it is
    assert done(pmmrec("zoo", "verify", "small")) == "hub/small: whole\n"


def test_it_is_listed_shown_and_compared_without_its_weights(hub: HubServer, pmmrec: Pmmrec) -> None:
    hub.log.clear()
    assert "hf://alice/small" in done(pmmrec("zoo", "list", "hf://alice"))
    shown = done(pmmrec("zoo", "show", PLACE))
    assert f"{PLACE}@{commit(hub)}: pmmrec, width 16, learned from bazaar, gallery" in shown
    compared = done(pmmrec("zoo", "diff", PLACE, "small"))
    assert compared.count("│ the same") == 5  # four parts and the head of NID
    assert not [entry for entry in hub.log if entry.path.endswith(".safetensors")]


def test_a_plan_that_needs_one_part_transfers_no_byte_of_the_others(
    hub: HubServer, pmmrec: Pmmrec, world: Path
) -> None:
    hub.log.clear()
    start = f"{PLACE}@{commit(hub)}"
    done(pmmrec("finetune", "finetune/user", "--from", start, "--on", world / "boutique", *QUICK, "name=user"))
    assert hub.bytes_below("user_encoder") > 0
    assert [hub.bytes_below(part) for part in (*ITEMS, "objectives")] == [0, 0, 0, 0]
    trained = Checkpoint.open(Path("runs/user/checkpoint"))
    assert trained.provenance["started_from"] == start
    assert f"base_model: {PLACE.removeprefix('hf://')}\n" in (trained.folder / "README.md").read_text()


def test_a_run_from_a_moving_name_records_the_commit(hub: HubServer, pmmrec: Pmmrec, world: Path) -> None:
    told = done(pmmrec("finetune", "finetune/full", "--from", PLACE, "--on", world / "boutique", *QUICK, "name=full"))
    assert f"warning: {PLACE}: names no commit, so it may change; it is now {commit(hub)}" in told
    assert Checkpoint.open(Path("runs/full/checkpoint")).provenance["started_from"] == f"{PLACE}@{commit(hub)}"


def test_the_commit_of_pretrained_weights_is_recorded_and_a_moving_name_warns(
    hub: HubServer, small_run: Path, pmmrec: Pmmrec, world: Path
) -> None:
    source = small_run / "hub" / "small" / "text_encoder"
    paths = [path for path in source.rglob("*") if path.is_file() and not path.name.startswith("part.")]
    content = {path.relative_to(source).as_posix(): path.read_bytes() for path in paths}
    hub.repositories["alice/words"] = Repository(private=False)
    words = hub.repositories["alice/words"].add("main", content)
    text = f"{{weights: alice/words, architecture: null, vocab_size: {DEFAULT_VOCAB_SIZE}}}"
    vision = "model.item_encoder.vision=null", "model.item_encoder.fusion=null", "model.width=16"
    overrides = (f"model.item_encoder.text={text}", *vision, f"data.sources=[{world / 'bazaar'}]", *QUICK, "name=words")
    told = done(pmmrec("pretrain", "pretrain/tiny", *overrides, "objectives.nicl=null"))
    assert told.count(f"hf://alice/words: names no commit, so it may change; it is now {words}") == 1
    provenance = Checkpoint.open(Path("runs/words/checkpoint")).provenance
    assert provenance["weights"] == {"text_encoder": f"hf://alice/words@{words}"}
    assert "weights" not in Checkpoint.open(Path("hub/small")).provenance  # all of it was drawn


def test_only_some_parts_are_pulled_to_a_folder(hub: HubServer, pmmrec: Pmmrec) -> None:
    told = done(pmmrec("zoo", "pull", PLACE, "--parts", "fusion,user_encoder", "--out", "some"))
    assert f"some: fusion, user_encoder of {PLACE}, commit {commit(hub)}; fetched" in told
    assert not Path("some/text_encoder").exists()
    again = pmmrec("zoo", "pull", PLACE, "--parts", "fusion", "--out", "some")
    assert (again.code, "some: exists already" in again.output) == (2, True)
    unknown = pmmrec("zoo", "pull", PLACE, "--parts", "fusio")
    assert (unknown.code, "did you mean 'fusion'" in unknown.output) == (2, True)


def test_the_clients_own_variables_are_obeyed_and_the_token_is_never_shown(hub: HubServer, tmp_path: Path) -> None:
    plain = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    client = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_DEBUG": "0"}
    command = [sys.executable, "-c", "from pmmrec.cli import app; app()", "zoo", "pull", PLACE, "--parts", "fusion"]
    env = {**plain, **client, "HOME": str(tmp_path)}
    found = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    told = found.stdout + found.stderr
    assert found.returncode == 0, told
    assert f"commit {commit(hub)}; fetched" in found.stdout
    assert TOKEN not in told
    copies = list((tmp_path / ".cache" / "pmmrec" / "checkpoints").glob(f"*/{commit(hub)}/fusion/part.safetensors"))
    assert len(copies) == 1


def test_a_tampered_checkpoint_ends_with_the_code_of_bad_data(hub: HubServer, pmmrec: Pmmrec, world: Path) -> None:
    honest, path = commit(hub), "user_encoder/part.safetensors"
    hub.tamper("alice/small", path, hub.files("alice/small")[path][:-1] + b"\1")
    for verb in (("zoo", "verify", PLACE), ("evaluate", PLACE, world / "boutique")):
        result = pmmrec(*verb)
        assert (result.code, f"{PLACE}: {path} is not what model_index.json promises" in result.output) == (3, True)
    hub.repositories["alice/small"].branches["main"] = honest


def test_a_cached_copy_is_evaluated_when_the_hub_is_gone(hub: HubServer, pmmrec: Pmmrec, world: Path) -> None:
    online = ("evaluate", f"{PLACE}@{commit(hub)}", world / "boutique", "--cache", "c")
    done(pmmrec(*online, "--out", "online"))
    done(pmmrec("zoo", "pull", PLACE))
    hub.fail("/", times=1000, status=503, Retry_After="0")
    offline = done(pmmrec("evaluate", PLACE, world / "boutique", "--cache", "c", "--out", "offline"))
    hub.faults.clear()
    assert f"the cached copy of {PLACE} is used, commit {commit(hub)}" in offline
    figures = [json.loads((Path(out) / "metrics.json").read_text())["domains"] for out in ("online", "offline")]
    assert figures[0] == figures[1]


def test_other_weights_are_told_part_by_part(hub: HubServer, pmmrec: Pmmrec, world: Path) -> None:
    if not Path("runs/user").exists():
        test_a_plan_that_needs_one_part_transfers_no_byte_of_the_others(hub, pmmrec, world)
    told = done(pmmrec("zoo", "diff", "small", "runs/user/checkpoint"))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in told.splitlines()]
    assert ["text_encoder", "differs"] in [row[:2] for row in rows]
    assert ["objectives/nid", "only in the first"] in [row[:2] for row in rows]
    assert ["started_from", "none", f"{PLACE}@{commit(hub)}"] in rows
    assert ["recipe.train.epochs", "2", "1"] in rows
