"""RecBole's atomic files, and those of UniSRec, VQ-Rec and MISSRec."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pmmrec.data.importers.columns import columns_like
from pmmrec.data.importers.kinds import (
    TABS,
    Inputs,
    Kind,
    first_line,
    has_files,
    importers,
    optional_file,
    required_file,
)
from pmmrec.errors import DataError
from pmmrec.settings import PartConfig


class RecBoleConfig(PartConfig):
    """RecBole's files have no settings: their headers name the columns and types."""

    type: Literal["recbole"] = "recbole"


@importers.register("recbole", RecBoleConfig)
class RecBole(Kind):
    """RecBole: interactions and items with typed headers (`item_id:token`).

    Of UniSRec's files, which repeat each sequence for every target, the test file holds whole sequences and is read.
    """

    expects = "*.inter and *.item; or *.test.inter and *.text (UniSRec)"

    def recognise(self) -> str | None:
        if has_files(self.folder, "*.test.inter", "*.text"):
            return "*.test.inter, *.text"
        return "*.inter, *.item" if has_files(self.folder, "*.inter", "*.item") else None

    def inputs(self) -> Inputs:
        sequences = optional_file(self.folder, "*.test.inter")
        log = sequences or required_file(self.folder, "*.inter")
        items = required_file(self.folder, "*.text" if sequences else "*.item")
        of_items, of_log = _header(items), _header(log)
        texts = columns_like("text", [name for name in of_items if name != "text"])
        text = "text" if "text" in of_items else texts[0] if texts else None
        if text is None:
            raise DataError(f"{items}: no column of texts, found {', '.join(of_items)}; name it: --map text=COLUMN")
        columns = {"item_id": of_items.get("item_id", "item_id"), "text": of_items[text]}
        columns |= {name: of_log[name] for name in ("user_id", "timestamp", "rating") if name in of_log}
        if sequences:
            columns["item_ids"] = "{item_id_list:token_seq} {item_id:token}"
        return Inputs(items, log, columns, TABS, TABS)


def _header(path: Path) -> dict[str, str]:
    """Columns by their names without the types."""
    return {name.partition(":")[0]: name for name in first_line(path).split("\t")}
