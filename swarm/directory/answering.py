"""Answers the directory's questions by gRPC, for askers that take no part in the DHT.

A look into the DHT costs a question to 5 peers for each of 8 keys, so an answer is kept for FRESH_S and shared by all who ask
meanwhile; beyond MAX_LOOKS at once, or a caller's budget of fresh looks, we refuse at once and name another way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from protocols.directory import DirectoryReply, DirectoryRequest
from protocols.errors import BadRequestError, OverloadedError
from protocols.ids import PeerId
from swarm.meter import Meter
from swarm.rpc.call import Call

FRESH_S = 1.0
"""Age up to which an answer is given again: well below the 20 s after which peers renew their records."""

MAX_LOOKS = 16
"""Looks into the DHT at once, of all callers."""

MAX_LOOKS_PER_CALLER = 20
"""Looks that one caller may cause in WINDOW_S; what is answered from memory is free."""

WINDOW_S = 10.0
_MAX_KEPT = 64


class Directory(Protocol):
    async def signed(self, model: str) -> DirectoryReply: ...


class Answers:
    """One peer's answers. `clock` gives monotonic seconds."""

    def __init__(self, swarm: str, directory: Callable[[], Directory], clock: Callable[[], float] = time.monotonic) -> None:
        """directory: asked when needed, since the server that answers listens before there is one."""
        self._swarm, self._directory, self._clock = swarm, directory, clock
        self._kept: dict[str, tuple[float, bytes]] = {}
        self._looking: dict[str, asyncio.Task[bytes]] = {}
        self._looks = Meter(MAX_LOOKS_PER_CALLER, WINDOW_S, clock)

    async def answer(self, request: bytes, call: Call) -> bytes:
        """Handler of `services.DIRECTORY`; OverloadedError beyond a limit, BadRequestError for another swarm's question."""
        asked = DirectoryRequest.parse(request)
        if asked.swarm != self._swarm:
            raise BadRequestError(
                f"this peer is in swarm {self._swarm!r}, not {asked.swarm!r}; "
                "ask a peer of your own swarm, or name the other one with --swarm"
            )
        kept = self._kept.get(asked.model)
        if kept and self._clock() - kept[0] < FRESH_S:
            return kept[1]
        if asked.model not in self._looking:
            self._spend(call.peer)
            task = asyncio.create_task(self._look(asked.model), name="directory look")
            self._looking[asked.model] = task
            task.add_done_callback(lambda done: self._looked(asked.model, done))
        return await asyncio.shield(self._looking[asked.model])  # others may wait for the same look

    def _spend(self, caller: PeerId) -> None:
        if len(self._looking) >= MAX_LOOKS:
            raise OverloadedError(
                f"{MAX_LOOKS} looks into the directory are running here; ask another peer, or again in a moment"
            )
        if not self._looks.spend(caller):
            raise OverloadedError(
                f"you have caused {MAX_LOOKS_PER_CALLER} looks into the directory within {WINDOW_S:.0f} s, the limit: "
                "ask another peer, or again later"
            )

    async def _look(self, model: str) -> bytes:
        return (await self._directory().signed(model)).encode()

    def _looked(self, model: str, done: asyncio.Task[bytes]) -> None:
        del self._looking[model]
        if done.cancelled() or done.exception() is not None:
            return
        self._kept.pop(model, None)
        self._kept[model] = self._clock(), done.result()
        while len(self._kept) > _MAX_KEPT:
            del self._kept[next(iter(self._kept))]

    async def close(self) -> None:
        """End looks that nobody needs any more."""
        tasks: list[Awaitable[bytes]] = []
        for task in tuple(self._looking.values()):
            task.cancel()
            tasks.append(task)
        await asyncio.gather(*tasks, return_exceptions=True)
