"""Choose the users of a domain that a training learns from."""
# M users of the domain.

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import Self

from pmmrec.data.randomness import Purpose, generator
from pmmrec.errors import RecipeError
from pmmrec.settings import Config


class UserSampleConfig(Config):
    """Settings of a sample of users, such as `data.users: {sample: 1000, seed: 1}`."""

    sample: int = Field(ge=1, description="How many users of each domain train; a smaller sample is part of a larger.")
    seed: int = Field(0, ge=0, lt=2**31, description="Of the draw; another seed gives other users.")
    held_out: Literal["all", "sample"] = Field(
        "all",
        description="Whose validation and test targets are ranked: those of all users, so that intervals stay narrow, "
        "or those of the sample alone.",
    )


@dataclass(frozen=True)
class UserSample:
    """The users of one domain who train."""

    config: UserSampleConfig
    is_in_M: NDArray[np.bool_]
    num_users: int  # those who have something to learn from, and were drawn from

    @classmethod
    def draw(cls, config: UserSampleConfig, length_M: NDArray[np.int64], domain: str) -> Self:
        """Draw from the users with training items, of which user m has `length_M[m]`.

        The draw depends on the seed and on who has training items. Raises RecipeError where they are too few.
        """
        users = np.flatnonzero(length_M)
        if config.sample > len(users):
            raise RecipeError(
                f"data.users.sample: {config.sample:,} is more than the {len(users):,} users of {domain} who have "
                f"training items; choose up to {len(users)}, or leave data.users out"
            )
        order = generator(config.seed, Purpose.SAMPLED_USERS).permutation(len(users))
        is_in_M = np.zeros(len(length_M), dtype=bool)
        is_in_M[users[order[: config.sample]]] = True
        return cls(config, is_in_M, len(users))

    @property
    def is_ranked_M(self) -> NDArray[np.bool_]:
        """Whose held-out items are targets, `(M,)`."""
        return self.is_in_M if self.config.held_out == "sample" else np.ones_like(self.is_in_M)

    def words(self, domain: str) -> str:
        """A sentence that says who trains and who is ranked."""
        ranked = "all users" if self.config.held_out == "all" else "these users alone"
        return (
            f"{domain}: {self.config.sample:,} of {self.num_users:,} users train (data.users, seed "
            f"{self.config.seed}); validation and test targets are those of {ranked}"
        )
