"""Fixtures: local servers for the Hub and S3, and a home folder with an empty cache."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
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
    """A server that speaks the protocol of the Hub; the client has a token for it."""
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


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of an S3 server on this machine."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["file", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL at which there is nothing yet."""
    name = uuid.uuid4().hex
    if request.param == "s3":
        monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3"))
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3").mkdir(f"zoo-{name}")
        return f"s3://zoo-{name}/first"
    return f"memory://{name}/first" if request.param == "memory" else f"file://{tmp_path / name}/first"


@pytest.fixture
def other_saved(other: Any, tmp_path: Path) -> Path:
    """A checkpoint of the same system with other weights."""
    other.save(tmp_path / "other")
    return tmp_path / "other"
