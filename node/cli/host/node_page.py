"""`swarm node --dashboard`: a node that shows its swarm in a browser.

The page asks the node by its address, as a peer of its own without a DHT; both live on one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from node import api_keys
from node.cli.host import gateway_keys
from node.cli.host.serve import reached
from node.config import NodeConfig, parse_port
from node.events import Event, OnEvent

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine

    from node.telemetry import Telemetry

FLAG = "--dashboard"


class NodePage:
    """The page of one node; it listens from the beginning, and is served as soon as the node is."""

    def __init__(self, config: NodeConfig, at: str) -> None:
        """at: [HOST:]PORT. ConfigError if it is not free, or others reach it and there is no key."""
        from node.gateway import server

        host, port = parse_port(at, FLAG)
        self._config, self._keys = config, gateway_keys.file_of(config.data_dir)
        self._is_loopback = reached(host, len(api_keys.read(self._keys)), FLAG)
        self._listening: socket.socket = server.bound(host, port)
        self._addresses: list[str] = []

    async def run(
        self, hosted: Callable[[OnEvent], Coroutine[object, object, None]], on_event: OnEvent, traces: Telemetry | None
    ) -> None:
        """The node with its page, until cancelled."""
        is_ready = asyncio.Event()

        def hear(event: Event) -> None:
            if event.kind == "multiaddr":
                self._addresses.append(event.text)
            on_event(event)
            if event.kind == "ready":
                is_ready.set()

        page = asyncio.create_task(self._serve(is_ready, on_event), name="the page")
        try:
            await hosted(hear)
        finally:
            page.cancel()
            await asyncio.gather(page, return_exceptions=True)
            self._listening.close()

    async def _serve(self, is_ready: asyncio.Event, on_event: OnEvent) -> None:
        await is_ready.wait()
        from node.gateway import GatewayConfig, server
        from node.gateway.page_app import create_page_app

        config = self._config
        app = create_page_app(
            GatewayConfig(
                peers=tuple(self._addresses), swarm=config.swarm, entry=replace(config.entry, identity=None), data_dir=config.data_dir,
                keys=self._keys,
            ),
            is_loopback=self._is_loopback,
        )  # fmt: skip
        async with contextlib.AsyncExitStack() as held:
            serving = await held.enter_async_context(server.serving(app, self._listening))
            on_event(Event("page", server.page_of(self._listening)))
            await serving
