"""Remote blocks of one model behind a synchronous interface.

Sessions and differentiable passes run on the background loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from protocols import compression
from protocols.errors import BadRequestError
from protocols.ids import ModelId, Span
from swarm import trace
from swarm.client.backend import StepRequest
from swarm.client.loop import BackgroundLoop
from swarm.client.remote_pass import PassWays
from swarm.client.swarm_pass import SwarmPass
from swarm.inference.client.session import Session
from swarm.tasks import Tasks

log = logging.getLogger(__name__)


class SwarmBackend:
    """The blocks of one model, at the nodes that serve them. Its sessions share one router, and so what it knows of peers."""

    def __init__(
        self,
        loop: BackgroundLoop,
        release: Callable[[], None],
        sessions: Callable[[Span | None], Session],
        model: ModelId,
        dtype: torch.dtype,
        ways: PassWays,
    ) -> None:
        """release: let go of the shared peer; sessions: makes a session over some blocks (None: all). Both are called on the loop.
        ways: of differentiable passes."""
        self.model, self.dtype, self._ways = model, dtype, ways
        self.version: int | None = None
        """Of a model in training: the version that computed the latest step of any session; None = no step yet, or no such model."""
        self.new_session = sessions
        self._loop, self._releases = loop, [release]
        self._open: set[Session] = set()
        self._ending = Tasks()
        """Sessions whose hops are being told that they have ended."""
        self._closing: asyncio.Task[None] | None = None
        self._is_closed = False
        self._leave_the_exit = loop.at_exit(self._end_at_exit)

    def at_close(self, release: Callable[[], None]) -> None:
        """Something else to let go of at the end."""
        self._releases.append(release)

    def open(self, blocks: Span | None = None) -> SwarmSession:
        self._check_open()
        return SwarmSession(self._loop, self, blocks)

    def _check_open(self) -> None:
        if self._is_closed:
            raise BadRequestError(f"this model of {self.model.name} was closed; call from_pretrained again")

    def differentiate(self, hidden: Tensor, blocks: Span | None = None) -> tuple[Tensor, SwarmPass]:
        self._check_open()
        return SwarmPass.begin(self._loop, self._ways, hidden.to("cpu", self.dtype, copy=True).contiguous(), blocks)

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._loop.call_soon(self._start_closing)

    def _start_closing(self) -> None:
        self._closing = self._closing or asyncio.ensure_future(self._close())  # asyncio itself holds tasks weakly

    async def _end_at_exit(self) -> None:
        self._start_closing()
        assert self._closing is not None
        await self._closing

    async def _close(self) -> None:
        """End all sessions, and then let go of the peer: without it their hops cannot be told, and would keep them for long."""
        for session in [*self._open]:
            self.end(session)
        await self._ending.wait()
        while self._releases:
            self._releases.pop()()
        self._leave_the_exit()

    # --- for its sessions, on the loop

    def started(self, blocks: Span | None) -> Session:
        session = self.new_session(blocks)
        self._open.add(session)
        return session

    async def forked(self, session: Session) -> Session:
        twin = await session.fork()
        self._open.add(twin)
        return twin

    def end(self, session: Session) -> None:
        self._open.discard(session)
        self._ending.keep(session.close(), f"end of {session}")


class SwarmSession:
    """One session: synchronous for a model's forward, asynchronous for streams. Its first step makes and opens it on the loop."""

    def __init__(self, loop: BackgroundLoop, backend: SwarmBackend, blocks: Span | None = None) -> None:
        self._loop, self._backend, self._blocks = loop, backend, blocks
        self._is_closed = False
        self.journey: Session | None = None
        """The session on the loop: its `route`, and how many hops were `replaced`."""

    def step(self, request: StepRequest) -> Tensor:
        trace.mark("asked", trace.NOBODY, -1, request.tokens.nbytes)
        output = self._loop.run(self._step(request))
        trace.mark("returned", trace.NOBODY, -1, output.nbytes)
        return output

    async def step_async(self, request: StepRequest) -> Tensor:
        return await self._loop.wait(self._step(request))

    async def _step(self, request: StepRequest) -> Tensor:
        if self._is_closed:
            raise BadRequestError("this session has ended")
        if self.journey is None:
            self.journey = self._backend.started(self._blocks)
        places = None if request.positions is None else request.positions.tolist()
        dtype = torch.int32 if request.spec.kind == "ids" else self._backend.dtype
        tokens = request.tokens[0]
        packed = compression.pack(tokens if tokens.dtype is dtype else tokens.to("cpu", dtype))
        output = await self.journey.step(request.ops, request.counts, packed, request.spec, places)
        self._backend.version = self.version if self.version is not None else self._backend.version
        return compression.unpack(output.values, shape=(1, *output.values.shape))

    @property
    def version(self) -> int | None:
        versions = () if self.journey is None else self.journey.versions
        return versions[-1] if versions else None

    def fork(self) -> SwarmSession:
        twin = SwarmSession(self._loop, self._backend, self._blocks)
        if self.journey is not None:
            twin.journey = self._loop.run(self._backend.forked(self.journey))
        return twin

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._loop.call_soon(self._end)

    def _end(self) -> None:
        if self.journey is not None:
            self._backend.end(self.journey)
