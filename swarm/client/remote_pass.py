"""One pass of hidden states through remote blocks, differentiable.

`forward` sends them over a route, and keeps the call open: its hops keep what a backward needs, for PASS_S at most. `backward` sends the
gradient over the same call. If the call has died by then (a node's death, its time, a place that another pass needed), the input is still
here: forward and backward run again, over another route. So a death changes no gradient beyond rounding.

Shapes: B sequences of T tokens, H hidden size.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from protocols import compression
from protocols.defaults import GRANT_LIFE_S
from protocols.errors import NonsenseError, TensorFormatError
from protocols.identity import Identity
from protocols.ids import SessionId, Span
from protocols.route import Grant, Route
from protocols.tensors import WireTensor
from protocols.training import Gradient, Pass, named
from protocols.weights_id import Weights
from swarm.client.open_calls import OpenCalls
from swarm.client.pass_routes import PassRoutes, is_late
from swarm.routing.router import Router
from swarm.rpc.pool import ChannelPool
from swarm.training.chain import PassCall, PassError
from swarm.waiting import ANSWERING, Waits

PASS_S = 60.0
"""Seconds from a forward to the end of its backward over one call, as nodes allow a client (`node/training/pass_limits.py`)."""

MAX_OPEN = 6
"""Calls of one model that are open at once; nodes allow a client 8."""


@dataclass(slots=True)
class PieceSize:
    """How a model's batches are divided."""

    tokens: int = 2048
    """Tokens of one pass, if it has several sequences; fewer once nodes had no memory for so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassWays:
    """What all passes of one model share."""

    router: Router
    pool: ChannelPool
    identity: Identity
    """The client's, which signs each pass."""
    dtype: str
    """Compute dtype of every hop, and of the values that travel."""
    route_timeout_s: float
    waits: Waits
    calls: OpenCalls = field(default_factory=lambda: OpenCalls(MAX_OPEN))
    pieces: PieceSize = field(default_factory=PieceSize)

    async def weights(self, blocks: Span | None) -> Weights:
        """What a pass that begins now computes with: of a model in training, the newest version that is served."""
        if not self.router.takes_newest:
            return self.router.weights
        return (await self.router.find_newest(self.route_timeout_s, self.dtype, blocks=blocks)).weights

    def grant(self, weights: Weights, route: Route) -> Grant:
        """For one pass."""
        id, expires_s = SessionId(secrets.token_bytes(16)), self.router.clock.unix_s() + GRANT_LIFE_S
        grant = Grant(client=self.identity.peer_id, session=id, epoch=0, weights=weights, route=named(route), expires_s=expires_s)
        return grant.signed(self.identity.sign)


class RemotePass:
    """`forward` once, then `backward` any number of times, then `close`. All methods belong to one event loop."""

    def __init__(self, ways: PassWays, hidden: WireTensor, blocks: Span | None) -> None:
        """hidden: [B, T, H] in the route's dtype, finite; its bytes stay as they are. blocks: None = all."""
        self._ways, self._hidden, self._blocks = ways, hidden, blocks
        self._weights = ways.router.weights
        self._open: _OpenCall | None = None
        self._is_closed = False

    async def forward(self, weights: Weights) -> Tensor:
        """[B, T, H] after the last block, by these weights, as `PassWays.weights` has chosen them.

        NoRouteError, or a refusal that no other peer would spare us.
        """
        self._weights = weights
        with self._ways.waits.reporting() as slot:
            slot.set(ANSWERING)
            call, output = await self._begin(self._routes(slot.set))
        self._keep(call)
        return output

    async def backward(self, gradient: WireTensor) -> Tensor:
        """The gradient of the input [B, T, H], from that of the output. Errors as of `forward`."""
        with self._ways.waits.reporting() as slot:
            slot.set(ANSWERING)
            routes, call = self._routes(slot.set), self._taken()
            while True:
                is_kept = call is not None
                if call is None:
                    call, _output = await self._begin(routes)
                try:
                    return await call.backward(gradient)
                except PassError as error:
                    if not (is_kept and is_late(error)):
                        routes.failed(call.route, error)
                finally:
                    call.end()
                call = None

    def close(self) -> None:
        """End what is open. A second call changes nothing."""
        self._is_closed = True
        call = self._taken()
        if call is not None:
            call.end()

    def _routes(self, on_wait: Callable[..., None]) -> PassRoutes:
        ways = self._ways
        return PassRoutes(ways.router, self._weights, self._blocks, ways.dtype, ways.route_timeout_s, on_wait)

    async def _begin(self, routes: PassRoutes) -> tuple[_OpenCall, Tensor]:
        """A call, and its output."""
        await self._ways.calls.enter()
        try:
            while True:
                route = await routes.find()
                try:
                    found = await _OpenCall.begin(self._ways.pool, self._pass(route), self._ways.calls.leave)
                except PassError as error:
                    routes.failed(route, error)
                    continue
                routes.worked(route)
                return found
        except BaseException:
            self._ways.calls.leave()
            raise

    def _pass(self, route: Route) -> Pass:
        weights = self._weights
        return Pass(
            run=weights.model, version=weights.version, index=None, weights=weights, grant=self._ways.grant(weights, route),
            route=route, payload=self._hidden, want="hidden", budget_ms=int(PASS_S * 1e3),
        )  # fmt: skip

    def _keep(self, call: _OpenCall) -> None:
        if self._is_closed:
            call.end()
            return
        self._open = call
        self._ways.calls.rest(self, self.drop)

    def drop(self) -> None:
        """Another pass needs the place: a backward runs the forward again."""
        if self._open is not None:
            self._open.end()
            self._open = None

    def _taken(self) -> _OpenCall | None:
        call, self._open = self._open, None
        self._ways.calls.resume(self)
        return call


class _OpenCall:
    """One call whose output has come, and whose gradient is due."""

    def __init__(self, call: PassCall, sent: Pass, leave: Callable[[], None]) -> None:
        self._call, self._sent, self._leave = call, sent, leave
        self.route = sent.route
        self._has_ended = False

    @classmethod
    async def begin(cls, pool: ChannelPool, sent: Pass, leave: Callable[[], None]) -> tuple[_OpenCall, Tensor]:
        """leave: called once, at the end of the call, if it begins. PassError names the hop that failed."""
        call = PassCall(pool, sent)
        async with contextlib.AsyncExitStack() as undone:
            await undone.enter_async_context(call)
            output = (await call.output()).hidden
            if (output.dtype, output.shape) != (sent.payload.dtype, sent.payload.shape):
                expected = f"{sent.payload.dtype} {list(sent.payload.shape)}"
                raise _last(sent, f"hidden states {expected} were due, got {output.dtype} {list(output.shape)}")
            try:
                values = await asyncio.to_thread(compression.unpack, output, finite=True)
            except TensorFormatError as error:
                raise _last(sent, f"the last hop's output cannot be used: {error}") from None
            undone.pop_all()
        return cls(call, sent, leave), values

    async def backward(self, gradient: WireTensor) -> Tensor:
        await self._call.send(Gradient(gradient=gradient))
        found = (await self._call.result()).gradient
        assert found is not None, "checked by PassCall"
        try:
            return await asyncio.to_thread(compression.unpack, found, finite=True)
        except TensorFormatError as error:
            hop = self._sent.here
            raise PassError(self._sent.hop, hop.peer, NonsenseError(f"the gradient that came cannot be used: {error}")) from None

    def end(self) -> None:
        """Cancel what has not come to its end."""
        if not self._has_ended:
            self._has_ended = True
            self._call.cancel()
            self._leave()


def _last(sent: Pass, message: str) -> PassError:
    """It is the last hop's word, if those above passed it on."""
    hop = len(sent.route) - 1
    return PassError(hop, sent.route[hop].peer, NonsenseError(message))
