"""Dials a peer: one address, pinned to one certificate.

Attempts end if no caller waits for them.

A caller says where to dial, and may have it from an untrusted peer (a route names addresses): so callers with different addresses dial
side by side, and a wrong address neither delays nor fails the others.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from protocols.errors import PeerUnreachableError, PrivateSwarmError, UnauthenticatedError
from protocols.identity import Identity
from protocols.ids import PeerId, short_peer
from swarm import awake
from swarm.access import Gate
from swarm.rpc import auth, options, tls
from swarm.rpc.race import race

CONNECT_S = 4.0
"""Longest wait for one address of a peer, and for its word that a stream is admitted."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a peer is said to be, and with which certificate (DER; empty: the one that is shown)."""

    addresses: tuple[str, ...] = ()
    certificate: bytes = b""


class Connection:
    """A gRPC channel to one address, pinned to one certificate."""

    def __init__(self, identity: Identity, address: str, der: bytes, gate: Gate, clock: Callable[[], float] = time.time) -> None:
        """clock: Unix time, which servers read in our credential."""
        self.address, self.der = address, der
        self._identity, self._swarm_key, self._unix_s = identity, gate.key, clock
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
        """What proves to this server who we are; anew after RENEW_S, and if this machine's clock was set."""
        now_s = self._unix_s()
        if not 0 <= now_s - self._signed_at <= auth.RENEW_S:
            self._credential = auth.credential(self._identity, self._fingerprint, now_s + auth.LIFE_S, self._swarm_key)
            self._signed_at = now_s
        return ((auth.METADATA_KEY, self._credential),)

    async def opened(self) -> bool:
        """True once connected; False at the first failure, such as another certificate. TimeoutError after CONNECT_S."""
        async with awake.timeout(CONNECT_S):
            state = self.channel.get_state(try_to_connect=True)
            while state is not grpc.ChannelConnectivity.READY:
                if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
                    return False
                await self.channel.wait_for_state_change(state)
                state = self.channel.get_state(try_to_connect=True)
        return True


class Attempt:
    """One dial, shared by all callers that wait for it. It ends when no caller waits."""

    def __init__(self, work: Coroutine[Any, Any, Connection], name: str, on_end: Callable[[Attempt], None]) -> None:
        """on_end: is called once, when the dial is done or no caller waits for it any more."""
        self._task = asyncio.create_task(work, name=name)
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._task.add_done_callback(lambda _task: self._end())
        self._on_end: Callable[[Attempt], None] | None = on_end
        self._num_waiting = 0

    async def result(self) -> Connection:
        """The connection that was made. Cancelling this call ends the dial if no other caller waits for it."""
        self._num_waiting += 1
        try:
            return await asyncio.shield(self._task)
        finally:
            self._num_waiting -= 1
            if not self._num_waiting:
                self.cancel()

    @property
    def was_cancelled(self) -> bool:
        return self._task.cancelled()

    def cancel(self) -> None:
        self._task.cancel()
        self._end()

    async def ended(self) -> None:
        """Everything that the dial had opened is closed."""
        await asyncio.wait((self._task,))

    def _end(self) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(self)


async def dial(identity: Identity, peer: PeerId, gate: Gate, target: Target) -> Connection:
    """A connection to the first of the target's addresses at which this very peer answers; they are tried side by side."""

    async def close(late: Connection) -> None:
        await late.channel.close()

    ways = [functools.partial(_dial_one, identity, peer, gate, address, target.certificate) for address in target.addresses]
    found = await race(ways, close)
    if isinstance(found, Connection):
        return found
    failures = found
    if private := next((error for error in failures if isinstance(error, PrivateSwarmError)), None):
        raise private
    reasons = "; ".join(map(str, failures)) or "no address is known"
    is_other = any(isinstance(error, UnauthenticatedError) for error in failures)
    raise (UnauthenticatedError if is_other else PeerUnreachableError)(f"no connection to peer {short_peer(peer)}: {reasons}")


async def _dial_one(identity: Identity, peer: PeerId, gate: Gate, address: str, certificate: bytes) -> Connection:
    tls.split_address(address)
    if certificate and (connection := await _attempt(identity, address, certificate, gate)):
        return connection
    shown = await tls.fetch(address, CONNECT_S)
    found = tls.member(shown, gate.key)
    if found != peer:
        raise UnauthenticatedError(f"at {address} answers peer {short_peer(found)}")
    connection = await _attempt(identity, address, shown, gate)
    if not connection:
        raise PeerUnreachableError(f"the TLS handshake with {address} fails")
    return connection


async def _attempt(identity: Identity, address: str, der: bytes, gate: Gate) -> Connection | None:
    connection = Connection(identity, address, der, gate)
    is_open = False
    try:
        is_open = await connection.opened()
        return connection if is_open else None
    except TimeoutError:
        raise PeerUnreachableError(f"{address} does not answer within {CONNECT_S:.0f} s") from None
    finally:
        if not is_open:
            await connection.channel.close()
