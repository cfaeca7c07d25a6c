"""Score users of a platform: one process writes a file of top-k lists, several processes write a folder."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pmmrec.data.histories import Histories
from pmmrec.data.importers.user_list import read_user_ids
from pmmrec.errors import DataError, MachineError, RecipeError
from pmmrec.evaluation.recommend import ListMaker, NotFiniteError, TopItems
from pmmrec.evaluation.share import Share
from pmmrec.formulas import formulas_line
from pmmrec.naming import suffix_of
from pmmrec.progress import Progress
from pmmrec.serving.lists import CSV, PARQUET, SUFFIXES, write_lists

USERS_AT_ONCE = 8192
MAX_SHOWN = 5
INCOMPLETE = ".incomplete"

Users = slice | NDArray[np.int64]


@dataclass(frozen=True)
class Scored:
    """The result of scoring: what was written, and how long it took."""

    path: Path
    num_users: int
    num_rows: int
    seconds: float
    note: str = ""  # on the file; empty: none

    def line(self) -> str:
        """For people."""
        pace = f" in {self.seconds:,.1f} s, {self.num_users / self.seconds:,.0f} users/s" if self.seconds else ""
        note = f"; {self.note}" if self.note else ""
        return f"{self.path}: {self.num_rows:,} rows for {self.num_users:,} users{pace}{note}"


def check_out(out: Path) -> None:
    """Check before any work that `out` can be made. RecipeError if it exists, MachineError if it cannot be made."""
    if out.exists():
        raise RecipeError(f"--out {out}: exists; choose another name or remove it")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir():
        raise MachineError(f"--out {out}: {above} is a file, not a folder; choose another name")
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise MachineError(f"--out {out}: {above} cannot be written to: {error.strerror}") from error


def check_lists_out(out: Path, num_processes: int, *, escapes: bool = False) -> None:
    """Check before any work that lists can be written to `out`: a file of one process, or a folder of several.

    Raises RecipeError if the suffix is not a supported format, or if formulas are to be escaped in another than csv,
    and what `check_out` raises.
    """
    check_out(out)
    if escapes and out.suffix.lower() != CSV:
        raise RecipeError(f"--escape-formulas: has no effect on {out}, which is not a {CSV}; leave it out")
    if num_processes == 1:
        suffix_of(out, SUFFIXES, "--out")
    elif out.suffix.lower() in SUFFIXES and out.suffix.lower() != PARQUET:
        raise RecipeError(f"--out {out}: {num_processes} processes write a folder of {PARQUET} files; name a folder")


def chosen_users(
    histories: Histories, path: Path | None, warn: Callable[[str], None], *, skip_unknown: bool
) -> NDArray[np.int64] | None:
    """Rows of the users listed in a file, in rising order; None: all users.

    Raises DataError if the file lists users that the domain lacks, unless they may be skipped, and if it lacks all of
    them.
    """
    if path is None:
        return None
    user_ids = read_user_ids(path)
    rows, unknown = histories.rows_of(user_ids)
    if len(unknown):
        shown = ", ".join(map(repr, unknown.slice(0, MAX_SHOWN).to_pylist()))
        more = ", ..." if len(unknown) > MAX_SHOWN else ""
        found = f"--users {path}: {len(unknown):,} of {len(user_ids):,} are not users of the domain: {shown}{more}"
        if not skip_unknown or not len(rows):
            raise DataError(f"{found}; ids are text, exactly as imported. --skip-unknown leaves such users out")
        warn(f"{found}; they are left out")
    return rows


class ScoreJob:
    """A table of top-k lists that one or several processes write."""

    def __init__(
        self,
        out: Path,
        histories: Histories,
        users: NDArray[np.int64] | None,
        *,
        share: Share,
        name: str,
        escapes: bool = False,
    ) -> None:
        """`name` identifies the lists: it changes with all that affects them. Raises what `check_lists_out` raises."""
        check_lists_out(out, share.count, escapes=escapes)
        self._out, self._histories, self._share, self._escapes = out, histories, share, escapes
        span = share.span(histories.num_users if users is None else len(users))
        self._users: Users = span if users is None else users[span]
        self._num_users = span.stop - span.start
        whom = b"all" if users is None else users.tobytes()
        digest = hashlib.sha256(f"{name} {share.count} ".encode() + whom).hexdigest()[:16]
        self._unfinished = out.with_name(f"{out.name}-{digest}{INCOMPLETE}")

    def run(self, maker: ListMaker, item_ids: pa.Array, progress: Progress | None = None) -> Scored:
        """Write the share of this process.

        One process writes a file in the format of its suffix. Several write a folder of part-*.parquet in the order of
        users. The folder gets its name when the last part is complete. Parts of a killed run of the same table are
        reused.
        """
        started_s = time.monotonic()
        if self._share.count == 1:
            lists = self._lists(maker, item_ids, progress)
            written = write_lists(self._out, lists, item_ids, escapes=self._escapes)
            note = formulas_line(written.num_formulas, escapes=self._escapes) if written.num_formulas else ""
            return Scored(self._out, self._num_users, written.num_rows, time.monotonic() - started_s, note)
        path = self._unfinished / self._part(self._share.index)
        num_rows = _num_rows(path)
        if num_rows is None:
            num_rows = write_lists(path, self._lists(maker, item_ids, progress), item_ids).num_rows
        scored = Scored(self._out / path.name, self._num_users, num_rows, time.monotonic() - started_s)
        self._finish()
        return scored

    def _lists(
        self, maker: ListMaker, item_ids: pa.Array, progress: Progress | None
    ) -> Iterator[tuple[pa.Array, TopItems]]:
        done = 0
        for history in self._histories.chunks(USERS_AT_ONCE, self._users):
            first = 0
            for top in _named(
                maker.lists(history.offset_B, history.item_H, users=history.row_B), history.user_ids, item_ids
            ):
                num_users = len(top.user_index_B)
                yield history.user_ids.slice(first, num_users), top
                first += num_users
                done += num_users
                if progress is not None:
                    progress("users", done, self._num_users)

    def _part(self, index: int) -> str:
        return f"part-{index:05d}-of-{self._share.count:05d}.parquet"

    def _finish(self) -> None:
        """Give the folder its name once all parts are there; another process may have done so already."""
        if not all((self._unfinished / self._part(index)).exists() for index in range(self._share.count)):
            return
        try:
            self._unfinished.rename(self._out)
        except FileNotFoundError:
            return
        except OSError as error:
            raise MachineError(f"{self._out}: cannot be written: {error}") from error
        for other in self._out.parent.glob(f"{self._out.name}-*{INCOMPLETE}"):
            shutil.rmtree(other, ignore_errors=True)


def _named(lists: Iterator[TopItems], user_ids: pa.Array, item_ids: pa.Array) -> Iterator[TopItems]:
    """The same lists, with errors that name users and items by id."""
    try:
        yield from lists
    except NotFiniteError as error:
        user_id, item_id = user_ids[error.user].as_py(), item_ids[error.item].as_py()
        raise NotFiniteError(repr(user_id), repr(item_id), error.score) from error


def _num_rows(path: Path) -> int | None:
    """Number of rows of a part that an earlier run finished; None if there is none."""
    return int(pq.read_metadata(path).num_rows) if path.exists() else None
