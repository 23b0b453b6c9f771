"""Warm connections to other peers, one per peer.

The certificate is pinned; a connection is replaced when the peer comes back changed.

`ChannelPool.channel` finds or dials (`dialling.py`); `PeerChannel` calls. A dial that fails asks what certificate is shown now: a peer
that has restarted with a new one is recovered there, and an impostor is named.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from protocols.errors import DeadlineError, FrameError, PeerUnreachableError, UnauthenticatedError
from protocols.identity import Identity
from protocols.ids import PeerId, short_peer
from protocols.services import Method
from swarm import awake
from swarm.access import Gate
from swarm.rpc import status, tls
from swarm.rpc.dialling import CONNECT_S, Attempt, Connection, Target, dial
from swarm.rpc.stream import ClientStream, Stream

MAX_CHANNELS = 256
"""Connections kept; beyond it those that were used longest ago are closed, unless a call is running on them."""

_MAX_ADDRESSES = 8


class PeerChannel:
    """Calls to one peer. Connects by itself, and again when the connection is lost."""

    def __init__(self, identity: Identity, peer: PeerId, gate: Gate | None = None) -> None:
        self.peer = peer
        self._identity, self._gate = identity, gate or Gate()
        self._reached = Target()
        """Where it answered last."""
        self._connection: Connection | None = None
        self._attempts: dict[Target, Attempt] = {}
        self._streams: set[ClientStream] = set()
        self._num_unary = 0
        self._is_closed = False

    @property
    def is_busy(self) -> bool:
        """True while a call is running."""
        return bool(self._streams) or self._num_unary > 0

    @property
    def is_connected(self) -> bool:
        return self._connection is not None and self._connection.is_ready

    @property
    def address(self) -> str:
        """Where it was reached last; "" = nowhere yet."""
        return self._connection.address if self._connection else ""

    @property
    def is_wanted(self) -> bool:
        """True while a call is running, the connection is up, or a caller waits for it."""
        return self.is_busy or self.is_connected or bool(self._attempts)

    def target(self, addresses: Sequence[str], certificate: bytes) -> Target:
        """Where to dial, as a caller says. UnauthenticatedError if the certificate is another peer's."""
        if certificate and certificate != self._reached.certificate:
            found = tls.member(certificate, self._gate.key)
            if found != self.peer:
                raise UnauthenticatedError(
                    f"the certificate given for peer {short_peer(self.peer)} belongs to {short_peer(found)}"
                )
        return Target(tuple(addresses)[:_MAX_ADDRESSES] or self._reached.addresses, certificate or self._reached.certificate)

    async def connect(self, addresses: Sequence[str] = (), certificate: bytes = b"") -> None:
        """Connect if there is no connection yet. PeerUnreachableError, or UnauthenticatedError if another peer answers."""
        await self._connected(self.target(addresses, certificate))

    async def unary(self, method: Method, request: bytes, timeout_s: float | None = None) -> bytes:
        """One request, one reply, within the sooner of `timeout_s` and the method's own limit.

        Where the connection turns out to be dead, an idempotent call is sent once more. Raises the peer's own error,
        PeerUnreachableError, or DeadlineError.
        """
        assert not method.streaming
        if len(request) > method.max_request_bytes:
            raise FrameError(f"a request of {method.name} holds at most {method.max_request_bytes} bytes, got {len(request)}")
        limits = [limit for limit in (timeout_s, method.timeout_s) if limit is not None]
        timeout = asyncio.timeout(min(limits) if limits else None)
        self._num_unary += 1
        try:
            async with timeout:
                try:
                    return await self._unary_once(method, request, timeout.when())
                except PeerUnreachableError:
                    if not method.is_idempotent or self._is_closed:
                        raise
                return await self._unary_once(method, request, timeout.when())
        except TimeoutError:
            raise DeadlineError(
                f"peer {short_peer(self.peer)} gave no answer to {method.name} within {min(limits):.1f} s"
            ) from None
        finally:
            self._num_unary -= 1

    async def _unary_once(self, method: Method, request: bytes, ends_at: float | None) -> bytes:
        connection = await self._connected()
        left_s = None if ends_at is None else max(0.001, ends_at - asyncio.get_running_loop().time())
        try:
            ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = connection.channel.unary_unary(method.path)
            return await ask(request, timeout=left_s, metadata=connection.metadata())
        except grpc.aio.AioRpcError as error:
            raise status.from_grpc(error, self.peer) from None
        except asyncio.CancelledError:
            raise status.of_cancelled(self.peer) from None

    async def stream(self, method: Method, *, is_awaited: bool = True) -> Stream:
        """A stream that the peer has admitted: it knows who we are and its handler runs. Costs one round trip.

        Raises PeerUnreachableError, or the peer's refusal. The caller must read it to its end, or `cancel` it.
        is_awaited: False spares the round trip: what is sent goes at once, and a refusal is what `receive` raises.
        """
        assert method.streaming
        if not is_awaited:
            return self._streaming(self._call(await self._connected(), method))
        try:
            return await self._stream_once(method)
        except PeerUnreachableError:
            if self._is_closed:
                raise
        return await self._stream_once(method)  # nothing was sent on the first, so nothing is repeated

    async def _stream_once(self, method: Method) -> Stream:
        call = self._call(await self._connected(), method)
        try:
            async with awake.timeout(CONNECT_S):
                if not await _is_admitted(call):
                    code, details = await call.code(), await call.details()
                    raise status.from_status(code, details, await call.trailing_metadata() or (), self.peer)
        except TimeoutError:
            call.cancel()
            raise PeerUnreachableError(
                f"peer {short_peer(self.peer)} did not admit a {method.name} stream within {CONNECT_S:.0f} s"
            ) from None
        except BaseException:
            call.cancel()
            raise
        return self._streaming(call)

    def _call(self, connection: Connection, method: Method) -> grpc.aio.StreamStreamCall[bytes, bytes]:
        ask: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = connection.channel.stream_stream(method.path)
        return ask(metadata=connection.metadata())

    def _streaming(self, call: grpc.aio.StreamStreamCall[bytes, bytes]) -> Stream:
        stream = ClientStream(self.peer, call)
        self._streams.add(stream)
        call.add_done_callback(lambda _call: self._streams.discard(stream))
        return stream

    async def _connected(self, target: Target | None = None) -> Connection:
        """A connection that is up. target: where to dial, where that is needed; None: where this peer was reached last."""
        if self._connection and self._connection.is_ready:
            return self._connection
        if self._is_closed:
            raise self._closed()
        target = target or self._reached
        attempt = self._attempts.get(target)
        if attempt is None:  # else we share that one, and its failure
            attempt = Attempt(self._redial(target), f"dial {short_peer(self.peer)}", self._forget)
            self._attempts[target] = attempt
        try:
            return await attempt.result()
        except asyncio.CancelledError:
            if attempt.was_cancelled and self._is_closed:
                raise self._closed() from None
            raise

    def _forget(self, attempt: Attempt) -> None:
        self._attempts = {target: other for target, other in self._attempts.items() if other is not attempt}

    def _closed(self) -> PeerUnreachableError:
        return PeerUnreachableError(f"the connection to peer {short_peer(self.peer)} was closed here")

    async def _redial(self, target: Target) -> Connection:
        if self._connection and not self._connection.is_ready:
            await self._drop()
        found = await dial(self._identity, self.peer, self._gate, target)
        if self._connection and self._connection.is_ready:  # another attempt was faster
            await found.channel.close()
            return self._connection
        self._connection, self._reached = found, Target(target.addresses, found.der)
        return found

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            await connection.channel.close()

    async def close(self) -> None:
        """Break what is running and disconnect."""
        self._is_closed = True
        attempts = tuple(self._attempts.values())
        for attempt in attempts:
            attempt.cancel()
        await asyncio.gather(*(attempt.ended() for attempt in attempts))
        for stream in tuple(self._streams):
            stream.cancel()
        await self._drop()


async def _is_admitted(call: grpc.aio.StreamStreamCall[Any, Any]) -> bool:
    return any(key == status.ADMITTED_KEY for key, _value in await call.initial_metadata() or ())


class ChannelPool:
    """All connections of a process that go by one identity."""

    def __init__(self, identity: Identity, gate: Gate | None = None) -> None:
        """gate: which peers we call; None = all, in a public swarm."""
        self._identity, self._gate = identity, gate or Gate()
        self._channels: dict[PeerId, PeerChannel] = {}

    async def channel(self, peer: PeerId, addresses: Sequence[str] = (), certificate: bytes = b"") -> PeerChannel:
        """A connected channel to that very peer, dialled only if none is warm.

        addresses: `host:port`, in the order to try. certificate: DER to pin; where it is empty or out of date, the one that
        is shown, if its owner is `peer`. Raises PeerUnreachableError, or UnauthenticatedError if only another peer answers.
        """
        self._gate.check_dialled(peer)
        found = self._channels.pop(peer, None) or PeerChannel(self._identity, peer, self._gate)
        self._channels[peer] = found  # last = used last
        try:
            await found.connect(addresses, certificate)
        except BaseException:  # also if the caller waits no longer
            if not found.is_wanted and self._channels.get(peer) is found:
                del self._channels[peer]
            raise
        await self._evict()
        return found

    def is_connected(self, peer: PeerId) -> bool:
        """True if this very peer has answered and the connection to it is up."""
        found = self._channels.get(peer)
        return found is not None and found.is_connected

    async def _evict(self) -> None:
        surplus = len(self._channels) - MAX_CHANNELS
        idle = [peer for peer, channel in self._channels.items() if not channel.is_busy] if surplus > 0 else []
        for peer in idle[:surplus]:
            await self.forget(peer)

    async def forget(self, peer: PeerId) -> None:
        """Close the connection to a peer, if there is one: the next `channel` dials anew."""
        channel = self._channels.pop(peer, None)
        if channel:
            await channel.close()

    async def forget_refused(self) -> None:
        """Close the connections to peers that our lists have come to refuse."""
        for peer in tuple(self._channels):
            if not self._gate.access.may_be_dialled(peer):
                await self.forget(peer)

    async def close(self) -> None:
        """Close all of them."""
        for peer in tuple(self._channels):
            await self.forget(peer)
