"""Settings of a text file of a user, and the finding of those that are not given."""

from __future__ import annotations

import codecs
import csv
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from pmmrec.settings import Config

SEPARATORS = {".csv": ",", ".tsv": "\t", ".psv": "|", ".txt": "\t"}
SIGNS = ",;\t|"  # separators that are found in a first line
UNQUOTED = (".tsv", ".txt")  # files of these kinds often contain quote marks as text
UTF8 = "utf-8"
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class TextFormat(Config):
    """How a text file is read; what is not given is found by its name and its first bytes."""

    delimiter: str | None = Field(None, min_length=1, max_length=4, description="Between values. None: found.")
    encoding: str | None = Field(None, description="Of the file, such as cp1252. None: UTF-8, or UTF-16 with a mark.")
    quote: Literal["found", "none"] = Field("found", description="none: quote marks are text.")
    columns: tuple[str, ...] = Field((), description="Names of the columns of a file whose first line is a row.")

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, value: str | None) -> str | None:
        try:
            "a".encode(value or UTF8)
        except LookupError as error:
            raise ValueError(
                f"no encoding of texts is called {value!r}; such as utf-8, utf-16, latin-1, gb18030"
            ) from error
        return value

    @field_validator("delimiter", mode="before")
    @classmethod
    def _as_written(cls, value: object) -> object:
        return "\t" if value == r"\t" else value  # as people write it in a shell

    @field_validator("delimiter")
    @classmethod
    def _is_readable(cls, value: str | None) -> str | None:
        if value is not None and any(sign in value for sign in '"\r\n'):
            raise ValueError("a quote mark or a line end separates no values")
        return value


def separator_of(path: Path, suffix: str, text_format: TextFormat) -> str:
    """The separator of a UTF-8 text; `suffix` is that of the user's file.

    The sign of the suffix is taken where it divides the first line, otherwise the one that divides it most.
    Raises csv.Error for a first line that cannot be read.
    """
    own = SEPARATORS.get(suffix, ",")
    if text_format.delimiter is not None or text_format.columns:
        return text_format.delimiter or own
    num_columns = {sign: len(first_row(path, sign, has_quotes=text_format.quote != "none")) for sign in (own, *SIGNS)}
    return own if num_columns[own] > 1 else max(num_columns, key=num_columns.__getitem__)  # the first of equals


def first_row(path: Path, separator: str, *, has_quotes: bool) -> list[str]:
    """The values of the first line of a UTF-8 text."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        if len(separator) > 1:  # the csv module separates by single characters
            return file.readline().rstrip("\r\n").split(separator)
        return next(
            csv.reader(file, delimiter=separator, quoting=csv.QUOTE_MINIMAL if has_quotes else csv.QUOTE_NONE), []
        )
