"""The user encoder reads histories from their end, and never ahead."""
# Shapes: B users, L inputs, D width.

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pmmrec import blocks
from pmmrec.context import BuildContext
from pmmrec.contracts import History
from pmmrec.errors import RecipeError
from pmmrec.renamed import RenamedSettingWarning
from pmmrec.testing.twins.blocks import transformer_block_by_loops
from pmmrec.users import user_encoders
from pmmrec.users.transformer import TransformerConfig, TransformerUserEncoder

WIDTH, LENGTH = 8, 5
torch.set_num_threads(1)


def fresh(**settings: object) -> TransformerUserEncoder:
    torch.manual_seed(0)
    return (
        TransformerUserEncoder(TransformerConfig(**{"max_inputs": 7, **settings}), BuildContext(WIDTH)).double().eval()
    )


def states(encoder: TransformerUserEncoder, item_BLD: Tensor, is_valid_BL: Tensor) -> Tensor:
    return encoder(History(item_BLD, is_valid_BL)).hidden_BLD


def histories(lengths: list[int], num_places: int = LENGTH) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs_BLD = torch.randn(len(lengths), num_places, WIDTH, dtype=torch.float64, generator=generator)
    is_valid_BL = torch.tensor([[place >= num_places - length for place in range(num_places)] for length in lengths])
    return inputs_BLD, is_valid_BL


def hidden_by_loops(encoder: TransformerUserEncoder, history_LD: Tensor) -> Tensor:
    """Eq. 4 for one history without padding."""
    length = len(history_LD)
    rows = [history_LD[place] + encoder.position.weight[length - 1 - place] for place in range(length)]
    x_LD = torch.stack(rows) if encoder.norm_first else encoder.norm(torch.stack(rows))
    for block in encoder.blocks:
        x_LD = transformer_block_by_loops(block, x_LD, is_causal=encoder.attends == "past")
    x_LD = encoder.norm(x_LD) if encoder.norm_first else x_LD
    if isinstance(encoder.head, nn.Identity):
        return x_LD
    return encoder.head[2](F.gelu(x_LD @ encoder.head[0].weight.T + encoder.head[0].bias))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"attends": "all"},
        {"norm_first": True, "feed_forward": 5},
        {"attends": "all", "norm_first": True},
        {"attends": "all", "output_head": True, "activation": "gelu", "qkv_bias": True},
    ],
)
def test_values_and_gradients_are_those_of_loops_over_users(settings: dict[str, object]) -> None:
    encoder = fresh(**settings)
    lengths = [5, 3, 1]
    inputs_BLD, is_valid_BL = histories(lengths)
    inputs_BLD.requires_grad_()
    expected = [hidden_by_loops(encoder, inputs_BLD[user, -length:]) for user, length in enumerate(lengths)]
    hidden_BLD = states(encoder, inputs_BLD, is_valid_BL)
    actual = [hidden_BLD[user, -length:] for user, length in enumerate(lengths)]
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)  # float64; measured 2e-15
    sources = [inputs_BLD, *(p for name, p in encoder.named_parameters() if name != "mask")]
    weights = torch.randn(WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ours_by_source = torch.autograd.grad(sum((state @ weights).sum() for state in actual), sources)
    theirs_by_source = torch.autograd.grad(sum((state @ weights).sum() for state in expected), sources)
    for one, other in zip(ours_by_source, theirs_by_source, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)  # float64; measured 8e-15


def test_more_padding_changes_nothing() -> None:
    encoder = fresh()
    inputs_BLD, is_valid_BL = histories([5, 3])
    wider_BLD = F.pad(inputs_BLD, (0, 0, 2, 0), value=9.0)
    wider = states(encoder, wider_BLD, F.pad(is_valid_BL, (2, 0)))[:, 2:]
    hidden_BLD = states(encoder, inputs_BLD, is_valid_BL)
    torch.testing.assert_close(wider[is_valid_BL], hidden_BLD[is_valid_BL], rtol=0, atol=1e-12)  # measured 4e-16


def test_a_causal_encoder_never_looks_ahead() -> None:
    encoder = fresh()
    inputs_BLD, is_valid_BL = histories([5])
    changed_BLD = inputs_BLD.clone()
    changed_BLD[:, 3:] *= -1
    before, after = states(encoder, inputs_BLD, is_valid_BL), states(encoder, changed_BLD, is_valid_BL)
    torch.testing.assert_close(after[:, :3], before[:, :3], rtol=0, atol=1e-12)
    assert (after[:, 3:] - before[:, 3:]).abs().amax(-1).min() > 1e-6


def test_an_encoder_that_is_not_causal_looks_both_ways() -> None:
    encoder = fresh(attends="all")
    inputs_BLD, is_valid_BL = histories([5])
    changed_BLD = inputs_BLD.clone()
    changed_BLD[:, 4:] *= -1
    difference = (states(encoder, changed_BLD, is_valid_BL) - states(encoder, inputs_BLD, is_valid_BL)).abs()
    assert difference.amax(-1).min() > 1e-6


def test_a_masked_item_is_replaced_by_the_mask_whatever_it_was() -> None:
    encoder = fresh(attends="all")
    inputs_BLD, is_valid_BL = histories([5, 3])
    is_masked_BL = torch.zeros_like(is_valid_BL)
    is_masked_BL[:, 3] = True
    masked_BLD = torch.where(is_masked_BL[:, :, None], encoder.mask, inputs_BLD)
    expected = states(encoder, masked_BLD, is_valid_BL)
    for hidden_BLD in (inputs_BLD, inputs_BLD.masked_fill(is_masked_BL[:, :, None], 7.0)):
        actual = encoder(History(hidden_BLD, is_valid_BL, is_masked_BL=is_masked_BL)).hidden_BLD
        assert torch.equal(actual, expected)


def test_the_state_that_ranks_is_that_of_a_mask_behind_the_history_where_all_is_attended_to() -> None:
    encoder = fresh(attends="all")
    inputs_BLD, is_valid_BL = histories([5, 3])
    longer_BLD = torch.cat((inputs_BLD, encoder.mask.expand(2, 1, -1)), dim=1)
    expected = states(encoder, longer_BLD, F.pad(is_valid_BL, (0, 1), value=True))[:, -1]
    assert torch.equal(encoder.query(History(inputs_BLD, is_valid_BL)).hidden_KD, expected)


def test_the_state_that_ranks_is_the_last_one_where_the_past_is_attended_to() -> None:
    encoder, (inputs_BLD, is_valid_BL) = fresh(), histories([5, 3])
    expected = states(encoder, inputs_BLD, is_valid_BL)[:, -1]
    assert torch.equal(encoder.query(History(inputs_BLD, is_valid_BL)).hidden_KD, expected)


def test_is_causal_is_read_under_its_earlier_name() -> None:
    assert TransformerConfig.model_validate({"is_causal": True}) == TransformerConfig()
    with pytest.warns(RenamedSettingWarning, match="user_encoder.attends: all"):
        assert TransformerConfig.model_validate({"is_causal": False}).attends == "all"


@pytest.mark.parametrize("wrong", [{"is_causal": 1}, {"is_causal": "yes"}, {"is_causal": False, "attends": "past"}])
def test_what_is_causal_cannot_mean_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=r"is_causal: (must be true or false|is the earlier name of attends)"):
        user_encoders.config({"type": "transformer", **wrong})


def test_the_order_of_items_matters() -> None:
    encoder = fresh()
    inputs_BLD, is_valid_BL = histories([5])
    swapped = states(encoder, inputs_BLD[:, [1, 0, 2, 3, 4]], is_valid_BL)[:, -1]
    assert not torch.allclose(swapped, states(encoder, inputs_BLD, is_valid_BL)[:, -1])


def test_padding_never_makes_a_nan() -> None:
    encoder = fresh()
    inputs_BLD, is_valid_BL = histories([0, 2])
    inputs_BLD.requires_grad_()
    hidden_BLD = states(encoder, inputs_BLD, is_valid_BL)
    hidden_BLD[is_valid_BL].sum().backward()
    assert hidden_BLD.isfinite().all()
    assert inputs_BLD.grad is not None
    assert inputs_BLD.grad.isfinite().all()
    assert not inputs_BLD.grad[~is_valid_BL].any()


def test_longer_histories_than_it_can_read_are_an_error_that_names_both() -> None:
    with pytest.raises(RecipeError, match="max_inputs: 7, but histories of 8 inputs came"):
        fresh()(History(*histories([8], num_places=8)))


def test_heads_that_do_not_divide_the_width_are_an_error() -> None:
    with pytest.raises(RecipeError, match=r"user_encoder\.num_heads: 3 do not divide the width 8"):
        fresh(num_heads=3)


def test_the_width_of_the_feed_forward_is_a_number_or_a_factor() -> None:
    assert fresh(feed_forward=5).blocks[0].expand.out_features == 5
    assert fresh(feed_forward_factor=2).blocks[0].expand.out_features == 2 * WIDTH
    with pytest.raises(RecipeError, match="feed_forward: is a width in place of feed_forward_factor; leave one"):
        user_encoders.config({"type": "transformer", "feed_forward": 5, "feed_forward_factor": 2})


@pytest.mark.parametrize(("init", "std"), [("xavier", (2 / 128) ** 0.5), ("normal", 0.02)])
def test_weights_start_as_released_codes_start_them(init: str, std: float) -> None:
    torch.manual_seed(0)
    config = TransformerConfig(init=init, out_bias=False, feed_forward=64, num_layers=1)
    encoder = TransformerUserEncoder(config, BuildContext(64))
    (block,) = encoder.blocks
    assert block.attention.out.bias is None
    assert not block.expand.bias.any()
    assert block.attention_norm.weight.eq(1).all()
    for linear in (block.attention.out, block.expand):
        assert linear.weight.std().item() == pytest.approx(std, rel=0.05)
    rows, columns = encoder.position.weight.shape
    wanted = std if init == "normal" else (2 / (rows + columns)) ** 0.5
    assert encoder.position.weight.std().item() == pytest.approx(wanted, rel=0.1)


def test_the_defaults_are_those_of_the_released_code() -> None:
    encoder = TransformerUserEncoder(TransformerConfig(), BuildContext(768))
    assert encoder.max_inputs == 20
    assert len(encoder.blocks) == 2
    assert encoder.blocks[0].attention.num_heads == 2
    assert encoder.blocks[0].attention.qkv.bias is None
    assert encoder.blocks[0].expand.out_features == 4 * 768
    assert encoder.norm.eps == 1e-6


@pytest.mark.parametrize("settings", [{}, {"norm_first": True}, {"attends": "all", "activation": "gelu"}])
@pytest.mark.parametrize("last_alone", [False, True])
def test_pieces_that_stay_in_a_cache_give_what_all_places_at_once_give(
    settings: dict[str, object], last_alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, (inputs_BLD, is_valid_BL) = fresh(**settings), histories([5, 3, 1])
    history = History(inputs_BLD, is_valid_BL, last_alone=last_alone)
    whole_BLD = encoder(history).hidden_BLD  # gradients keep what pieces would leave out
    monkeypatch.setattr(blocks, "PLACES_OF_THREAD", 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with torch.no_grad():
        pieces_BLD = encoder(history).hidden_BLD
    torch.testing.assert_close(pieces_BLD, whole_BLD, rtol=0, atol=1e-12)  # float64
