"""Ports of this machine for the processes of a test."""

from __future__ import annotations

import random
import socket
from contextlib import suppress


def free_port(lowest: int = 10_000, highest: int = 32_000) -> int:
    """A port that nobody has.

    It is below those that the system hands out, so that no other connection takes it between here and its use.
    """
    draw = random.SystemRandom()
    for _ in range(1000):
        port = draw.randint(lowest, highest)
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")
