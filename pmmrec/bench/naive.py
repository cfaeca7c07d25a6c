"""A plain model with the weights of a task that computes a step as released systems do.

Every window is padded to its full length and every slot of it is encoded; texts are padded to `max_tokens`; all blocks
run in each step; images are sent as floats; nothing is packed, cached or shared; the scores of the next item are taken
over all slots, under a mask that a loop writes. It exists to be compared with: the loss is the same.
"""
# Shapes: B users, S window positions, L = S - 1, N encoded slots, U distinct items, T padded tokens, P patches,
# J = 1 + T + P tokens of an item, D width.

from __future__ import annotations

import copy
import dataclasses
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pmmrec.bench.rows import padded_texts
from pmmrec.blocks import TransformerBlock
from pmmrec.contracts import (
    Batch,
    ItemVectors,
    PixelInputs,
    UserStates,
    Views,
    WindowPass,
    to_device,
)
from pmmrec.data.items import ItemReader
from pmmrec.dropout import draw_as_torch
from pmmrec.encoders import Encoder
from pmmrec.encoders.backbone import dtype_of
from pmmrec.encoders.text import HFText
from pmmrec.encoders.vision_hf import HFVision
from pmmrec.errors import RecipeError
from pmmrec.feed_forward import part_activations
from pmmrec.fusion import Fusion
from pmmrec.fusion.attentive import MergeAttention
from pmmrec.models.dot import Dot
from pmmrec.models.towers import Towers
from pmmrec.objectives.next_item import NextItem
from pmmrec.precision import outside_autocast, widened
from pmmrec.train.task import TrainingTask
from pmmrec.users.transformer import TransformerUserEncoder


class NaiveTwin(nn.Module):
    """Computes the losses of a task from batches as they are read; its weights start as those of the task."""

    def __init__(self, task: TrainingTask, reader: ItemReader, num_positions: int) -> None:
        """Copy a task. RecipeError where it has parts without a plain form here.

        `reader`: of tokens and pixels, not of kept states. `num_positions`: those to which every window is padded.
        """
        super().__init__()
        self.num_positions = num_positions
        _refuse_others(task)
        self.task, self._reader = copy.deepcopy(task), reader
        for encoder in self.task.recommender.item_encoder.encoders.values():
            backbone = encoder.get_submodule("backbone")
            backbone.set_attn_implementation("sdpa")  # type: ignore[operator]  # of transformers
            part_activations(backbone)
            draw_as_torch(backbone)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Name -> `(2,)` sum and count of each objective; `batch` on the host."""
        device = next(self.parameters()).device
        num_more = self.num_positions - batch.windows.item_index_BS.shape[1]
        slot_BS = F.pad(batch.windows.item_index_BS, (num_more, 0))
        is_shown_U = torch.zeros(batch.items.num_items, dtype=torch.bool).index_fill(0, slot_BS.flatten(), True)
        slot_N = torch.cat([slot_BS.flatten(), (~is_shown_U).nonzero()[:, 0]])  # items of no window: replacements
        fused_ND, cls_ND = self._encoded(batch, slot_N, device)
        first_U = torch.empty_like(batch.items.row_U).scatter(0, slot_N.flip(0), torch.arange(len(slot_N)).flip(0))
        first_U = first_U.to(device)
        has_U = to_device(batch.items.has_U, device)
        cls_UD = {field: vectors_ND[first_U] for field, vectors_ND in cls_ND.items()}
        items = ItemVectors(fused_ND[first_U], cls_UD, has_U)
        there = to_device(dataclasses.replace(batch, items=dataclasses.replace(batch.items, fields={})), device)
        padded = {request: self._states(items, one, num_more) for request, one in there.windows.passes.items()}
        states = {
            request: UserStates(hidden_BLD[:, num_more:], there.windows.passes[request].is_valid_BL)
            for request, hidden_BLD in padded.items()
        }
        views = self.task._views(items, there, states)
        figures: dict[str, Tensor] = {}
        for name, term in self.task._terms().items():
            if isinstance(term, NextItem) and reads_slots(term):
                hidden_BLD = padded[term.config.window]
                figures[name] = self._next_item(term, views, hidden_BLD, fused_ND[: slot_BS.numel()])
            else:
                found = term(views)
                figures[name] = torch.stack((found.sum, found.count))
        return figures

    def loss(self, batch: Batch) -> Tensor:
        """The weighted sum of the means, over all parts of a step in which users pass at once."""
        figures = self(batch)
        terms = [
            weight * figures[name][0] / figures[name][1].clamp(min=1) for name, weight in self.task.weights.items()
        ]
        return torch.stack(terms).sum()

    def _encoded(self, batch: Batch, slot_N: Tensor, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        """The vector of every slot, and its vector of each field."""
        encoder = self.task.recommender.item_encoder
        assert isinstance(encoder, Towers)  # noqa: S101  as was checked
        items = self._reader.read(batch.items.domain_U.numpy(), batch.items.row_U.numpy())
        tokens: list[Tensor] = []
        is_valid: list[Tensor] = []
        cls_ND: dict[str, Tensor] = {}
        for field, tower in encoder.encoders.items():
            has_N = items.has_U[field][slot_N].to(device)
            if isinstance(tower, HFText):
                id_UT, is_valid_UT = padded_texts(items.fields[field], items.num_items, tower.tokenizer)
                of_field = self._texts(tower, id_UT[slot_N].to(device), is_valid_UT[slot_N].to(device))
            else:
                assert isinstance(tower, HFVision)  # noqa: S101  as was checked
                of_field = self._images(tower, items.fields[field], slot_N, items.num_items, device)
            tokens.append(of_field[0])
            is_valid.append(of_field[1] & has_N[:, None])
            cls_ND[field] = torch.where(has_N[:, None], of_field[2], 0.0)
        fused_ND = next(iter(cls_ND.values()))
        if isinstance(encoder.fusion, MergeAttention):
            fused_ND = self._fused(encoder.fusion, tokens, is_valid)
        if encoder._is_normalized:
            fused_ND = F.layer_norm(fused_ND, fused_ND.shape[-1:])
        is_readable_N = torch.stack([items.has_U[field][slot_N] for field in cls_ND]).any(dim=0).to(device)
        return torch.where(is_readable_N[:, None], fused_ND, 0.0), cls_ND

    def _texts(self, tower: HFText, id_NT: Tensor, is_valid_NT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden_NTH = tower.backbone(input_ids=id_NT, attention_mask=is_valid_NT.long()).last_hidden_state
        states_NTD = tower.projection(hidden_NTH)
        cls_ND = states_NTD[:, 0]
        if tower._pool == "mean":
            shown_NTD = torch.where(is_valid_NT[:, :, None], states_NTD, 0.0)
            cls_ND = shown_NTD.sum(1) / is_valid_NT.sum(1, keepdim=True)
        return states_NTD[:, 1:], is_valid_NT[:, 1:], cls_ND

    def _images(
        self, tower: HFVision, rows: object, slot_N: Tensor, num_items: int, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert isinstance(rows, PixelInputs)  # noqa: S101  the reader keeps no states
        pixels_UCHW = torch.zeros(num_items + 1, *rows.pixels_RCHW.shape[1:], dtype=torch.uint8)
        pixels_UCHW[rows.item_index_R.on(pixels_UCHW.device)] = rows.pixels_RCHW
        normal_NCHW = copy.deepcopy(tower.normalise).cpu()(pixels_UCHW[slot_N], dtype_of(tower.backbone))
        normal_NCHW = normal_NCHW.to(device)
        states_NPD = tower.projection(tower.backbone(pixel_values=normal_NCHW, **tower._options).last_hidden_state)
        patches_NPD = states_NPD[:, tower.num_prefix_tokens :]
        cls_ND = states_NPD[:, 0] if tower._pool == "cls" else patches_NPD.mean(1)
        return patches_NPD, torch.ones(patches_NPD.shape[:2], dtype=torch.bool, device=device), cls_ND

    def _fused(self, fusion: MergeAttention, tokens: list[Tensor], is_valid: list[Tensor]) -> Tensor:
        num_slots = len(tokens[0])
        assert fusion.mm_cls is not None  # noqa: S101  as was checked
        x_NJD = torch.cat([fusion.mm_cls.expand(num_slots, 1, -1), *tokens], dim=1)
        is_valid_NJ = torch.cat([is_valid[0].new_ones(num_slots, 1), *is_valid], dim=1)
        for block in fusion.blocks:
            x_NJD = padded_block(block, x_NJD, is_valid_NJ, is_causal=False)
        if fusion.pool == "cls":
            return x_NJD[:, 0]
        return torch.where(is_valid_NJ[:, :, None], x_NJD, 0.0).sum(1) / is_valid_NJ.sum(1, keepdim=True)

    def _states(self, items: ItemVectors, of_pass: WindowPass, num_more: int) -> Tensor:
        """Hidden states of one pass, with `num_more` positions of padding on the left."""
        encoder, is_valid_BL = self.task.recommender.user_encoder, F.pad(of_pass.is_valid_BL, (num_more, 0))
        assert isinstance(encoder, TransformerUserEncoder)  # noqa: S101  as was checked
        index_BL = F.pad(of_pass.item_index_BL, (num_more, 0))
        item_BLD = torch.where(is_valid_BL[:, :, None], items.fused_UD[index_BL], 0.0)
        if of_pass.is_masked_BL is not None:
            is_masked_BL = F.pad(of_pass.is_masked_BL, (num_more, 0))
            item_BLD = torch.where(is_masked_BL[:, :, None], encoder.mask.to(item_BLD.dtype), item_BLD)
        place_L = torch.arange(item_BLD.shape[1] - 1, -1, -1, device=item_BLD.device)
        x_BLD = F.dropout(encoder.norm(item_BLD + encoder.position(place_L)), encoder.dropout.p, self.training)
        for block in encoder.blocks:
            x_BLD = padded_block(block, x_BLD, is_valid_BL, is_causal=encoder.attends == "past")
        return x_BLD

    def _next_item(self, term: NextItem, views: Views, hidden_BLD: Tensor, slot_ND: Tensor) -> Tensor:
        """Sum and count of DAP over all slots (N = B x S), as in `NextItem`."""
        windows, config = views.windows, term.config
        of_pass, left = windows.passes[config.window], (self.num_positions - windows.item_index_BS.shape[1], 0)
        item_BS, is_valid_BS = F.pad(windows.item_index_BS, left), F.pad(windows.is_valid_BS, left)
        num_users, num_positions = item_BS.shape
        item_N = item_BS.flatten()
        is_open_BN = torch.ones(num_users, len(item_N), dtype=torch.bool)
        for b in range(num_users):
            for s in range(num_positions):
                is_open_BN[b, b * num_positions + s] = False
        is_open_BN = is_open_BN.to(item_N.device)
        if config.negatives == "unseen":
            is_seen_BSN = (item_BS[:, :, None] == item_N) & is_valid_BS[:, :, None]
            is_open_BN &= ~is_seen_BSN.any(dim=1)
        is_open_BN &= is_valid_BS.flatten() & views.items.is_readable_U[item_N]
        is_target_BL = F.pad(of_pass.is_target_BL & views.items.is_readable_U[of_pass.target_index_BL], left)
        is_counted_BL = is_target_BL & is_open_BN.any(dim=1)[:, None]
        with outside_autocast(slot_ND.device):
            score_BLN = widened(hidden_BLD) @ widened(slot_ND).T / term.temperature
            negative_BLN, next_BL = score_BLN, _next_slots(num_users, num_positions, slot_ND.device)
            positive_BL = score_BLN.gather(2, next_BL[:, :, None])[:, :, 0]
            if views.log_q_U is not None and config.logq != "none":
                log_q_N = views.log_q_U[item_N]
                negative_BLN = negative_BLN - log_q_N
                positive_BL = positive_BL - (log_q_N[next_BL] if config.logq == "all_columns" else 0.0)
            negative_BLN = negative_BLN.masked_fill(~is_open_BN[:, None], -math.inf)
            loss_BL = -F.logsigmoid(positive_BL - negative_BLN.logsumexp(dim=2))
            total = torch.where(is_counted_BL, loss_BL, 0.0).sum()
        return torch.stack((total, is_counted_BL.sum().to(total.dtype)))


def reads_slots(term: nn.Module) -> bool:
    """Whether the twin takes an objective over slots; others are computed as everywhere."""
    return isinstance(term, NextItem) and term.config.targets == "next"


def padded_block(block: nn.Module, x_BLD: Tensor, is_valid_BL: Tensor, *, is_causal: bool) -> Tensor:
    """A block over padded rows `(B, L, D)`; each position sees itself, so that padding never yields NaN."""
    assert isinstance(block, TransformerBlock)  # noqa: S101  as our parts are made
    num_rows, length, width = x_BLD.shape
    attention, training = block.attention, block.training
    itself_LL = torch.eye(length, dtype=torch.bool, device=x_BLD.device)
    is_allowed_BLL = is_valid_BL[:, None, :].expand(-1, length, -1)
    if is_causal:
        is_allowed_BLL = is_allowed_BLL & torch.ones_like(itself_LL).tril()
    is_allowed_B1LL = (is_allowed_BLL | itself_LL)[:, None]
    heads = attention.qkv(x_BLD).view(num_rows, length, 3, attention.num_heads, width // attention.num_heads)
    dropout = attention.dropout if training else 0.0
    query, key, value = heads.permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(query, key, value, is_allowed_B1LL, dropout_p=dropout)
    mixed_BLD = attention.out(mixed.transpose(1, 2).reshape(num_rows, length, width))
    p = block.dropout.p
    attended = block.attention_norm(x_BLD + F.dropout(mixed_BLD, p, training))
    widened_BLF = F.dropout(block.activation(block.expand(attended)), p, training)
    out: Tensor = block.feed_forward_norm(attended + F.dropout(block.contract(widened_BLF), p, training))
    return out


def _next_slots(num_users: int, num_positions: int, device: torch.device) -> Tensor:
    """`(B, L)`: the slot that follows each input."""
    return torch.arange(num_users * num_positions, device=device).view(num_users, num_positions)[:, 1:]


def _has_plain_form(fusion: Fusion | None) -> bool:
    if fusion is None:
        return True
    is_of_paper = isinstance(fusion, MergeAttention) and fusion.mm_cls is not None and not fusion.with_cls
    return is_of_paper and fusion.pool != "mean_of_fields"


def _refuse_others(task: TrainingTask) -> None:
    """RecipeError for a task whose parts have no plain form here."""
    recommender = task.recommender
    encoder = recommender.item_encoder
    towers: list[Encoder] = list(encoder.encoders.values())
    fits = (
        isinstance(encoder, Towers)
        and _has_plain_form(encoder.fusion)
        and all(isinstance(tower, HFText | HFVision) and tower.head is None for tower in towers)
        and isinstance(recommender.user_encoder, TransformerUserEncoder)
        and isinstance(recommender.scorer, Dot)
        and not recommender.scorer.unit_states
        and not recommender.propagation.reads_graph
    )
    if not fits:
        raise RecipeError(
            "--against naive: compares models whose items are read by encoders of transformers (hf_text, hf_vision) "
            "without head and fused by merge_attention as in PMMRec, with a transformer over users and dot products; "
            "leave it out for others"
        )
