"""What a run needs before its first step: domains, texts to learn from, folders of backbones."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from pmmrec.context import Backbone
from pmmrec.data.importers.table import TableImport, import_table
from pmmrec.errors import DataError, MachineError, RecipeError
from pmmrec.recipe import FinetuneRecipe, PretrainRecipe, read_recipe
from pmmrec.shipped import find_recipe
from pmmrec.train.prepare import Sources, find_backbones, open_reader, start_backbones
from pmmrec.train.run import Run
from pmmrec.zoo.checkpoint import Checkpoint, load_recommender


def test_domains_are_opened_in_the_order_of_the_recipe(world: Path) -> None:
    sources = Sources.open([world / "gallery", world / "bazaar"])
    assert sources.names == ["gallery", "bazaar"]
    assert [catalogue.name for catalogue in sources.catalogues] == ["gallery", "bazaar"]
    assert [catalogue.num_items for catalogue in sources.catalogues] == [d.num_items for d in sources.domains]


def test_two_domains_of_one_name_are_refused(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "bazaar", tmp_path / "again")
    with pytest.raises(RecipeError, match="two domains are called 'bazaar'; import one under another --name"):
        Sources.open([world / "bazaar", tmp_path / "again"])


def test_a_folder_that_is_no_domain_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=str(tmp_path)):
        Sources.open([tmp_path])


def test_a_tokenizer_learns_from_items_of_training_alone(tmp_path: Path) -> None:
    items, interactions = tmp_path / "items.csv", tmp_path / "interactions.csv"
    items.write_text("item_id,text\na,red shoe\nb,blue hat\nc,held out for validation\nd,held out for the test\n")
    interactions.write_text("user_id,item_id\n" + "".join(f"{user},{item}\n" for user in "uv" for item in "abcd"))
    import_table(TableImport(items=items, interactions=interactions, name="four", out=tmp_path / "four", k_core=None))
    assert list(Sources.open([tmp_path / "four"]).train_texts()) == ["red shoe", "blue hat"]


def test_backbones_without_weights_are_started_and_found(world: Path, tmp_path: Path) -> None:
    model = read_recipe(PretrainRecipe, find_recipe("pretrain/tiny")).model
    start_backbones(model, tmp_path, lambda _: ["red shoe", "blue hat"], None)
    found = find_backbones(model, tmp_path, {})
    assert {part: backbone.is_pretrained for part, backbone in found.items()} == {
        "text_encoder": False,
        "vision_encoder": False,
    }
    assert all((backbone.folder / "config.json").is_file() for backbone in found.values())


def test_a_backbone_whose_start_was_cut_off_is_started_again(tmp_path: Path) -> None:
    model = read_recipe(PretrainRecipe, find_recipe("pretrain/tiny")).model

    def texts(fields: Sequence[str]) -> Iterator[str]:
        assert fields == ("text",)
        yield "red shoe"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start_backbones(model, tmp_path, texts)
    assert not (tmp_path / "text_encoder").exists()  # else it would be taken for one that is whole
    start_backbones(model, tmp_path, lambda _: ["red shoe", "blue hat"])
    assert (tmp_path / "text_encoder" / "config.json").is_file()


def test_a_backbone_that_is_given_is_neither_started_nor_looked_for(tmp_path: Path) -> None:
    model = read_recipe(PretrainRecipe, find_recipe("pretrain/tiny")).model
    given = {part: Backbone(tmp_path / "mine", is_pretrained=True) for part in ("text_encoder", "vision_encoder")}
    start_backbones(model, tmp_path, list, given)
    assert list(tmp_path.iterdir()) == []
    assert find_backbones(model, tmp_path, {}, given) == given


def test_named_weights_are_taken_from_the_folder_that_is_given(tmp_path: Path) -> None:
    model = read_recipe(PretrainRecipe, find_recipe("pretrain/pmmrec")).model
    names = [encoder.weights for encoder in model.item_encoder.encoders.values()]
    found = find_backbones(model, tmp_path, dict.fromkeys(names, tmp_path))
    assert set(found.values()) == {Backbone(tmp_path, is_pretrained=True)}


def test_named_weights_that_cannot_be_had_say_how_to_give_them(tmp_path: Path) -> None:
    override = ["model.item_encoder.text.weights=package:no_such_package/folder"]
    model = read_recipe(PretrainRecipe, find_recipe("pretrain/pmmrec"), override).model
    with pytest.raises(MachineError, match=r"--weights package:no_such_package/folder=FOLDER"):
        find_backbones(model, tmp_path, {})


def test_a_reader_gives_what_the_model_reads(small_run: Path, world: Path, tmp_path: Path) -> None:
    recommender = load_recommender(Checkpoint.open(small_run / "hub" / "small"))
    recipe = read_recipe(FinetuneRecipe, find_recipe("finetune/tiny"), [f"cache={small_run / 'c'}", f"runs={tmp_path}"])
    with Run.start(recipe) as run:
        reader = open_reader(Sources.open([world / "boutique"]), recommender, recipe, run)
    items = reader.read(np.zeros(3, dtype=np.int64), np.arange(3))
    assert set(items.has_U) == recommender.item_encoder.fields
    assert items.fields["image"].pixels_RCHW.shape[-1] == recommender.item_encoder.reads["image"].size
