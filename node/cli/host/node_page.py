"""`swarm node --dashboard`: a node that shows its swarm in a browser.

The page asks the node by its address, as a peer of its own without a DHT; both live on one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from node import api_keys
from node.cli.host import gateway_keys, operators
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

    def __init__(self, config: NodeConfig, at: str, operator_key: Path | None) -> None:
        """at: [HOST:]PORT. operator_key: whose orders the page gives; None = none. ConfigError if the port is not free, the key cannot be
        used, or others reach the page and there is no key for them."""
        from node.gateway import server

        host, port = parse_port(at, FLAG)
        self._config, self._keys = config, gateway_keys.file_of(config.data_dir)
        num_keys = len(api_keys.read(self._keys))
        self._is_loopback = reached(host, num_keys, FLAG)
        self._operator, _ = operators.of_gateway(operator_key, config.data_dir)
        operators.remark_who_orders(self._operator, num_keys)
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
                keys=self._keys, operator=self._operator,
            ),
            is_loopback=self._is_loopback,
        )  # fmt: skip
        async with contextlib.AsyncExitStack() as held:
            serving = await held.enter_async_context(server.serving(app, self._listening))
            on_event(Event("page", server.page_of(self._listening)))
            await serving
