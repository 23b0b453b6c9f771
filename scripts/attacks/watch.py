"""What the nodes cost during an attack.

That is memory, descriptors, CPU time, and the time of a hello by another peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from protocols.errors import SwarmError
from protocols.hello import Hello
from protocols.services import HELLO
from swarm.dht.address import PeerAddress
from swarm.peer import keys
from swarm.rpc.pool import ChannelPool

EVERY_S = 0.25
HELLO_S = 20.0
"""A hello that takes longer counts as this long."""


@dataclass(frozen=True, slots=True)
class Sample:
    """All nodes at one moment (Unix time), p2pd included."""

    at_s: float
    megabytes: float
    descriptors: int
    """Of the process that has most."""
    cpu_s: float


@dataclass(frozen=True, slots=True)
class TimedHello:
    """One hello of an independent peer."""

    at_s: float
    took_s: float


@dataclass
class Watch:
    """Samples until `stop`. sessions: the pid of each node, which leads a process session with its p2pd."""

    sessions: list[int]
    places: list[PeerAddress]
    swarm: str = "public"
    samples: list[Sample] = field(default_factory=list)
    hellos: list[TimedHello] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        for work in (self._sample, lambda: asyncio.run(self._greet_all())):
            threading.Thread(target=work, daemon=True).start()

    def stop(self) -> None:
        self._over.set()

    def _sample(self) -> None:
        while not self._over.wait(EVERY_S):
            found = [_of_process(pid) for pid in _members(set(self.sessions))]
            self.samples.append(
                Sample(
                    time.time(),
                    sum(one[0] for one in found) / 1e6,
                    max((one[1] for one in found), default=0),
                    sum(one[2] for one in found),
                )
            )

    async def _greet_all(self) -> None:
        await asyncio.gather(*(self._greet(place) for place in self.places))

    async def _greet(self, place: PeerAddress) -> None:
        """Ten hellos a second to one node, by a peer that is not attacked."""
        pool, word = ChannelPool(keys.fresh().identity), Hello(software="watch", swarm=self.swarm)
        while not self._over.is_set():
            began_s = time.time()
            with contextlib.suppress(SwarmError):
                channel = await pool.channel(place.peer, (place.grpc,))
                await channel.unary(HELLO, word.encode(), HELLO_S)
            self.hellos.append(TimedHello(began_s, min(HELLO_S, time.time() - began_s)))
            await asyncio.sleep(0.1)


def _members(sessions: set[int]) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[3]) in sessions:
                    found.append(int(entry.name))
    return found


def _of_process(pid: int) -> tuple[int, int, float]:
    """(resident bytes, open descriptors, CPU seconds); zeros for one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        pages, ticks = int(fields[21]), int(fields[11]) + int(fields[12])
        return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{pid}/fd")), ticks / os.sysconf("SC_CLK_TCK")
    except OSError:
        return 0, 0, 0.0
