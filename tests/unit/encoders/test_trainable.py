"""Only the top blocks train, and nothing below ever moves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pmmrec.encoders.trainable import Layout, PartlyTrained, find_layout, train_top_blocks
from pmmrec.errors import RecipeError

LAYOUT = Layout(blocks=r"layers\.\d+", after=r"norm", unused=r"pooler\..+")


class Backbone(nn.Module):
    """Three blocks with dropout, a norm behind them and a pooler beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(4, 4)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)) for _ in range(3))
        self.norm, self.pooler = nn.LayerNorm(4), nn.Linear(4, 4)

    def below(self, x: torch.Tensor, num_blocks: int) -> torch.Tensor:
        x = self.embedding(x)
        for block in self.layers[:num_blocks]:
            x = block(x)
        return x


class Part(PartlyTrained):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()


def trainable(module: nn.Module) -> set[str]:
    return {name.rpartition(".")[0] for name, parameter in module.named_parameters() if parameter.requires_grad}


def test_the_top_blocks_and_what_follows_them_train() -> None:
    backbone = Backbone()
    assert train_top_blocks(backbone, LAYOUT, 2) == ("layers.1", "layers.2", "norm")
    assert trainable(backbone) == {"layers.1.0", "layers.2.0", "norm"}


def test_depth_zero_freezes_everything() -> None:
    backbone = Backbone()
    assert train_top_blocks(backbone, LAYOUT, 0) == ()
    assert trainable(backbone) == set()


def test_depth_all_trains_everything_but_what_gets_no_gradient() -> None:
    backbone = Backbone()
    train_top_blocks(backbone, LAYOUT, "all")
    assert trainable(backbone) == {"embedding", "layers.0.0", "layers.1.0", "layers.2.0", "norm"}


def test_as_many_blocks_as_there_are_leave_the_embedding_frozen() -> None:
    backbone = Backbone()
    train_top_blocks(backbone, LAYOUT, 3)
    assert "embedding" not in trainable(backbone)


def test_more_blocks_than_there_are_is_an_error_that_names_the_number() -> None:
    with pytest.raises(RecipeError, match=r"trainable_blocks: 4 asked for, but Backbone has 3; choose 0 to 3"):
        train_top_blocks(Backbone(), LAYOUT, 4)


def test_a_smaller_depth_undoes_a_larger_one() -> None:
    backbone = Backbone()
    train_top_blocks(backbone, LAYOUT, "all")
    train_top_blocks(backbone, LAYOUT, 1)
    assert trainable(backbone) == {"layers.2.0", "norm"}


def test_frozen_blocks_stay_in_eval_mode_after_train() -> None:
    part = Part()
    part.train_top_blocks(LAYOUT, 1)
    nn.Sequential(part).eval().train()
    assert [block.training for block in part.backbone.layers] == [False, False, True]
    x = torch.randn(5, 4)
    torch.testing.assert_close(part.backbone.below(x, 2), part.backbone.below(x, 2), rtol=0, atol=0)
    assert not torch.equal(part.backbone.below(x, 3), part.backbone.below(x, 3))


def test_eval_reaches_the_trained_blocks_too() -> None:
    part = Part()
    part.train_top_blocks(LAYOUT, "all")
    assert part.backbone.training
    part.eval()
    assert not any(module.training for module in part.modules())


def test_an_unknown_architecture_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(RecipeError, match=r"architecture: 'birt' is not known here; known: bert, vit"):
        find_layout({"vit": LAYOUT, "bert": LAYOUT}, "birt", "architecture", {})
