"""A domain whose batches have no padding, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from even_batches import even_domain


@pytest.fixture(scope="session")
def even(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return even_domain(tmp_path_factory.mktemp("even"))
