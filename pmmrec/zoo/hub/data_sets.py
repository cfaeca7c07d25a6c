"""Find data sets of the Hugging Face Hub by their names."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from pmmrec.errors import MachineError, PMMRecError, RecipeError
from pmmrec.zoo.hub import huggingface
from pmmrec.zoo.hub.location import Warn, without_secrets

WANTED = ("*.parquet", "*.arrow")
_NAME = re.compile(r"(?:hf:/+)?(?:datasets/)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")


def find_data_set(name: str, *, warn: Warn = warnings.warn) -> Path:
    """The local folder of a data set `OWNER/NAME` or `OWNER/NAME@REVISION`: its Parquet and Arrow files.

    They lie in the cache of the Hub's client; a copy there is used where the Hub cannot be reached, and `warn` says so.
    Raises RecipeError for another form of name, MachineError where the data set is not available.
    """
    form = _NAME.fullmatch(name)
    if form is None:
        raise RecipeError(f"{name}: no such folder, and not a data set of the Hub, such as OWNER/NAME@REVISION")
    try:
        return huggingface.snapshot(form[1], form[2], WANTED, (), warn, "dataset")
    except PMMRecError:
        raise
    except Exception as error:  # its client raises errors of several libraries without a common base class
        told = f"{type(error).__name__}: {without_secrets(str(error))}".splitlines()[0]
        raise MachineError(
            f"data set {name}: not cached and not available from the Hub ({told}); download it and give its folder"
        ) from error
