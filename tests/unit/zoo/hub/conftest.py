"""Hubs on this machine: a server that speaks the Hub's protocol, and a home folder with an empty cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from hub_client import point_client_at
from hub_server import HubServer, serving

from pmmrec.zoo.hub import PushOptions, push_checkpoint
from pmmrec.zoo.origin import Origin


@pytest.fixture(autouse=True)
def fresh_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with an empty cache."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The Hub, as far as its client can tell; who pushes and pulls has a token for it."""
    with serving() as hub:
        point_client_at(hub.url, monkeypatch, tmp_path)
        yield hub
        huggingface_hub.close_session()


@pytest.fixture
def published(saved: Path, server: HubServer) -> Origin:
    """The tiny checkpoint on the hub; the log starts empty."""
    origin = push_checkpoint(saved, "hf://alice/tiny", Path("hub"), PushOptions())
    server.log.clear()
    return origin
