"""Decide what a blend adds to the scores of a checkpoint in use."""
# N items of the catalogue, D width.

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from pmmrec.data.items import ItemReader
from pmmrec.data.splits import Split
from pmmrec.errors import RecipeError
from pmmrec.evaluation.blend import Blend, BlendConfig
from pmmrec.evaluation.learned_blend import learned_blend
from pmmrec.evaluation.model_scores import model_scorer
from pmmrec.evaluation.ranking import Seen
from pmmrec.models.build import ModelConfig
from pmmrec.models.recommender import Recommender

AskedBlend: TypeAlias = BlendConfig | Literal["auto"] | None  # auto: weights by the validation targets
MAX_VALIDATED = 10_000  # users by whose targets weights are chosen


@dataclass(frozen=True)
class Blending:
    """The blend that was asked for, or none."""

    asked: AskedBlend = None

    def popularity(self, model: ModelConfig, popularity: float | None) -> float | None:
        """The weight of popularity in the scorer: none under a blend, where it has any, else `popularity`.

        RecipeError where both are asked for.
        """
        if self.asked is None:
            return popularity
        if popularity is not None:
            raise RecipeError("--popularity: has no effect with --blend, which has a weight of its own; leave it out")
        return 0.0 if "popularity" in type(model.scorer).model_fields else None

    def given(self, verb: str) -> BlendConfig | None:
        """The settings for a verb without targets. RecipeError where these were to choose the weights."""
        if self.asked == "auto":
            raise RecipeError(
                f"--blend auto: {verb} has no targets to choose the weights by; `pmmrec evaluate --blend auto` prints "
                "them"
            )
        return self.asked

    def of_split(
        self, recommender: Recommender, reader: ItemReader, split: Split, vectors_ND: Tensor, seen: Seen
    ) -> Blend | None:
        """What is added where the targets of a split are ranked: as given, or as its validation targets like it best.

        The domain is the first of the reader, and `vectors_ND` are those of its items.
        """
        config = self.asked
        if config == "auto":
            holdout, contents = split.holdout("validation", MAX_VALIDATED), reader.contents(0)
            known = (holdout, split.train_counts, vectors_ND.device, contents, reader.first_user(0))
            score = model_scorer(recommender, vectors_ND, *known)
            config = learned_blend(score, split, holdout, seen, contents.is_readable_N).config
        return None if config is None else Blend.of_split(config, split)

    def refuse_index(self) -> None:
        """RecipeError where there is a blend: no index can serve it."""
        if self.asked is not None:
            raise RecipeError(
                "--blend: an index holds one key for each item, and co-occurrence depends on the history; use score "
                "instead"
            )


NO_BLEND = Blending()
