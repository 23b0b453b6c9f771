"""Answers what this peer is and what it has done.

Any peer may ask, as it may say hello; an answer is made once in a second at most, however many ask.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

from node import hardware
from node.machine import machine_here
from protocols import services
from protocols.about import MAX_TRAINED, About, AboutRequest, Machine, Trained
from swarm.clock import SYSTEM, Clock
from swarm.rpc.call import Call, Handlers

MADE_S = 1.0
"""How long an answer is given again: to read the free memory costs more than to say hello."""


class Served(Protocol):
    """What sessions have had computed here; `node.device.tally.Tally`."""

    @property
    def num_sessions(self) -> int: ...

    @property
    def num_steps(self) -> int: ...

    @property
    def num_tokens(self) -> int: ...


class AboutHere:
    """Of one process. Belongs to one event loop."""

    def __init__(
        self,
        device: str,
        served: Served | None = None,
        trained: Callable[[], Iterable[Trained]] = tuple,
        clock: Clock = SYSTEM,
    ) -> None:
        """device: that it computes on. served: None = it serves no sessions. trained: asked for each answer."""
        self._device, self._served, self._trained, self._clock = device, served, trained, clock
        self._began_s = clock.now_s()
        self._machine: Machine | None = None
        self._made: tuple[float, bytes] | None = None
        self._making = asyncio.Lock()

    def handlers(self) -> Handlers:
        return {services.ABOUT.name: self._on_about}

    async def _on_about(self, request: bytes, call: Call) -> bytes:
        AboutRequest.parse(request)
        async with self._making:
            if self._made is None or self._clock.now_s() - self._made[0] >= MADE_S:
                self._made = self._clock.now_s(), (await self._about()).encode()
            return self._made[1]

    async def _about(self) -> About:
        machine, free_bytes = await asyncio.to_thread(self._read)
        served = self._served
        return About(
            machine=machine, free_bytes=free_bytes, uptime_s=max(0.0, self._clock.now_s() - self._began_s),
            num_sessions=served.num_sessions if served else 0, num_steps=served.num_steps if served else 0,
            num_tokens=served.num_tokens if served else 0, trained=tuple(self._trained())[:MAX_TRAINED],
        )  # fmt: skip

    def _read(self) -> tuple[Machine, int]:
        """Files of the system, and the card's driver: not for the event loop."""
        if self._machine is None:
            self._machine = machine_here(self._device)
        return self._machine, hardware.room_bytes(self._device)
