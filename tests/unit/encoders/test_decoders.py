"""Decoders as encoders of texts: padding on either side makes no difference, and those that see both ways do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pmmrec.encoders.text import HFText
from tests.support.plain_texts import LONG, ROUNDED, plain_states, plain_twin, precise, token_inputs
from tests.support.tiny_encoders import tiny_text

Fresh = Callable[..., HFText]


@pytest.mark.parametrize("model_type", ["gemma3_text", "gpt2", "llama", "qwen3"])
def test_a_decoder_whose_library_pads_on_the_left_says_the_same(
    fresh_text: Fresh, tmp_path: Path, model_type: str
) -> None:
    encoder = precise(fresh_text(tiny_text(model_type), pool="mean"))
    inputs, rows = token_inputs(encoder, LONG), encoder.tokenizer.encode(LONG)
    missing = [max(map(len, rows)) - len(row) for row in rows]
    token_id_RT = torch.tensor([[0] * count + row for count, row in zip(missing, rows, strict=True)])
    mask_RT = torch.tensor([[0] * count + [1] * len(row) for count, row in zip(missing, rows, strict=True)])
    hidden_RTH = plain_twin(encoder, tmp_path / "saved")(
        input_ids=token_id_RT, attention_mask=mask_RT, position_ids=(mask_RT.cumsum(1) - 1).clamp(min=0)
    ).last_hidden_state
    expected = torch.cat([hidden_RTH[row, missing[row] :] for row in inputs.item_index_R.values.tolist()])
    tolerance = ROUNDED.get(model_type, 1e-12)
    torch.testing.assert_close(encoder.hidden(inputs), expected, rtol=0, atol=tolerance)


def test_a_gemma_that_sees_both_ways_is_read_so(fresh_text: Fresh, tmp_path: Path) -> None:
    architecture = {**tiny_text("gemma3_text"), "use_bidirectional_attention": True, "sliding_window": 6}
    encoder = fresh_text(architecture, pool="cls").eval().double()
    inputs, twin = token_inputs(encoder, LONG), plain_twin(encoder, tmp_path / "saved")
    theirs = plain_states(encoder, twin, LONG)
    expected = torch.cat([theirs[row] for row in inputs.item_index_R.values.tolist()])
    torch.testing.assert_close(encoder.hidden(inputs), expected, rtol=0, atol=1e-6)
