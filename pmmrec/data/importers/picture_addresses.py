"""Fetch pictures from addresses in a column: http and https, of public hosts, within limits of size and time."""
# ruff: noqa: S608  statements contain no addresses of users

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import SplitResult, quote, urljoin, urlsplit

import duckdb
import pyarrow as pa

from pmmrec.data.images import PictureError
from pmmrec.data.importers.picture_folder import LIST_BATCH, picture_table
from pmmrec.data.importers.rejections import Rejections
from pmmrec.data.importers.source import stream

MAX_REDIRECTS = 3
TIMEOUT_S = 10.0  # to connect, and of silence
DEADLINE_S = 60.0  # of a whole picture
BLOCK_BYTES = 1 << 16
BUSY = (429, 500, 502, 503, 504)
TYPES = ("image/", "application/octet-stream", "binary/octet-stream")
REACHABLE: frozenset[str] = frozenset()  # HOST:PORT that may be private, for tests
NO_ADDRESS = "not an address of http or https"
_FORM = re.compile(r"https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?([/?][^\s\\#]*)?(#\S*)?", re.IGNORECASE)
# IPv6 addresses that stand for an IPv4 one (behind a gateway they may lead to a private host), and local ones of old.
_NOT_PUBLIC = tuple(
    map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96", "fec0::/10"))
)


class PictureAddresses:
    """The pictures at the addresses in `items.picture_path`; several threads fetch at once.

    Each host is resolved once, all its addresses must be public, and one of them is connected to: a name that means
    another host a moment later is of no use. Redirects are checked likewise. Nothing of the user is sent.
    """

    rules: tuple[str, ...] = ()

    def __init__(self, connection: duckdb.DuckDBPyConnection, column: str) -> None:
        self._connection, self.path = connection, Path(column)

    def batches(self) -> Iterator[pa.Table]:
        """Rows of `picture_folder.SCHEMA`: each address once."""
        query = "SELECT DISTINCT trim(picture_path) AS address FROM items WHERE trim(coalesce(picture_path, '')) <> ''"
        rows: list[tuple[str, str, str, int | None, bool]] = []
        for batch in stream(self._connection, f"{query} ORDER BY address"):
            for address in batch.column(0).to_pylist():
                if _FORM.fullmatch(address):
                    rows.append((address, address, "", 0, False))
                if len(rows) == LIST_BATCH:
                    yield picture_table(rows)
                    rows = []
        yield picture_table(rows)

    def match(self, rejections: Rejections) -> str:
        """Make `matches`, as `picture_matching` does. Returns the rule, in words."""
        self._connection.execute(
            """CREATE TABLE matches AS SELECT row, file_name, choice, suffix, is_outside
               FROM items JOIN pictures ON file_name = trim(picture_path)"""
        )
        rejections.add_images(
            f"""SELECT item_id, '{NO_ADDRESS}', NULL, row FROM items
                WHERE trim(coalesce(picture_path, '')) <> '' AND row NOT IN (SELECT row FROM matches) ORDER BY row"""
        )
        return "address"

    def read(self, name: str, max_bytes: int) -> bytes:
        """The bytes at an address. Raises PictureError where they are not to be had."""
        with suppress(_AgainError):
            return _fetched(name, max_bytes)
        try:
            return _fetched(name, max_bytes)
        except _AgainError as error:
            raise PictureError(f"not fetched: {error}") from error


class _AgainError(Exception):
    """A second attempt may succeed."""


def _fetched(address: str, max_bytes: int) -> bytes:
    deadline = time.monotonic() + DEADLINE_S
    try:
        return _followed(address, max_bytes, deadline)
    except ssl.SSLError as error:
        raise PictureError("not fetched: the host has no valid certificate") from error
    except (OSError, http.client.HTTPException) as error:
        is_late = isinstance(error, TimeoutError) or time.monotonic() > deadline
        raise _AgainError("no answer in time" if is_late else "the host refuses or drops the connection") from error


def _followed(address: str, max_bytes: int, deadline: float) -> bytes:
    for _ in range(MAX_REDIRECTS + 1):
        found = _answer(address, max_bytes, deadline)
        if isinstance(found, bytes):
            return found
        address = found
    raise PictureError(f"not fetched: more than {MAX_REDIRECTS} redirects")


def _answer(address: str, max_bytes: int, deadline: float) -> bytes | str:
    """The bytes at an address, or the address that it leads to."""
    parts, host, port = _split(address)
    connection = _connected(host, port, is_secure=parts.scheme == "https")
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), _shut, [connection.sock])
    timer.start()  # a host that sends a byte now and then is never silent
    try:
        target = quote(f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}", safe="%/?:@!$&'()*+,;=~-._[]")
        connection.request("GET", target, headers={"Accept": "image/*", "User-Agent": "pmmrec"})
        answer = connection.getresponse()
        if answer.status in (301, 302, 303, 307, 308):
            return _led_to(address, answer.getheader("Location", ""))
        return _content(answer, max_bytes, deadline)
    finally:
        timer.cancel()
        connection.close()


def _split(address: str) -> tuple[SplitResult, str, int]:
    """The parts of an address, its host and its port."""
    if _FORM.fullmatch(address):
        with suppress(ValueError):  # of urllib: brackets around no IPv6 address, a port above 65535
            parts = urlsplit(address)
            usual = 443 if parts.scheme == "https" else 80
            return parts, parts.hostname or "", usual if parts.port is None else parts.port
    raise PictureError(f"not fetched: {NO_ADDRESS}")


def _led_to(address: str, location: str) -> str:
    """The address that a redirect means."""
    try:
        return urljoin(address, location)
    except ValueError as error:  # as in `_split`
        raise PictureError(f"not fetched: {NO_ADDRESS}") from error


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _content(answer: http.client.HTTPResponse, max_bytes: int, deadline: float) -> bytes:
    if time.monotonic() > deadline:  # its headers may be those that came until then
        raise TimeoutError("late")
    if answer.status in BUSY:
        raise _AgainError(f"HTTP {answer.status}")
    if answer.status != 200:
        raise PictureError(f"not fetched: HTTP {answer.status}")
    kind = answer.getheader("Content-Type", "").partition(";")[0].strip().lower()
    if not kind.startswith(TYPES):
        raise PictureError(f"not fetched: the answer is {kind[:40] or 'of no type'}, not a picture")
    if answer.getheader("Content-Encoding", "identity") != "identity":
        raise PictureError("not fetched: the answer is compressed")
    content = bytearray()
    while block := answer.read(BLOCK_BYTES):
        content += block
        if len(content) > max_bytes:
            raise PictureError(f"larger than {max_bytes:,} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError("late")
    if answer.length:
        raise ConnectionError("cut off")
    return bytes(content)


def _connected(host: str, port: int, *, is_secure: bool) -> http.client.HTTPConnection:
    """A connection to a public address of a host."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise PictureError("not fetched: no such host") from error
    numbers = [str(place[4][0]) for place in found]
    if f"{host}:{port}" not in REACHABLE and not all(map(is_public, numbers)):
        raise PictureError("not fetched: a private or local address")
    made = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    made.sock = socket.create_connection((numbers[0], port), timeout=TIMEOUT_S)
    if is_secure:
        made.sock = ssl.create_default_context().wrap_socket(made.sock, server_hostname=host)
    return made


def is_public(number: str) -> bool:
    """Whether an IP address is of the public internet, and means no other address."""
    address = ipaddress.ip_address(number.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(str(address.ipv4_mapped))
        if any(address in network for network in _NOT_PUBLIC):
            return False
    return address.is_global and not address.is_multicast
