"""The server of a peer: checks who calls, runs the handler within the deadline, and turns what it raises into a status.

Handlers know nothing of gRPC: they get bytes and a `Call`, and raise the errors of `protocols/errors.py`. Every call costs a
stranger more than us: no credential, no handler; and beyond the limits below a call is refused at once, never kept waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import secrets
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any, TypeAlias, TypeVar, cast

import grpc
import grpc.aio

from protocols import services
from protocols.defaults import MAX_FRAME_BYTES
from protocols.errors import ConfigError, DeadlineError, InternalError, OverloadedError, SwarmError
from protocols.identity import Identity
from protocols.ids import PeerId
from protocols.services import Method
from swarm.access import Gate
from swarm.rpc import options, status
from swarm.rpc.auth import METADATA_KEY, Authenticator
from swarm.rpc.call import Call, Handlers, StreamHandler, UnaryHandler
from swarm.rpc.caller import host_of
from swarm.rpc.stream import ServerStream
from swarm.rpc.tls import TlsCertificate, fingerprint

log = logging.getLogger(__name__)

MAX_CALLS = 4_096
"""Calls that run at once, of all peers; streams count while they are open."""

MAX_CALLS_PER_PEER = 960
"""Calls of one peer at once; below gRPC's 1,024 per connection, beyond which it would keep the caller waiting in silence."""

_CHOOSE = "choose another with --listen HOST:PORT, or port 0 for a free one"
T = TypeVar("T")
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Admission:
    """Counts running calls, and refuses those beyond a limit."""

    def __init__(self, max_calls: int, max_calls_per_peer: int) -> None:
        self._max_calls, self._max_per_peer = max_calls, max_calls_per_peer
        self._running: Counter[PeerId] = Counter()

    @contextlib.contextmanager
    def admitted(self, peer: PeerId) -> Iterator[None]:
        """OverloadedError where one more call would pass a limit; nothing was done then."""
        if self._running[peer] >= self._max_per_peer:
            raise OverloadedError(
                f"you have {self._running[peer]} calls running here, the limit of one peer: end some, or ask another peer"
            )
        if self._running.total() >= self._max_calls:
            raise OverloadedError(f"{self._max_calls} calls are running here, the limit: ask another peer, or again later")
        self._running[peer] += 1
        try:
            yield
        finally:
            self._running[peer] -= 1
            self._running += Counter()  # forget peers that have none


class RpcServer:
    """Serves `handlers` at host:port under TLS. Use: `port = await server.start()` … `await server.stop(grace_s)`."""

    def __init__(
        self,
        identity: Identity,
        certificate: TlsCertificate,
        handlers: Handlers,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        methods: Iterable[Method] = services.ALL,
        admission: Admission | None = None,
        gate: Gate | None = None,
    ) -> None:
        """gate: who may call; None = everybody, in a public swarm."""
        known = {method.name: method for method in methods}
        assert set(handlers) <= set(known), (
            f"handlers for calls that the service table does not know: {set(handlers) - set(known)}"
        )
        self.peer = identity.peer_id
        self._certificate, self._host, self._port = certificate, host, port
        self._gate = gate or Gate()
        self._authenticator = Authenticator(fingerprint(certificate.der), self._gate.key)
        self._admission = admission or Admission(MAX_CALLS, MAX_CALLS_PER_PEER)
        self._routes = {known[name].path: self._route(known[name], handler) for name, handler in handlers.items()}
        self._server: grpc.aio.Server | None = None

    async def start(self) -> int:
        """Listen; the port, which is a free one where 0 was asked for. ConfigError where the address cannot be had."""
        _check_free(self._host, self._port)
        server = grpc.aio.server(options=options.SERVER)
        server.add_generic_rpc_handlers((_Routes(self._routes),))
        credentials = grpc.ssl_server_credentials([(self._certificate.key_pem, self._certificate.cert_pem)])
        address = f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"
        try:
            port = server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise ConfigError(f"cannot listen at {address}: {error}; {_CHOOSE}") from None
        await server.start()
        self._server = server
        return port

    async def stop(self, grace_s: float = 0.0) -> None:
        """Take no new calls, give running ones `grace_s` seconds, then cancel them."""
        server, self._server = self._server, None
        if server:
            await server.stop(grace_s)

    def _route(self, method: Method, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        if method.streaming:
            return grpc.stream_stream_rpc_method_handler(self._streaming(method, cast(StreamHandler, handler)))
        return grpc.unary_unary_rpc_method_handler(self._unary(method, cast(UnaryHandler, handler)))

    def _caller(self, context: _Context) -> PeerId:
        metadata = dict(context.invocation_metadata() or ())
        peer = self._authenticator.caller(metadata.get(METADATA_KEY), time.time())
        self._gate.check_caller(peer)
        return peer

    def _unary(self, method: Method, handler: UnaryHandler) -> Callable[[bytes, _Context], Awaitable[bytes]]:
        async def serve(request: bytes, context: _Context) -> bytes:
            async with _errors_become_statuses(method, context):
                peer = self._caller(context)
                ends_at = _ends_at(context.time_remaining(), method.timeout_s)
                call = Call(peer, lambda: None if ends_at is None else ends_at - time.monotonic(), host_of(context.peer()))
                with self._admission.admitted(peer):
                    reply = await _within(handler(request, call), call.remaining_s(), method)
                if len(reply) > MAX_FRAME_BYTES:
                    raise InternalError(
                        f"the answer to {method.name} would have {len(reply)} bytes, the limit is {MAX_FRAME_BYTES}"
                    )
                return reply

        return serve

    def _streaming(self, method: Method, handler: StreamHandler) -> Callable[[Any, _Context], Awaitable[None]]:
        async def serve(_requests: object, context: _Context) -> None:
            async with _errors_become_statuses(method, context):
                peer = self._caller(context)
                ends_at = _ends_at(context.time_remaining(), None)
                call = Call(peer, lambda: None if ends_at is None else ends_at - time.monotonic(), host_of(context.peer()))
                with self._admission.admitted(peer):
                    await context.send_initial_metadata(((status.ADMITTED_KEY, "1"),))
                    stream = ServerStream(peer, context)
                    try:
                        with self._gate.running(peer, stream.cancel):
                            await _within(handler(stream, call), call.remaining_s(), method)
                    finally:
                        await stream.close()

        return serve


class _Routes(grpc.GenericRpcHandler):
    def __init__(self, routes: dict[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        self._routes = routes

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._routes.get(handler_call_details.method)


def _check_free(host: str, port: int) -> None:
    """ConfigError with the system's own reason, which gRPC would only write to its log."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        reason = "the port is taken" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise ConfigError(f"cannot listen at {host}:{port}: {reason}; {_CHOOSE}") from None


def _ends_at(remaining_s: float | None, default_s: float | None) -> float | None:
    """The caller's deadline or the method's own, whichever is sooner, on the monotonic clock."""
    limits = [limit for limit in (remaining_s, default_s) if limit is not None]
    return time.monotonic() + min(limits) if limits else None


async def _within(work: Awaitable[T], limit_s: float | None, method: Method) -> T:
    timeout = asyncio.timeout(limit_s)
    try:
        async with timeout:
            return await work
    except TimeoutError:
        if not timeout.expired():
            raise
        raise DeadlineError(f"{method.name} was not done within {limit_s:.1f} s") from None


@contextlib.asynccontextmanager
async def _errors_become_statuses(method: Method, context: _Context) -> AsyncIterator[None]:
    """Ours keep code and text; of anything else a stranger learns only a number that our log knows."""
    try:
        yield
        return
    except SwarmError as error:
        refusal = error
    except Exception:
        number = secrets.token_hex(4)
        log.exception("%s failed, number %s", method.name, number)
        refusal = InternalError(f"{method.name} failed here; the log of this peer says why, under number {number}")
    await status.refuse(context, refusal)
