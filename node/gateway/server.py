"""Serves the gateway by HTTP until it is stopped.

The first SIGINT or SIGTERM lets running answers end, for `DRAIN_S` at most; a second one ends at once.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext

import uvicorn
from fastapi import FastAPI

from node.gateway.answers.gateway import Gateway
from protocols.errors import ConfigError

DRAIN_S = 20
"""How long running answers may go on after the first signal."""

KEEP_ALIVE_S = 75
"""How long a connection without a request stays open."""

BACKLOG = 1024
"""Connections that wait to be accepted."""

MAX_SOCKET_BYTES = 256 << 10
"""Largest message from an open page."""

log = logging.getLogger(__name__)


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens: who connects before the server runs waits for it. ConfigError if it cannot. port 0 = a free one."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        made = socket.socket(family, kind, number)
    except OSError as error:
        raise ConfigError(f"--host {host}: {error.strerror}; give an address of this machine") from None
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another --port (0 = a free one)"
        ) from None
    return made


def address_of(listening: socket.socket) -> str:
    """The base URL of the API, for a client on this machine."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def page_of(listening: socket.socket) -> str:
    """The address to open in a browser on this machine."""
    return address_of(listening).removesuffix("v1")


def _config(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="on", server_header=False, ws="websockets-sansio", http="h11",
        ws_max_size=MAX_SOCKET_BYTES,
        backlog=BACKLOG, timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=DRAIN_S,
    )  # fmt: skip


async def serve(app: FastAPI, listening: socket.socket, on_open: Callable[[Sequence[str]], None]) -> None:
    """Serve until a signal. uvicorn raises that signal once more at its end. on_open: called with the models' names when all are open."""
    with _telling(app, on_open):
        await uvicorn.Server(_config(app)).serve([listening])


@asynccontextmanager
async def serving(
    app: FastAPI, listening: socket.socket, on_open: Callable[[Sequence[str]], None] | None = None
) -> AsyncIterator[asyncio.Task[None]]:
    """Serve in a task while the block runs; at its end, running answers may end first. For a process that handles signals itself.

    on_open: as of `serve`; None for an application without models.
    Yields that task: it ends before the block only if it fails.
    """
    server = _Unsignalled(_config(app))
    with nullcontext() if on_open is None else _telling(app, on_open):
        task = asyncio.create_task(server.serve([listening]), name="serving HTTP")
        try:
            yield task
        finally:
            server.should_exit = True
            await task


class _Unsignalled(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Does nothing: the process that it is part of handles its own signals."""
        yield


@contextmanager
def _telling(app: FastAPI, on_open: Callable[[Sequence[str]], None]) -> Iterator[None]:
    gateway: Gateway = app.state.gateway

    async def tell() -> None:
        await gateway.all_open.wait()
        on_open(gateway.models.names)

    telling = asyncio.create_task(tell())
    try:
        yield
    finally:
        telling.cancel()
