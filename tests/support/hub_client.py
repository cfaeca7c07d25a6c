"""Point the client of the Hugging Face Hub at a local server."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_server import TOKEN


def point_client_at(url: str, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Set what HF_ENDPOINT and related variables set before the client is imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hf-cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "no-token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
