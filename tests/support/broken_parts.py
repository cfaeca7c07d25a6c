"""Parts that each lack one property, and the check that finds it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from pmmrec.encoders import text_encoders
from pmmrec.encoders.text import HFText, HFTextConfig
from pmmrec.fusion import fusions
from pmmrec.fusion.attentive import MergeAttention
from pmmrec.models import item_encoders, scorers
from pmmrec.models.dot import Dot
from pmmrec.models.mixture import Mixture, MixtureConfig
from pmmrec.models.towers import Towers
from pmmrec.objectives import objectives
from pmmrec.objectives.denoising import Robustness
from pmmrec.objectives.drawn_negatives import BCE
from pmmrec.propagations import propagations
from pmmrec.propagations.lightgcn import LightGCN
from pmmrec.users import user_encoders
from pmmrec.users.gru import GRUUserEncoder
from pmmrec.users.mean_mlp import MeanMLP
from pmmrec.users.transformer import TransformerUserEncoder


def with_hidden(states: Any, hidden_BLD: torch.Tensor) -> Any:
    return dataclasses.replace(states, hidden_BLD=hidden_BLD)


class ReadsTheNextItem(GRUUserEncoder):
    def forward(self, history):
        states = super().forward(history)
        return with_hidden(states, states.hidden_BLD + history.item_BLD.roll(-1, dims=1))


class ReadsAStream(GRUUserEncoder):
    """A GRU over the sum of an item's vector and a stream of it."""

    streams = frozenset({"feature"})

    def forward(self, history):
        both_BLD = history.item_BLD + history.streams_BLD["feature"]
        return super().forward(dataclasses.replace(history, item_BLD=both_BLD))


class ReadsTheNextStream(ReadsAStream):
    def forward(self, history):
        states = super().forward(history)
        return with_hidden(states, states.hidden_BLD + history.streams_BLD["feature"].roll(-1, dims=1))


class CountsPositionsFromTheLeft(GRUUserEncoder):
    def forward(self, history):
        states = super().forward(history)
        place_L1 = torch.arange(history.item_BLD.shape[1], device=history.item_BLD.device)[:, None]
        return with_hidden(states, states.hidden_BLD + 0.1 * place_L1)


class LooksAtOtherUsers(GRUUserEncoder):
    def forward(self, history):
        states = super().forward(history)
        return with_hidden(states, states.hidden_BLD - states.hidden_BLD.mean(dim=0))


class NormalisesOverTheBatch(GRUUserEncoder):
    """In training alone its states depend on the other users of the batch."""

    def forward(self, history):
        states = super().forward(history)
        scale = states.hidden_BLD.std() if self.training else 1
        return with_hidden(states, states.hidden_BLD / scale)


class IgnoresMasks(TransformerUserEncoder):
    def forward(self, history):
        return super().forward(dataclasses.replace(history, is_masked_BL=None))


class HasAnUnusedParameter(GRUUserEncoder):
    def __init__(self, config, context):
        super().__init__(config, context)
        self.unused = nn.Parameter(torch.zeros(3))


class MultipliesByZero(HasAnUnusedParameter):
    def forward(self, history):
        states = super().forward(history)
        return with_hidden(states, states.hidden_BLD + self.unused.sum() * 0)


class DependsOnNumbers(GRUUserEncoder):
    def forward(self, history):
        longest = int(history.is_valid_BL.sum(dim=1).max().item())
        states = super().forward(history)
        return with_hidden(states, states.hidden_BLD * (1 if longest else 0))


class GivesHalfTheNumbers(GRUUserEncoder):
    def forward(self, history):
        states = super().forward(history)
        return with_hidden(states, states.hidden_BLD.float())


class IsRandom(GRUUserEncoder):
    def forward(self, history):
        states = super().forward(history)
        return with_hidden(states, states.hidden_BLD + torch.rand_like(states.hidden_BLD))


class IsInfinite(GRUUserEncoder):
    def forward(self, history):
        states = super().forward(history)
        return with_hidden(states, states.hidden_BLD / 0)


class KeepsAStateOutOfItsState(GRUUserEncoder):
    def __init__(self, config, context):
        super().__init__(config, context)
        self.shift = torch.rand(()).item()

    def forward(self, history):
        states = super().forward(history)
        return with_hidden(states, states.hidden_BLD + self.shift)


class DrawsFromItsOwnGenerator(GRUUserEncoder):
    draw = torch.Generator()

    def __init__(self, config, context):
        super().__init__(config, context)
        nn.init.normal_(self.gru.weight_ih_l0, generator=self.draw)


class RanksByTheFirstState(GRUUserEncoder):
    def query(self, history):
        query = super().query(history)
        return dataclasses.replace(query, position_K=torch.zeros_like(query.position_K))


class GivesTheFirstStateAlone(GRUUserEncoder):
    """Of what is asked for alone it gives another state."""

    def forward(self, history):
        states = super().forward(dataclasses.replace(history, last_alone=False))
        first = dataclasses.replace(states, hidden_BLD=states.hidden_BLD[:, :1], is_valid_BL=states.is_valid_BL[:, :1])
        return first if history.last_alone else states


class ComparesCandidates(Dot):
    def forward(self, query, items, candidate_KC=None):
        return super().forward(query, items, candidate_KC).softmax(dim=1)


class ReadsTheNextState(Dot):
    """A scorer that sees one position of the window more than it may."""

    def forward(self, query, items, candidate_KC=None):
        last = query.states.is_valid_BL.shape[1] - 1
        later = dataclasses.replace(query, position_K=(query.position_K + 1).clamp(max=last))
        return super().forward(query, items, candidate_KC) + 0.1 * super().forward(later, items, candidate_KC)


class AveragesAllPositions(Dot):
    """A scorer of the mean of the states up to the queried one, padding among them."""

    def forward(self, query, items, candidate_KC=None):
        total_BLD = query.states.hidden_BLD.cumsum(dim=1)
        place_L1 = torch.arange(1, total_BLD.shape[1] + 1)[:, None]
        states = dataclasses.replace(query.states, hidden_BLD=total_BLD / place_L1)
        return super().forward(dataclasses.replace(query, states=states), items, candidate_KC)


class ScoresAgainstOtherUsers(Dot):
    def forward(self, query, items, candidate_KC=None):
        own = super().forward(query, items, candidate_KC)
        return own - own.mean(dim=0)


class LosesTheMaskInPadding(TransformerUserEncoder):
    """An encoder that takes a mask for an item where the window begins with padding."""

    def forward(self, history):
        if history.is_masked_BL is not None and not history.is_valid_BL[:, 0].any():
            history = dataclasses.replace(history, is_masked_BL=None)
        return super().forward(history)


class MasksTheLastPositionAlone(TransformerUserEncoder):
    def forward(self, history):
        states = super().forward(history)
        leaked_BLD = 0.1 * history.item_BLD
        leaked_BLD[:, -1] = 0
        return with_hidden(states, states.hidden_BLD + leaked_BLD)


class ReadsItself(MeanMLP):
    def forward(self, history):
        states = super().forward(history)
        return with_hidden(states, states.hidden_BLD + 0.1 * history.item_BLD)


class ReadsTheFirstItemAlone(MeanMLP):
    def forward(self, history):
        is_first_BL = history.is_valid_BL.cumsum(dim=1) == 1
        return super().forward(dataclasses.replace(history, is_masked_BL=~is_first_BL))


def plus(nodes: Any, added_ND: torch.Tensor) -> Any:
    """The nodes with something added to the vectors of their items."""
    return dataclasses.replace(nodes, items=dataclasses.replace(nodes.items, fused_UD=nodes.items.fused_UD + added_ND))


class ForgetsALayer(LightGCN):
    def _mean(self, x_VD, adjacency):
        return super()._mean(x_VD, adjacency) - x_VD / (self.num_layers + 1)


class KnowsItemsByPlace(LightGCN):
    def forward(self, nodes):
        return plus(super().forward(nodes), torch.arange(len(nodes.items.fused_UD))[:, None])


class CountsEveryInteraction(LightGCN):
    def forward(self, nodes):
        return plus(super().forward(nodes), torch.tensor(0.1 * len(self.graph.read()[0])))


class CountsItsEpochs(LightGCN):
    num_epochs = 0

    def begin_epoch(self, epoch):
        super().begin_epoch(epoch)
        self.num_epochs += 1

    def forward(self, nodes):
        return plus(super().forward(nodes), torch.tensor(float(self.num_epochs)))


class HasOtherKeys(Dot):
    """The dot product, with keys that give twice the score."""

    def keys(self, items, count_N):
        return 2 * super().keys(items, count_N)


class LooksAtOtherItems(Towers):
    def forward(self, items):
        vectors = super().forward(items)
        return dataclasses.replace(vectors, fused_UD=vectors.fused_UD - vectors.fused_UD.mean(dim=0))


class HasABias(Towers):
    def forward(self, items):
        vectors = super().forward(items)
        return dataclasses.replace(vectors, fused_UD=vectors.fused_UD + 1)


class MasksByAnotherItem(Towers):
    def forward(self, items):
        vectors = super().forward(items)
        return vectors if vectors.mask_D is None else dataclasses.replace(vectors, mask_D=vectors.fused_UD[0])


class RewordsWhatIsNotThere(Mixture):
    def forward(self, items):
        vectors = super().forward(items)
        streams_UD = {name: stream_UD + 1 for name, stream_UD in vectors.streams_UD.items()}
        return dataclasses.replace(vectors, streams_UD=streams_UD)


class SavesOtherNumbers(HFText):
    def read_backbone(self, folder):
        return {name: tensor + 1 for name, tensor in super().read_backbone(folder).items()}


class OpensItsOwnWay(HFText):
    def save_backbone(self, folder, state):
        super().save_backbone(folder, {name: tensor + 1 for name, tensor in state.items()})


class DividesByTokens(MergeAttention):
    def forward(self, states):
        fused_UD = super().forward(states)
        count_U = torch.from_numpy(sum(state.length_R for state in states.values()))
        return fused_UD / count_U[:, None]


class CountsByVectors(BCE):
    def forward(self, views):
        term = super().forward(views)
        return dataclasses.replace(term, count=(views.items.fused_UD > 0).sum().to(term.sum.dtype))


class HidesThatItReadsEarlierStates(BCE):
    def forward(self, views):
        term, states = super().forward(views), views.states[self.config.window]
        return dataclasses.replace(term, sum=term.sum + states.hidden_BLD.sum())


class ClimbsItsLoss(BCE):
    def forward(self, views):
        term = super().forward(views)
        return dataclasses.replace(term, sum=term.sum.detach() * 2 - term.sum)


class LooksAtANumber(BCE):
    def forward(self, views):
        term = super().forward(views)
        return dataclasses.replace(term, sum=term.sum * (1 + (float(term.count) < 0)))


class HidesThatItReadsTargets(Robustness):
    def forward(self, views):
        term = super().forward(views)
        return dataclasses.replace(term, sum=term.sum + views.windows.next_items.target_index_BL.sum())


class ForgetsPeers(Robustness):
    def forward(self, views):
        return super().forward(dataclasses.replace(views, peers=None))


def without_docstring(part_class: type) -> type:
    return type("Silent", (part_class,), {"__doc__": None})


TEXT_TOWER = {"text": {"type": "hf_text", **HFTextConfig.examples[0]}}
BROKEN = [
    (user_encoders, "gru", {}, without_docstring(GRUUserEncoder), "summary"),
    (user_encoders, "gru", {}, ReadsTheNextItem, "causal"),
    (user_encoders, "gru", {}, ReadsTheNextStream, "causal"),
    (user_encoders, "gru", {}, CountsPositionsFromTheLeft, "padding"),
    (user_encoders, "gru", {}, LooksAtOtherUsers, "alone = in batch"),
    (user_encoders, "gru", {}, NormalisesOverTheBatch, "shares = whole"),
    (user_encoders, "transformer", {"attends": "all"}, IgnoresMasks, "masks"),
    (user_encoders, "transformer", {"attends": "all"}, MasksTheLastPositionAlone, "masks"),
    (user_encoders, "transformer", {"attends": "all"}, LosesTheMaskInPadding, "padding"),
    (user_encoders, "mean_mlp", {"attends": "others"}, ReadsItself, "not its own"),
    (user_encoders, "mean_mlp", {"attends": "others"}, ReadsTheFirstItemAlone, "not its own"),
    (user_encoders, "gru", {}, HasAnUnusedParameter, "gradients"),
    (user_encoders, "gru", {}, HasAnUnusedParameter, "all used"),
    (user_encoders, "gru", {}, MultipliesByZero, "gradients"),
    (user_encoders, "gru", {}, DependsOnNumbers, "meta"),
    (user_encoders, "gru", {}, GivesHalfTheNumbers, "float64"),
    (user_encoders, "gru", {}, IsRandom, "repeatable"),
    (user_encoders, "gru", {}, IsInfinite, "finite"),
    (user_encoders, "gru", {}, KeepsAStateOutOfItsState, "save, load"),
    (user_encoders, "gru", {}, DrawsFromItsOwnGenerator, "seed"),
    (user_encoders, "gru", {}, RanksByTheFirstState, "query"),
    (user_encoders, "gru", {}, GivesTheFirstStateAlone, "last alone"),
    (scorers, "dot", {}, ComparesCandidates, "all = one by one"),
    (scorers, "dot", {}, ComparesCandidates, "chunks = whole"),
    (scorers, "dot", {}, ReadsTheNextState, "causal"),
    (scorers, "dot", {}, AveragesAllPositions, "padding"),
    (scorers, "dot", {}, ScoresAgainstOtherUsers, "alone = in batch"),
    (scorers, "dot", {}, ReadsTheNextState, "twin"),
    (scorers, "dot", {}, HasOtherKeys, "keys"),
    (propagations, "lightgcn", {}, ForgetsALayer, "twin"),
    (propagations, "lightgcn", {}, KnowsItemsByPlace, "any order"),
    (propagations, "lightgcn", {}, CountsEveryInteraction, "edges once"),
    (propagations, "lightgcn", {}, CountsItsEpochs, "epoch"),
    (item_encoders, "towers", TEXT_TOWER, LooksAtOtherItems, "alone = in batch"),
    (item_encoders, "towers", TEXT_TOWER, HasABias, "missing = zero"),
    (item_encoders, "towers", TEXT_TOWER, MasksByAnotherItem, "mask text"),
    (item_encoders, "mixture", MixtureConfig.examples[1], RewordsWhatIsNotThere, "training streams"),
    (fusions, "merge_attention", {"num_heads": 2}, DividesByTokens, "missing = zero"),
    (text_encoders, "hf_text", HFTextConfig.examples[0], SavesOtherNumbers, "backbone saved"),
    (text_encoders, "hf_text", HFTextConfig.examples[0], OpensItsOwnWay, "backbone opened"),
    (objectives, "bce", {}, CountsByVectors, "count"),
    (objectives, "bce", {"targets": "last"}, HidesThatItReadsEarlierStates, "last alone"),
    (objectives, "bce", {}, ClimbsItsLoss, "step lowers loss"),
    (objectives, "bce", {}, ClimbsItsLoss, "twin"),
    (objectives, "bce", {}, LooksAtANumber, "no waiting"),
    (objectives, "robustness", {}, HidesThatItReadsTargets, "targets"),
    (objectives, "robustness", {}, ForgetsPeers, "shares = whole"),
]
