"""A checkpoint of which one tensor was changed is refused by that tensor's name, by every command that reads it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from command_line import Pmmrec, working_in
from hub_client import point_client_at
from hub_server import HubServer, serving
from sealing import edit_tensors, seal
from torch import Tensor

from pmmrec.zoo import files

Change = Callable[[dict[str, Tensor], str], object]
PART, BACKBONE = "user_encoder/part.safetensors", "text_encoder/model.safetensors"
NAMES = {PART: "blocks.0.attention.out.weight", BACKBONE: "embeddings.word_embeddings.weight"}
CHANGES: dict[str, tuple[Change, str]] = {
    "missing": (lambda state, name: state.pop(name), "missing: {name}"),
    "renamed": (lambda state, name: state.update(other=state.pop(name)), "renamed: {name} to other"),
    "extra": (lambda state, _: state.update(stray=torch.ones(1)), "extra: stray"),
    "reshaped": (lambda state, name: state.update({name: state[name].flatten()}), "reshaped: {name} "),
    "flipped": (lambda state, name: state[name].view(torch.int32)[0, 0].bitwise_xor_(1), "other numbers in: {name}"),
}
changed = pytest.mark.parametrize(("kind", "path"), [(kind, path) for kind in CHANGES for path in NAMES])


def damaged(source: Path, kind: str, path: str) -> tuple[Path, str]:
    """A copy in which one tensor of a file is another, and what must be said of it."""
    folder = Path(shutil.copytree(source, "changed"))
    change, words = CHANGES[kind]
    edit_tensors(folder, path, lambda state: change(state, NAMES[path]))
    return folder, words.format(name=NAMES[path])


@changed
def test_no_command_reads_a_checkpoint_of_which_a_tensor_was_changed(
    home: Path, small_run: Path, world: Path, pmmrec: Pmmrec, kind: str, path: str
) -> None:
    folder, words = damaged(small_run / "hub" / "small", kind, path)
    for reason in ("sha256 differs", f"its tensors are not those that {files.INDEX_NAME} lists"):
        for command in (
            ("zoo", "verify", folder),
            ("evaluate", folder, world / "boutique"),
            ("finetune", "finetune/full", "--from", folder, "--on", world / "boutique", "name=x", "cache=c"),
        ):
            told = pmmrec(*command)
            assert (told.code, f"({reason}; {words}" in " ".join(told.output.split())) == (3, True), told.output
        seal(folder, path, with_tensors=False)  # for the second round


@pytest.fixture(scope="module")
def hub(small_run: Path, tmp_path_factory: pytest.TempPathFactory, pmmrec: Pmmrec) -> Iterator[HubServer]:
    """A hub to which the tiny pretraining was pushed; the cache is empty."""
    home = tmp_path_factory.mktemp("changed")
    with pytest.MonkeyPatch.context() as patch, working_in(home), serving() as server:
        patch.setenv("HOME", str(home))
        point_client_at(server.url, patch, home)
        assert pmmrec("zoo", "push", small_run / "hub" / "small", "hf://alice/small").code == 0
        yield server
        huggingface_hub.close_session()


@changed
def test_a_pull_names_the_tensor_that_is_another_on_the_hub_and_keeps_nothing_of_it(
    hub: HubServer, home: Path, small_run: Path, pmmrec: Pmmrec, kind: str, path: str
) -> None:
    folder, words = damaged(small_run / "hub" / "small", kind, path)
    commit = hub.tamper("alice/small", path, (folder / path).read_bytes())
    told = pmmrec("zoo", "pull", f"hf://alice/small@{commit}", "--parts", path.partition("/")[0])
    assert told.code == 3
    assert f"{path} is not what model_index.json promises (sha256 differs; {words}" in " ".join(told.output.split())
    kept = {found.name for found in (Path.home() / ".cache" / "pmmrec").rglob(f"{commit}/{path.partition('/')[0]}/*")}
    assert Path(path).name not in kept
