"""Limits the connections of a server.

Those without calls are closed, and so are those that one address has too many of.

gRPC accepts every connection and reports none, so we look through this process's own sockets once a second. What is shut down
here ends in gRPC as if its peer had left. `surplus` decides; `Connections` looks and acts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from swarm import descriptors
from swarm.rpc.caller import group_of, plain

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Between two looks at our sockets: 0.3 ms of another thread for 100 of them."""

UNKNOWN_S = 10.0
"""How long a connection may live before its first call by a caller who proves who it is."""

MAX_REFUSED = 32
"""Calls without a valid credential, after which a connection is closed."""

MAX_CONNECTIONS = 8_192

Remote = tuple[str, int]


@dataclass(slots=True)
class Connection:
    """What we know of one connection. Times by the monotonic clock."""

    since_s: float
    used_s: float | None = None
    """When the last call began or ended whose caller proved who it is; None: there was none."""
    num_running: int = 0
    num_refused: int = 0

    @property
    def _rank(self) -> tuple[int, float]:
        """Which one goes first: unknown before idle before busy, and then the one that has been so for longest."""
        if self.used_s is None:
            return 0, self.since_s
        return (2 if self.num_running else 1), self.used_s


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """How many connections a server keeps."""

    total: int
    per_address: int
    """Of one IPv4 address, or one IPv6 network of 64 bits."""

    @classmethod
    def of(cls, num_descriptors: int) -> ConnectionLimits:
        """Half of the process's descriptors, and a quarter of these for one address: the rest is for our own files and calls."""
        total = min(MAX_CONNECTIONS, max(16, num_descriptors // 2))
        return cls(total=total, per_address=max(8, total // 4))


def surplus(known: dict[Remote, Connection], now_s: float, limits: ConnectionLimits) -> list[Remote]:
    """Which connections are to be closed: useless ones, then those of an address with too many, then of the addresses with most."""
    gone = [remote for remote, one in known.items() if _is_useless(one, now_s)]
    groups: dict[str, list[Remote]] = defaultdict(list)
    for remote in sorted(known.keys() - set(gone), key=lambda remote: known[remote]._rank, reverse=True):
        groups[group_of(remote[0])].append(remote)
    for own in groups.values():
        gone += _taken(own, len(own) - limits.per_address)
    excess = sum(map(len, groups.values())) - limits.total
    while excess > 0:
        gone += _taken(max(groups.values(), key=len), 1)
        excess -= 1
    return gone


def _is_useless(one: Connection, now_s: float) -> bool:
    return one.num_refused >= MAX_REFUSED or (one.used_s is None and now_s - one.since_s > UNKNOWN_S)


def _taken(remotes: list[Remote], number: int) -> list[Remote]:
    return [remotes.pop() for _ in range(max(0, number))]


class Connections:
    """Watches the connections to one port of this process. Use: `start(port)` … `stop()`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits: ConnectionLimits | None = None
        self._clock = clock
        self._known: dict[Remote, Connection] = {}
        self._port = 0
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def calling(self, remote: Remote) -> Iterator[None]:
        """A call by a caller who has proved who it is runs over this connection."""
        one = self._of(remote)
        one.used_s, one.num_running = self._clock(), one.num_running + 1
        try:
            yield
        finally:
            one.used_s, one.num_running = self._clock(), one.num_running - 1

    def refused(self, remote: Remote) -> None:
        """A call without a valid credential came over this connection."""
        one = self._of(remote)
        one.num_refused += 1
        if one.num_refused == MAX_REFUSED:
            self._hurry.set()

    def _of(self, remote: Remote) -> Connection:
        return self._known.setdefault(remote, Connection(self._clock()))

    def start(self, port: int) -> None:
        """Watch until `stop`."""
        self._port = port
        self._limits = ConnectionLimits.of(descriptors.limit())
        self._task = asyncio.create_task(self._watch(), name=f"watch over the connections to port {port}")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._hurry.wait()
            self._hurry.clear()
            try:
                await self._look()
            except Exception:
                log.exception("the look at the connections to port %d failed by a fault of ours", self._port)
                await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        assert self._limits is not None
        began_s = self._clock()
        found = await asyncio.to_thread(_open_to, self._port)
        newer = {remote: one for remote, one in self._known.items() if one.num_running or one.since_s >= began_s}
        self._known = {remote: self._of(remote) for remote in found} | newer
        gone = surplus({remote: self._known[remote] for remote in found}, self._clock(), self._limits)
        if gone:
            log.info("%d of %d connections are closed: they carry no call, or one address has too many", len(gone), len(found))
            _shut_down((found[remote], remote) for remote in gone)


def _open_to(port: int) -> dict[Remote, int]:
    """Descriptors of this process's connections to `port`, by who is at the other end."""
    return {remote: number for number in _numbers() if (remote := _remote(number, port)) is not None}


def _numbers() -> Sequence[int]:
    """Descriptors that are open, or may be."""
    try:
        return [int(name) for name in os.listdir("/dev/fd")]
    except OSError:  # even this takes a descriptor, and there may be none left: then all of them are in use
        return range(descriptors.limit())


def _remote(number: int, port: int) -> Remote | None:
    """Who is at the other end of a descriptor, if that is a connection to `port`. Takes no descriptor of its own."""
    try:
        connection = socket.socket(fileno=number)
    except OSError:
        return None
    try:
        if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.getsockname()[1] != port:
            return None
        host, remote_port = connection.getpeername()[:2]
        return plain(host), remote_port
    except OSError:  # it listens, or has just ended
        return None
    finally:
        connection.detach()


def _shut_down(gone: Iterable[tuple[int, Remote]]) -> None:
    for number, remote in gone:
        with contextlib.suppress(OSError):
            connection = socket.socket(fileno=number)
            try:
                host, port = connection.getpeername()[:2]
                if (plain(host), port) == remote:  # else the number has a new owner
                    connection.shutdown(socket.SHUT_RDWR)
            finally:
                connection.detach()
