"""Pictures are fetched from public hosts alone, within limits; a server of this machine stands for them."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import duckdb
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from pmmrec.data.images import PictureError, pixels
from pmmrec.data.importers import picture_addresses, pictures
from pmmrec.data.importers.picture_addresses import PictureAddresses, is_public
from pmmrec.errors import DataError, RecipeError


def png(shade: int) -> bytes:
    stored = io.BytesIO()
    Image.new("RGB", (16, 16), (shade,) * 3).save(stored, format="PNG")
    return stored.getvalue()


OF_PATH = {
    "page": {"Content-Type": "text/html"},
    "packed": {"Content-Type": "image/png", "Content-Encoding": "gzip"},
    "cut": {"Content-Type": "image/png", "Content-Length": "999"},
}


class Answers(BaseHTTPRequestHandler):
    """Answers by the path that is asked for."""

    num_busy: int

    def do_GET(self) -> None:
        path, _, rest = self.path.partition("?")
        name = path.strip("/")
        if name == "busy" and self.num_busy:
            type(self).num_busy -= 1
            self.answer(503, b"")
        elif name == "drip":
            self.drip()
        elif name in ("to", "missing"):
            self.answer(302 if rest else 404, b"", {"Location": rest})
        elif name in ("page", "packed", "cut"):
            self.answer(200, png(10)[:20], OF_PATH[name])
        else:
            self.answer(200, png(int(name) if name.isdigit() else 60), {"Content-Type": "image/png"})

    def drip(self) -> None:
        """Send a header that does not end."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        with suppress(OSError):
            for _ in range(100):
                self.wfile.write(b"x")
                threading.Event().wait(0.05)

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server at 127.0.0.1 that may be reached: `http://127.0.0.1:PORT`."""
    handler = type("Handler", (Answers,), {"num_busy": 1})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = f"127.0.0.1:{server.server_port}"
    monkeypatch.setattr(picture_addresses, "REACHABLE", frozenset({place}))
    yield f"http://{place}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetch() -> PictureAddresses:
    return PictureAddresses(duckdb.connect(), "cover")


def test_pictures_at_addresses_become_those_of_the_items(shop, host: str, left_out) -> None:
    covers = {"a": f"{host}/10", "b": f"{host}/to/?{host}/20", "c": f"{host}/missing", "d": "a.png", "e": ""}
    rows = "".join(f"{item_id},text,{cover}\n" for item_id, cover in covers.items())
    shop.items.write_text(f"item_id,text,cover\n{rows}")
    domain = shop.run(image_column="cover", fetch_images=True)
    shades = [jpeg and round(pixels(jpeg, 4).mean()) for jpeg in domain.jpegs(np.arange(5))]
    assert shades == [10, 20, None, None, None]
    assert [tuple(row[name] for name in ("id", "reason", "image", "line", "value")) for row in left_out(domain)] == [
        ("c", "not fetched: HTTP 404", f"{host}/missing", None, None),
        ("d", "not an address of http or https", None, 5, "a.png"),
    ]
    assert "images: 3 items have a picture by address, 2 have none" in domain.info.summary.notes


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/missing", "HTTP 404"),
        ("/page", "the answer is text/html, not a picture"),
        ("/packed", "the answer is compressed"),
        ("/cut", "the host refuses or drops the connection"),
        ("/to/?/to/?/to/?/to/?/10", "more than 3 redirects"),
        ("/to/?file:///etc/passwd", "not an address of http or https"),
        ("/to/?http://169.254.169.254/latest", "a private or local address"),
        ("/to/?http://localhost:1/x", "a private or local address"),
        ("/to/?//10.0.0.1/x", "a private or local address"),
        ("/to/?http://[1:2]/x", "not an address of http or https"),
        ("/to/?//[x/y", "not an address of http or https"),
    ],
)
def test_what_is_no_picture_of_a_public_host_is_not_fetched(fetch, host: str, path: str, reason: str) -> None:
    with pytest.raises(PictureError, match=f"not fetched: {reason}$"):
        fetch.read(host + path, 10_000)


def test_a_picture_too_large_is_not_read_to_its_end(fetch, host: str) -> None:
    with pytest.raises(PictureError, match="larger than 20 bytes"):
        fetch.read(f"{host}/60", 20)


def test_a_busy_host_is_asked_twice(fetch, host: str) -> None:
    assert fetch.read(f"{host}/busy", 10_000) == png(60)


def test_a_host_that_never_ends_is_left(fetch, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_addresses, "DEADLINE_S", 0.3)
    with pytest.raises(PictureError, match="not fetched: no answer in time"):
        fetch.read(f"{host}/drip", 10_000)


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1/a.png",
        "http://localhost/a.png",
        "http://2130706433/a.png",
        "http://0x7f.1/a.png",
        "http://0/a.png",
        "http://[::1]/a.png",
        "http://[::ffff:127.0.0.1]/a.png",
        "http://[64:ff9b::7f00:1]/a.png",
        "http://169.254.169.254/latest/meta-data",
        "http://192.168.0.1/a.png",
        "http://100.64.0.1/a.png",
    ],
)
def test_private_and_local_addresses_are_never_connected_to(
    fetch, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("connected"))
    with pytest.raises(PictureError, match=r"not fetched: (a private or local address|no such host)"):
        fetch.read(address, 1000)


def test_all_addresses_of_a_host_must_be_public(fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [(2, 1, 6, "", ("93.184.215.14", 80)), (2, 1, 6, "", ("10.0.0.1", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: places)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("connected"))
    with pytest.raises(PictureError, match="private or local"):
        fetch.read("http://host.example/a.png", 1000)


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/passwd",
        "ftp://host.example/a.png",
        "http:\\\\host.example\\a.png",
        "http://user:word@host.example/a.png",
        "http://host.example\\@127.0.0.1/a.png",
        "http://host.example/a b.png",
        "http:///a.png",
        "//host.example/a.png",
        "http://[1:2]/a.png",
        "http://[.]/a.png",
        "http://127.0.0.1:65616/a.png",
    ],
)
def test_addresses_of_another_form_are_not_fetched(fetch, address: str) -> None:
    with pytest.raises(PictureError, match="not an address of http or https"):
        fetch.read(address, 1000)


def test_public_addresses_are_told_from_others() -> None:
    assert is_public("93.184.215.14")
    assert is_public("2606:2800:21f:cb07:6820:80da:af6b:8b2c")
    others = ("224.0.0.1", "240.0.0.1", "fe80::1%eth0", "fc00::1", "2002:7f00:1::", "255.255.255.255")
    assert not any(map(is_public, (*others, "::7f00:1", "fec0::1")))


def test_fetching_is_asked_for_with_a_column_and_without_a_folder(shop, host: str) -> None:
    shop.items.write_text(f"item_id,text,cover\na,x,{host}/10\n")
    with pytest.raises(RecipeError, match="--fetch-images"):
        shop.run(image_column="cover", images=shop.paint("a.png").parent)
    for settings in ({}, {"image_column": "cover", "images": shop.folder}):
        with pytest.raises(ValidationError, match="fetch_images needs image_column"):
            shop.run(fetch_images=True, **settings)
    shop.items.write_text("item_id,text,cover\na,x,a.png\n")
    with pytest.raises(DataError, match="column 'cover': no address of a picture"):
        shop.run(image_column="cover", fetch_images=True)


def test_a_fetched_picture_is_decoded_once(shop, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    real = pictures.stored_jpeg
    monkeypatch.setattr(pictures, "stored_jpeg", lambda data, side: decoded.append(side) or real(data, side))
    shop.items.write_text(f"item_id,text,cover\na,x,{host}/10\nb,y,{host}/20\n")
    shop.interactions.write_text("user_id,item_id\nu,a\n")
    for out in ("one", "two"):
        shop.run(image_column="cover", fetch_images=True, cache=shop.folder / "cache", out=shop.folder / out)
    assert len(decoded) == 2
