"""Candidates that nobody has touched: a table of new items becomes a domain for as long as lists are made."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pmmrec.atomic import caching_in
from pmmrec.data.domain import Domain
from pmmrec.data.importers.new_items import import_new_items
from pmmrec.errors import RecipeError
from pmmrec.homes import expanded
from pmmrec.models.build import ModelConfig
from pmmrec.progress import bars_or_lines
from pmmrec.serving.candidates import check_new, report_rejected


@contextmanager
def new_items_domain(
    model: ModelConfig,
    items: Path | str | None,
    images: Path | str | None,
    known: Domain,
    *,
    cache: Path,
    warn: Callable[[str], None],
    say: Callable[[str], None] | None,
) -> Iterator[Domain | None]:
    """The domain that a table of new items makes; it goes when the block ends. None where there is no table.

    Raises RecipeError for a model that can say nothing of an item without interactions, DataError for an item that the
    domain `known` has already.
    """
    if items is None:
        yield None
        return
    encoder, knows_graph = model.item_encoder, model.knows_graph
    if knows_graph or not encoder.reads_new_items:
        by = "their neighbours in a graph" if knows_graph else "id" if encoder.knows_ids else "stored features"
        raise RecipeError(f"--new-items: this model knows items by {by}, and can say nothing of items it has not met")
    with caching_in(cache, "new items"):
        cache.mkdir(parents=True, exist_ok=True)
        home = tempfile.TemporaryDirectory(prefix="new-items-", dir=cache)
    with home as folder:
        with bars_or_lines(say) as progress:
            pictures = None if images is None else expanded(Path(images))
            new = import_new_items(expanded(Path(items)), pictures, Path(folder), progress)
        report_rejected(new, warn)
        check_new(new, known)
        yield new
