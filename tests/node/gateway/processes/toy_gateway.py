"""A gateway over nodes, all in this process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from openai import OpenAI

from node.gateway import GatewayConfig, create_app
from node.gateway.answers.gateway import Gateway
from swarm.clock import SYSTEM
from swarm.tasks import Tasks
from swarm.thin.defaults import read_defaults
from swarm.thin.generation import TokenSequence
from swarm.thin.model import ThinModel
from swarm.thin.prefixes import Prefixes
from swarm.thin.tokenizing.sandbox import Sandbox
from swarm.thin.tokenizing.sandboxed_tokenizer import SandboxedTokenizer
from tests.end_to_end.wire import WireSwarm
from tests.node.gateway.processes.conftest import LIMIT_S


class ToyThinModel(ThinModel):
    """A thin model whose sessions are those of a `WireSwarm`'s client, which needs no directory."""

    def __init__(self, swarm: WireSwarm, sandbox: Sandbox, has_cache: bool) -> None:
        self.model = swarm.toys.model
        self.defaults, self.tokenizer = read_defaults(swarm.path), SandboxedTokenizer(sandbox, swarm.path)
        self._swarm, self._sessions, self._prefixes = swarm, [], Prefixes(SYSTEM.now_s) if has_cache else None
        self._ending, self._router = Tasks(), swarm.toys.router

    def start(self) -> TokenSequence:
        session = self._swarm.toys.session(**self._swarm.sizes)
        self._sessions.append(session)
        return TokenSequence(session)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyConfig(GatewayConfig):
    toys: WireSwarm
    has_cache: bool = False
    """Ended sessions are kept; False: a test counts what is left of them."""

    @contextlib.asynccontextmanager
    async def open(self, name: str) -> AsyncIterator[ThinModel]:  # type: ignore[override]
        sandbox = Sandbox(name)
        try:
            model = ToyThinModel(self.toys, sandbox, self.has_cache)
            yield model
            await model.close()
        finally:
            sandbox.close()


@contextlib.asynccontextmanager
async def toy_gateway(swarm: WireSwarm, **settings: Any) -> AsyncIterator[tuple[Gateway, int]]:
    """The gateway, all models open, and its port. On the swarm's loop."""
    app = create_app(ToyConfig(models=("tiny",), toys=swarm, **settings))
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # a reader that pauses is felt soon
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on", timeout_graceful_shutdown=1))
    serving = asyncio.create_task(server.serve([listening]))
    gateway: Gateway = app.state.gateway
    try:
        async with asyncio.timeout(30):
            await gateway.all_open.wait()
        yield gateway, listening.getsockname()[1]
    finally:
        server.should_exit = True
        await serving
        listening.close()


def checkpoint_with_long_context(folder: Path) -> Path:
    """A llama whose context is long enough for answers that no test waits for."""
    from tests.end_to_end.local_swarm import make_llama
    from tests.families import add_byte_tokenizer

    path = make_llama(folder)
    add_byte_tokenizer(path)
    return path


def with_client(swarm: WireSwarm, work: Callable[[OpenAI], None]) -> None:
    """Do what a program with OpenAI's client does, in a thread, at a gateway over these nodes."""

    async def run() -> None:
        async with toy_gateway(swarm) as (_, port):
            with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=LIMIT_S) as client:
                await asyncio.to_thread(work, client)

    swarm.run(run())
