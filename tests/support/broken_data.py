"""Adapters, splits, kinds of examples and of imports that each lack one property, and the check that finds it."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from pmmrec.adapters import adapters
from pmmrec.adapters.bottleneck import Pfeiffer
from pmmrec.adapters.peft_kinds import Lora
from pmmrec.data.examples import example_kinds
from pmmrec.data.examples.interactions import InteractionKind, Interactions
from pmmrec.data.importers.kinds import importers
from pmmrec.data.importers.kinds.mind import MIND
from pmmrec.data.splits import HELD_OUT, SplitPart, splits
from pmmrec.data.splits.ratio import Ratio


class StartsWithNoise(Pfeiffer):
    def insert(self, host, blocks, where):
        holders = super().insert(host, blocks, where)
        nn.init.normal_(host.sub(holders[0]).up.weight)
        return holders


class AddsNothing(Pfeiffer):
    def insert(self, host, blocks, where):
        holders = super().insert(host, blocks, where)
        host.sub(holders[0]).scale = 0.0
        return holders


class NamesTwoTensorsAlike(Pfeiffer):
    def name_on_disk(self, name):
        return name.rpartition(".")[2]


class MergesSomethingElse(Lora):
    def merge(self, host, holders):
        super().merge(host, holders)
        with torch.no_grad():
            host.sub(holders[0]).weight.add_(0.1)


class LooksAtWeights(Pfeiffer):
    def insert(self, host, blocks, where):
        assert next(host.module.parameters()).sum().item() < 1e9
        return super().insert(host, blocks, where)


class TrainsOnAll(Ratio):
    def train(self, user):
        return self.domain.sequence(user)


class CountsAll(Ratio):
    @property
    def train_counts(self):
        items = [self.domain.sequence(user) for user in range(self.domain.num_users)]
        return np.bincount(np.concatenate(items), minlength=self.domain.num_items)


class KnowsTheTest(Ratio):
    def knows(self, name):
        return tuple(part for part in SplitPart if part != HELD_OUT[name])


class SplitsAtRandom(Ratio):
    def parts(self, stretch):
        return np.random.default_rng().permuted(super().parts(stretch))


class TrainsOnOthers(Ratio):
    """Users outside the sample train too."""

    def assigned(self, stretch):
        return self.parts(stretch)


class ExamplesOfAll(InteractionKind):
    """The held-out items of a user among the examples."""

    class Shown(Interactions):
        def items(self, number, generator):
            return self.split.domain.sequence(self.user(number))[-1:]

    def training(self, split):
        return self.Shown(split)


class SaysTwoItems(InteractionKind):
    class Shown(Interactions):
        def length(self, number):
            return 2

    def training(self, split):
        return self.Shown(split)


class DrawsExamplesAnew(InteractionKind):
    class Shown(Interactions):
        def items(self, number, generator):
            return np.random.default_rng().permuted(self.split.train(self.user(number)))[:1]

    def training(self, split):
        return self.Shown(split)


class ExpectsTwice(InteractionKind):
    class Shown(Interactions):
        def expected_slots(self):
            return 2 * super().expected_slots()

    def training(self, split):
        return self.Shown(split)


class ValidatesOnTraining(InteractionKind):
    def validation(self, split, num_users):
        return self.training(split)


class ExpectsNothing(MIND):
    expects = ""


class RecognisesAnyTable(MIND):
    def recognise(self):
        return "*.csv" if list(self.folder.glob("*.csv")) else None


BROKEN = [
    (adapters, "pfeiffer", {}, StartsWithNoise, "starts equal"),
    (adapters, "pfeiffer", {}, AddsNothing, "learn alone"),
    (adapters, "pfeiffer", {}, NamesTwoTensorsAlike, "save, load"),
    (adapters, "lora", {}, MergesSomethingElse, "merged"),
    (adapters, "pfeiffer", {}, LooksAtWeights, "meta"),
    (splits, "ratio", {}, TrainsOnAll, "disjoint"),
    (splits, "ratio", {}, CountsAll, "held out"),
    (splits, "ratio", {}, KnowsTheTest, "queries"),
    (splits, "ratio", {}, SplitsAtRandom, "repeatable"),
    (splits, "ratio", {}, TrainsOnOthers, "sample"),
    (example_kinds, "interactions", {}, ExamplesOfAll, "training alone"),
    (example_kinds, "interactions", {}, SaysTwoItems, "lengths"),
    (example_kinds, "interactions", {}, DrawsExamplesAnew, "repeatable"),
    (example_kinds, "interactions", {}, ExpectsTwice, "slots"),
    (example_kinds, "interactions", {}, ValidatesOnTraining, "validation"),
    (importers, "mind", {}, ExpectsNothing, "says its files"),
    (importers, "mind", {}, RecognisesAnyTable, "not others"),
]
