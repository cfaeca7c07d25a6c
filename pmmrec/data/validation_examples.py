"""The examples that a validation loss is computed on."""
# Q queries, T targets of all queries, N items of the domain.

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pmmrec.data.examples import Examples
from pmmrec.data.splits import Split
from pmmrec.errors import DataError


class ValidationExamples(Examples):
    """Each validation target of a domain, behind the latest items that a ranking knows of its user.

    The target alone counts. A query with several targets has an example for each, all with the same history. A batch
    may hold several of them; to objectives with negatives in the batch they are different users, at every epoch alike.
    """

    last_alone_counts = True

    def __init__(self, split: Split, num_inputs: int, num_users: int | None = None) -> None:
        """`num_inputs`: items of the history, at most; 0: none. `num_users`: so many, always the same ones; None: all.

        Raises DataError where there is no validation target.
        """
        self.split, self._num_inputs = split, num_inputs
        self._holdout = split.holdout("validation", num_users)
        if not self._holdout.num_queries:
            raise DataError(
                f"{split.domain.folder}: validation.judge: loss has no validation target to read, for "
                f"{split.no_query}; judge by another split, or leave the domain out"
            )
        self._query_T = np.repeat(np.arange(self._holdout.num_queries), np.diff(self._holdout.target_offsets))

    @property
    def num_examples(self) -> int:
        return len(self._query_T)

    @property
    def warning(self) -> str | None:
        """Names users whose targets are left out, for nothing is known before them."""
        return self.split.left_out(self._holdout)

    def user(self, number: int) -> int:
        return int(self._holdout.user_index[self._query(number)])

    def items(self, number: int, generator: np.random.Generator | None = None) -> NDArray[np.int32]:  # noqa: ARG002  # nothing is random
        history = self._holdout.history(self._query(number))
        known = history[max(0, len(history) - self._num_inputs) :]
        return np.append(known, self._holdout.target[number]).astype(np.int32)

    def length(self, number: int) -> int:
        return min(len(self._holdout.history(self._query(number))), self._num_inputs) + 1

    def expected_slots(self) -> NDArray[np.float64]:
        rows = np.concatenate([self.items(number) for number in range(self.num_examples)])
        return np.bincount(rows, minlength=self.split.domain.num_items).astype(np.float64)

    def touched(self, user: int) -> NDArray[np.int32]:
        """What is known of the user and all validation targets of the user."""
        holdout = self._holdout
        first, end = np.searchsorted(holdout.user_index, [user, user + 1])
        history = holdout.history_items[holdout.history_offsets[first] : holdout.history_offsets[end]]
        targets = holdout.target[holdout.target_offsets[first] : holdout.target_offsets[end]]
        return np.concatenate([history, targets.astype(np.int32)])

    def users_who_touched(self, num_items: int) -> Iterator[int]:
        for user in np.unique(self._holdout.user_index).tolist():
            if len(self.touched(user)) >= num_items:
                yield user

    def _query(self, number: int) -> int:
        if not 0 <= number < self.num_examples:
            raise IndexError(f"validation target {number} of {self.num_examples}")
        return int(self._query_T[number])
