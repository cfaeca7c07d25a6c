"""Find and open the tables that a domain stores for its splits: parts of interactions, and impressions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from pmmrec.data.arrow import ArrowTable
from pmmrec.errors import DataError

LACKING = {  # what a split is of no use for that lacks a part
    "train": "no model can be trained on this split",
    "validation": "runs on this split are refused, since they choose the best epoch by validation",
    "test": "runs on this split need rank_test=false",
}


def stored_names(folder: Path) -> list[str]:
    """Names of the tables in a folder."""
    return sorted(path.stem for path in folder.glob("*.arrow"))


def refuse_missing(path: Path, domain: Path, what: str, command: str) -> None:
    """DataError that lists what is there, where a domain has no table `path`. `what`: such as "split"."""
    if not path.is_file():
        raise DataError(
            f"{domain}: data.split: has no {what} {path.stem!r}; there are: "
            f"{', '.join(stored_names(path.parent)) or 'none'}; `pmmrec data {command} {domain} --from FILE --name "
            f"{path.stem}` stores some"
        )


def open_stored(path: Path, fields: Sequence[pa.Field], key: bytes, of_domain: str, what: str) -> ArrowTable:
    """The table in a file, which was stored for one domain: its schema says `of_domain` under `key`.

    Raises DataError for a file that cannot be read, lacks a column, or was stored for another domain.
    """
    table = ArrowTable([path], fields, None, f"store the {what} again")
    if table.metadata.get(key, b"").decode(errors="replace") != of_domain:
        raise DataError(f"{path}: was stored for other items or sequences than the domain's; store the {what} again")
    return table
