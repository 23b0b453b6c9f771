"""The server of a peer.

Checks who calls, runs the handler within the deadline, and turns what it raises into a status.

Handlers know nothing of gRPC: they get bytes and a `Call`, and raise the errors of `protocols/errors.py`. Every call costs an
untrusted peer more than us: without a credential no handler runs and no byte of a request is read; beyond the limits of `admission.py` a
call is refused at once. To gRPC, every request is a stream: else it would read all of it before it asks us who calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, TypeAlias, TypeVar

import grpc
import grpc.aio

from protocols import services
from protocols.defaults import MAX_FRAME_BYTES
from protocols.errors import (
    BadRequestError,
    ConfigError,
    DeadlineError,
    FrameError,
    InternalError,
    SwarmError,
)
from protocols.identity import Identity
from protocols.ids import PeerId
from protocols.services import Method
from swarm.access import Gate
from swarm.rpc import options, status
from swarm.rpc.admission import MAX_CALLS, MAX_CALLS_PER_ADDRESS, MAX_CALLS_PER_PEER, Admission, Arrivals
from swarm.rpc.auth import METADATA_KEY, Authenticator
from swarm.rpc.call import Call, Handlers, StreamHandler, UnaryHandler
from swarm.rpc.caller import group_of, remote_of
from swarm.rpc.connections import Connections
from swarm.rpc.stream import ServerStream
from swarm.rpc.tls import TlsCertificate, fingerprint

log = logging.getLogger(__name__)

FIRST_MESSAGE_S = 10.0
"""How long the request of a unary call may take to arrive; a method's own deadline may end it sooner."""

_CHOOSE = "choose another with --listen HOST:PORT, or port 0 for a free one"
T = TypeVar("T")
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


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
        """gate: which peers may call; None = all, in a public swarm."""
        known = {method.name: method for method in methods}
        assert set(handlers) <= set(known), (
            f"handlers for calls that the service table does not know: {set(handlers) - set(known)}"
        )
        self.peer = identity.peer_id
        self._certificate, self._host, self._port = certificate, host, port
        self._gate = gate or Gate()
        self._authenticator = Authenticator(fingerprint(certificate.der), self._gate.key)
        self._admission = admission or Admission(MAX_CALLS, MAX_CALLS_PER_PEER, MAX_CALLS_PER_ADDRESS)
        self._arrivals, self._connections = Arrivals(), Connections()
        self._routes = {known[name].path: self._route(known[name], handler) for name, handler in handlers.items()}
        self._server: grpc.aio.Server | None = None

    async def start(self) -> int:
        """Listen; the port, which is a free one if 0 was asked for. ConfigError if the address cannot be had."""
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
        self._connections.start(port)
        return port

    async def stop(self, grace_s: float = 0.0) -> None:
        """Take no new calls, give running ones `grace_s` seconds, then cancel them."""
        server, self._server = self._server, None
        await self._connections.stop()
        if server:
            await server.stop(grace_s)

    def _route(self, method: Method, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        answer = self._streaming if method.streaming else self._unary

        async def serve(_requests: object, context: _Context) -> bytes | None:
            async with _errors_become_statuses(method, context):
                return await self._admit(method, context, lambda call: answer(method, handler, context, call))

        if method.streaming:
            return grpc.stream_stream_rpc_method_handler(serve)
        return grpc.stream_unary_rpc_method_handler(serve)

    async def _admit(self, method: Method, context: _Context, answer: Callable[[Call], Awaitable[T]]) -> T:
        """Let a caller in who proves who it is, within all limits; whatever it sends is read only then."""
        ends_at = _ends_at(context.time_remaining(), method.timeout_s)
        peer = self._caller(context)
        place = remote_of(context.peer())
        call = Call(peer, lambda: None if ends_at is None else ends_at - time.monotonic(), place[0])
        with self._connections.calling(place), self._admission.admitted(peer, group_of(place[0])):
            return await _within(answer(call), call.remaining_s(), method)

    def _caller(self, context: _Context) -> PeerId:
        metadata = dict(context.invocation_metadata() or ())
        try:
            peer = self._authenticator.caller(metadata.get(METADATA_KEY), time.time())
            self._gate.check_caller(peer)
        except SwarmError:
            self._connections.refused(remote_of(context.peer()))
            raise
        return peer

    async def _unary(self, method: Method, handler: UnaryHandler, context: _Context, call: Call) -> bytes:
        reply = await handler(await self._request(method, context, call), call)
        if len(reply) > MAX_FRAME_BYTES:
            raise InternalError(f"the answer to {method.name} would have {len(reply)} bytes, the limit is {MAX_FRAME_BYTES}")
        return reply

    async def _request(self, method: Method, context: _Context, call: Call) -> bytes:
        """The one message of a unary call."""
        timeout = asyncio.timeout(FIRST_MESSAGE_S)
        try:
            async with timeout, self._arrivals.turn(group_of(call.address)):
                request = await context.read()
        except TimeoutError:
            if not timeout.expired():
                raise
            raise DeadlineError(f"the request of {method.name} did not arrive within {FIRST_MESSAGE_S:.0f} s") from None
        if request is grpc.aio.EOF:
            raise BadRequestError(f"a call of {method.name} brings one request, got none")
        assert isinstance(request, bytes)
        if len(request) > method.max_request_bytes:
            raise FrameError(f"a request of {method.name} has at most {method.max_request_bytes} bytes, got {len(request)}")
        return request

    async def _streaming(self, method: Method, handler: StreamHandler, context: _Context, call: Call) -> None:
        await context.send_initial_metadata(((status.ADMITTED_KEY, "1"),))
        stream = ServerStream(call.peer, context, self._arrivals, group_of(call.address))
        try:
            with self._gate.running(call.peer, stream.cancel):
                await handler(stream, call)
        finally:
            await stream.close()


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
    """Our errors keep code and text; for any other error the caller gets only a number that our log has too."""
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
