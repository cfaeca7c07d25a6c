"""Two hosts on one machine: network namespaces that a cable joins, which can be pulled and put back.

A child of `ip netns exec` sees the interfaces of its host alone, so what runs on one host reaches the other by the
cable or not at all. Files are those of this machine: the hosts share their disk.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ADDRESSES = ("10.77.0.1", "10.77.0.2")
CABLE = "cable"  # the interface of either host; nothing but its own host sees it


class NoHostsError(Exception):
    """This machine makes no network namespaces, and why."""


@dataclass
class Host:
    """One of the two, and what runs on it."""

    namespace: str
    address: str
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(
        self, words: Sequence[object], said: Path, environment: Mapping[str, str], folder: Path
    ) -> subprocess.Popen[bytes]:
        """Start a command there; all it says goes to the file `said`."""
        command = ["ip", "netns", "exec", self.namespace, *map(str, words)]
        with said.open("wb") as out:
            started = subprocess.Popen(command, stdout=out, stderr=out, cwd=folder, env=environment)
        self.running.append(started)
        return started

    def processes(self) -> list[int]:
        """All that run there."""
        return [int(word) for word in _ip("netns", "pids", self.namespace).split()]

    def end_all(self) -> None:
        """Kill whatever runs there, however it was started."""
        while pids := self.processes():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        for started in self.running:
            started.wait()


@dataclass
class TwoHosts:
    """Joined by a cable until it is cut."""

    hosts: tuple[Host, Host]

    def cut(self) -> None:
        """Take host 1 off the net: what is sent is lost, and neither side is told."""
        self._cable(1, "down")

    def restore(self) -> None:
        self._cable(1, "up")

    def _cable(self, host: int, state: str) -> None:
        _ip("-n", self.hosts[host].namespace, "link", "set", CABLE, state)


@contextmanager
def two_hosts() -> Iterator[TwoHosts]:
    """Two hosts, empty and joined; nothing of them is left behind. NoHostsError where they cannot be made."""
    if shutil.which("ip") is None:
        raise NoHostsError("there is no `ip` (package iproute2)")
    if os.geteuid() != 0:
        raise NoHostsError("only root makes network namespaces")
    hosts = tuple(Host(f"pmmrec-{os.getpid()}-{place}", address) for place, address in enumerate(ADDRESSES))
    try:
        try:
            _join(hosts)
        except subprocess.CalledProcessError as error:
            raise NoHostsError(f"`{' '.join(error.cmd)}`: {error.stderr.strip()}") from error
        yield TwoHosts(hosts)
    finally:
        for host in hosts:
            with contextlib.suppress(subprocess.CalledProcessError):  # it was never made
                host.end_all()
                _ip("netns", "delete", host.namespace)


def _join(hosts: tuple[Host, ...]) -> None:
    first, other = (host.namespace for host in hosts)
    for host in hosts:
        _ip("netns", "add", host.namespace)
    _ip("-n", first, "link", "add", CABLE, "type", "veth", "peer", "name", CABLE, "netns", other)
    for host in hosts:
        _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", CABLE)
        _ip("-n", host.namespace, "link", "set", CABLE, "up")
        _ip("-n", host.namespace, "link", "set", "lo", "up")
        _ip("netns", "exec", host.namespace, "true")


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout
