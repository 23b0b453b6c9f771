"""Warm connections to other peers: one per peer, certificate pinned, replaced when the peer comes back changed.

`ChannelPool.channel` finds or dials; `PeerChannel` calls. A dial that fails asks what certificate is shown now: a peer that has
restarted with a new one is recovered there, and an impostor is named.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from protocols.errors import DeadlineError, FrameError, PeerUnreachableError, PrivateSwarmError, SwarmError, UnauthenticatedError
from protocols.identity import Identity
from protocols.ids import PeerId, short_peer
from protocols.services import Method
from swarm.access import Gate
from swarm.rpc import auth, options, status, tls
from swarm.rpc.race import race
from swarm.rpc.stream import ClientStream, Stream

CONNECT_S = 4.0
"""Longest wait for one address of a peer, and for its word that a stream is admitted."""

MAX_CHANNELS = 256
"""Connections kept; beyond it those that were used longest ago are closed, unless a call is running on them."""

_MAX_ADDRESSES = 8


class _Connection:
    """A gRPC channel to one address, pinned to one certificate."""

    def __init__(self, identity: Identity, address: str, der: bytes, gate: Gate) -> None:
        self.address, self.der = address, der
        self._identity, self._swarm_key = identity, gate.key
        self._fingerprint = tls.fingerprint(der)
        self._credential, self._signed_at = b"", float("-inf")
        self.channel = grpc.aio.secure_channel(
            address,
            grpc.ssl_channel_credentials(tls.pem(der)),
            options=[("grpc.ssl_target_name_override", tls.NAME), *options.CLIENT],
        )

    @property
    def is_ready(self) -> bool:
        return self.channel.get_state() is grpc.ChannelConnectivity.READY

    def metadata(self) -> tuple[tuple[str, bytes], ...]:
        """What proves to this server who we are."""
        if time.monotonic() - self._signed_at > auth.RENEW_S:
            self._credential = auth.credential(self._identity, self._fingerprint, time.time() + auth.LIFE_S, self._swarm_key)
            self._signed_at = time.monotonic()
        return ((auth.METADATA_KEY, self._credential),)

    async def opened(self) -> bool:
        """True once connected; False at the first failure, such as another certificate. TimeoutError after CONNECT_S."""
        async with asyncio.timeout(CONNECT_S):
            state = self.channel.get_state(try_to_connect=True)
            while state is not grpc.ChannelConnectivity.READY:
                if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
                    return False
                await self.channel.wait_for_state_change(state)
                state = self.channel.get_state(try_to_connect=True)
        return True


class PeerChannel:
    """Calls to one peer. Connects by itself, and again when the connection is lost."""

    def __init__(self, identity: Identity, peer: PeerId, gate: Gate | None = None) -> None:
        self.peer = peer
        self._identity, self._gate = identity, gate or Gate()
        self._addresses: tuple[str, ...] = ()
        self._certificate = b""
        self._connection: _Connection | None = None
        self._dialling: asyncio.Task[_Connection] | None = None
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

    def learn(self, addresses: Sequence[str], certificate: bytes) -> None:
        """What the peer's newest record says, for the next dial. UnauthenticatedError where the certificate is another peer's."""
        if certificate and certificate != self._certificate:
            found = tls.member(certificate, self._gate.key)
            if found != self.peer:
                raise UnauthenticatedError(
                    f"the certificate given for peer {short_peer(self.peer)} belongs to {short_peer(found)}"
                )
            self._certificate = certificate
        if addresses:
            self._addresses = tuple(addresses)[:_MAX_ADDRESSES]

    async def connect(self) -> None:
        """Connect where that is not so yet. PeerUnreachableError, or UnauthenticatedError where somebody else answers."""
        await self._connected()

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
            async with asyncio.timeout(CONNECT_S):
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

    def _call(self, connection: _Connection, method: Method) -> grpc.aio.StreamStreamCall[bytes, bytes]:
        ask: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = connection.channel.stream_stream(method.path)
        return ask(metadata=connection.metadata())

    def _streaming(self, call: grpc.aio.StreamStreamCall[bytes, bytes]) -> Stream:
        stream = ClientStream(self.peer, call)
        self._streams.add(stream)
        call.add_done_callback(lambda _call: self._streams.discard(stream))
        return stream

    async def _connected(self) -> _Connection:
        if self._connection and self._connection.is_ready:
            return self._connection
        if self._is_closed:
            raise self._closed()
        if self._dialling is None or self._dialling.done():  # else we share that one, and its failure
            self._dialling = asyncio.create_task(self._redial(), name=f"dial {short_peer(self.peer)}")
            self._dialling.add_done_callback(lambda task: task.cancelled() or task.exception())
        dialling = self._dialling
        try:
            return await asyncio.shield(dialling)
        except asyncio.CancelledError:
            if dialling.cancelled() and self._is_closed:
                raise self._closed() from None
            raise

    def _closed(self) -> PeerUnreachableError:
        return PeerUnreachableError(f"the connection to peer {short_peer(self.peer)} was closed here")

    async def _redial(self) -> _Connection:
        await self._drop()
        self._connection = await self._dial()
        return self._connection

    async def _dial(self) -> _Connection:
        """The first of the peer's addresses at which this very peer answers; they are tried side by side."""

        async def close(late: _Connection) -> None:
            await late.channel.close()

        found = await race([functools.partial(self._dial_one, address) for address in self._addresses], close)
        if isinstance(found, _Connection):
            return found
        failures = found
        if private := next((error for error in failures if isinstance(error, PrivateSwarmError)), None):
            raise private
        reasons = "; ".join(map(str, failures)) or "no address is known"
        kind = (
            UnauthenticatedError if any(isinstance(error, UnauthenticatedError) for error in failures) else PeerUnreachableError
        )
        raise kind(f"no connection to peer {short_peer(self.peer)}: {reasons}")

    async def _dial_one(self, address: str) -> _Connection:
        tls.split_address(address)
        if self._certificate and (connection := await self._attempt(address, self._certificate)):
            return connection
        shown = await tls.fetch(address, CONNECT_S)
        found = tls.member(shown, self._gate.key)
        if found != self.peer:
            raise UnauthenticatedError(f"at {address} answers peer {short_peer(found)}")
        connection = await self._attempt(address, shown)
        if not connection:
            raise PeerUnreachableError(f"the TLS handshake with {address} fails")
        self._certificate = shown
        return connection

    async def _attempt(self, address: str, der: bytes) -> _Connection | None:
        connection = _Connection(self._identity, address, der, self._gate)
        try:
            if await connection.opened():
                return connection
        except TimeoutError:
            await connection.channel.close()
            raise PeerUnreachableError(f"{address} does not answer within {CONNECT_S:.0f} s") from None
        except BaseException:
            await connection.channel.close()
            raise
        await connection.channel.close()
        return None

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            await connection.channel.close()

    async def close(self) -> None:
        """Break what is running and disconnect."""
        self._is_closed = True
        if self._dialling:
            self._dialling.cancel()
            await asyncio.gather(self._dialling, return_exceptions=True)
        for stream in tuple(self._streams):
            stream.cancel()
        await self._drop()


async def _is_admitted(call: grpc.aio.StreamStreamCall[Any, Any]) -> bool:
    return any(key == status.ADMITTED_KEY for key, _value in await call.initial_metadata() or ())


class ChannelPool:
    """All connections of a process that go by one identity."""

    def __init__(self, identity: Identity, gate: Gate | None = None) -> None:
        """gate: whom we call; None = everybody, in a public swarm."""
        self._identity, self._gate = identity, gate or Gate()
        self._channels: dict[PeerId, PeerChannel] = {}

    async def channel(self, peer: PeerId, addresses: Sequence[str] = (), certificate: bytes = b"") -> PeerChannel:
        """A connected channel to that very peer, dialled only where none is warm.

        addresses: `host:port`, in the order to try. certificate: DER to pin; where it is empty or out of date, the one that
        is shown, if its owner is `peer`. Raises PeerUnreachableError, or UnauthenticatedError where only somebody else answers.
        """
        self._gate.check_dialled(peer)
        found = self._channels.pop(peer, None) or PeerChannel(self._identity, peer, self._gate)
        self._channels[peer] = found  # last = used last
        try:
            found.learn(addresses, certificate)
            await found.connect()
        except SwarmError:
            if not found.is_busy and not found.is_connected and self._channels.get(peer) is found:
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
