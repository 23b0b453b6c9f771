"""Answers directory questions by gRPC.

For peers that take no part in the DHT.

A look into the DHT costs a question to up to 20 peers, so an answer is kept for FRESH_S and shared by all who ask meanwhile. Beyond
the bounds on looks (a caller's, its network's, all together) an older answer is given again; without one we refuse at once.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Protocol

from protocols.directory import DirectoryReply, DirectoryRequest
from protocols.errors import BadRequestError, OverloadedError
from protocols.ids import PeerId
from swarm.meter import Meter
from swarm.prefixes import is_local, prefix
from swarm.rpc.call import Call

FRESH_S = 1.0
"""Age up to which an answer is given again: well below the 20 s after which peers renew their records."""

MAX_LOOKS = 16
"""Looks into the DHT at once, of all callers."""

MAX_LOOKS_PER_CALLER = 20
"""Looks that one caller may cause in WINDOW_S; what is answered from memory is free."""

MAX_LOOKS_PER_PREFIX = 100
"""Looks that one /24 or /48 may cause in WINDOW_S; loopback and private networks have no such bound."""

MAX_AT_ONCE = 4
"""Looks at once of one caller."""

STALE_S = 30.0
"""Age up to which an answer is given again where no look is allowed."""

WINDOW_S = 10.0
_MAX_KEPT = 64
_EMPTY_BYTES = len(DirectoryReply(()).encode())


class Directory(Protocol):
    async def signed(self, model: str) -> DirectoryReply: ...


class Answers:
    """One peer's answers. `clock` gives monotonic seconds."""

    def __init__(self, swarm: str, directory: Callable[[], Directory], clock: Callable[[], float] = time.monotonic) -> None:
        """directory: asked when needed, since the server that answers listens before there is one."""
        self._swarm, self._directory, self._clock = swarm, directory, clock
        self._kept: dict[str, tuple[float, bytes]] = {}
        self._looking: dict[str, asyncio.Task[bytes]] = {}
        self._lookers: Counter[PeerId] = Counter()
        self._looks = Meter(MAX_LOOKS_PER_CALLER, WINDOW_S, clock)
        self._looks_of_prefix = Meter(MAX_LOOKS_PER_PREFIX, WINDOW_S, clock)

    async def answer(self, request: bytes, call: Call) -> bytes:
        """Handler of `services.DIRECTORY`; OverloadedError beyond a limit, BadRequestError for another swarm's question."""
        asked = DirectoryRequest.parse(request)
        if asked.swarm != self._swarm:
            raise BadRequestError(
                f"this peer is in swarm {self._swarm!r}, not {asked.swarm!r}; "
                "ask a peer of your own swarm, or name the other one with --swarm"
            )
        if kept := self._newer_than(FRESH_S, asked.model):
            return kept
        if asked.model not in self._looking:
            try:
                self._spend(call)
            except OverloadedError:
                if kept := self._newer_than(STALE_S, asked.model):
                    return kept
                raise
            self._begin(asked.model, call.peer)
        return await asyncio.shield(self._looking[asked.model])  # others may wait for the same look

    def _newer_than(self, age_s: float, model: str) -> bytes | None:
        kept = self._kept.get(model)
        return kept[1] if kept and self._clock() - kept[0] < age_s else None

    def _begin(self, model: str, caller: PeerId) -> None:
        task = asyncio.create_task(self._look(model), name="directory look")
        self._looking[model] = task
        self._lookers[caller] += 1
        task.add_done_callback(lambda done: self._looked(model, caller, done))

    def _spend(self, call: Call) -> None:
        if len(self._looking) >= MAX_LOOKS or self._lookers[call.peer] >= MAX_AT_ONCE:
            raise OverloadedError(
                f"{len(self._looking)} looks into the directory are running here, {self._lookers[call.peer]} of them yours "
                f"(limits {MAX_LOOKS} and {MAX_AT_ONCE}); ask another peer, or again in a moment"
            )
        if not self._looks.spend(call.peer):  # before its network's: what is refused here costs its neighbours nothing
            raise _too_many(MAX_LOOKS_PER_CALLER, "the limit")
        group = prefix(call.address)
        if call.address and not is_local(group) and not self._looks_of_prefix.spend(group):
            raise _too_many(MAX_LOOKS_PER_PREFIX, "the limit of your network")

    async def _look(self, model: str) -> bytes:
        return (await self._directory().signed(model)).encode()

    def _looked(self, model: str, caller: PeerId, done: asyncio.Task[bytes]) -> None:
        del self._looking[model]
        self._lookers[caller] -= 1
        if not self._lookers[caller]:
            del self._lookers[caller]
        if done.cancelled() or done.exception() is not None:
            return
        self._kept.pop(model, None)
        self._kept[model] = self._clock(), done.result()
        while len(self._kept) > _MAX_KEPT:  # made-up names have short answers, and must not push out others
            del self._kept[min(self._kept, key=lambda name: len(self._kept[name][1]) > _EMPTY_BYTES)]

    async def close(self) -> None:
        """End looks that no caller needs any more."""
        tasks: list[Awaitable[bytes]] = []
        for task in tuple(self._looking.values()):
            task.cancel()
            tasks.append(task)
        await asyncio.gather(*tasks, return_exceptions=True)


def _too_many(limit: int, which: str) -> OverloadedError:
    return OverloadedError(
        f"you have caused {limit} looks into the directory within {WINDOW_S:.0f} s, {which}: ask another peer, or again later"
    )
