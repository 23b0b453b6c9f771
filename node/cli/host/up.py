"""`swarm up`: a node and a gateway in one process.

Both live on one event loop: the gateway's client has no DHT of its own (`swarm.peer.thin_peer`), the device computes in its own thread, and
tokenizers in processes of their own. The gateway is a peer like any other, with an identity of its own, and asks the node by its address.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from node import api_keys
from node.cli.flags.asking import check_range
from node.cli.flags.command_options import UpOptions
from node.cli.host import gateway_keys, node, operators
from node.cli.host.serve import reached, who_may_ask
from node.cli.terminal.console import remark
from node.config import NodeConfig, Serve
from node.events import Event, OnEvent
from protocols.errors import ConfigError
from swarm import garbage

if TYPE_CHECKING:
    import socket

    from node.gateway import GatewayConfig
    from node.telemetry import Telemetry
    from protocols.identity import Identity
    from swarm.bans import Bans


def run(serve: Sequence[Serve], flags: UpOptions) -> NoReturn:
    """Host and serve until Ctrl-C, SIGTERM or SIGHUP, then end the process; raises what kept the node from serving."""
    num_keys = len(api_keys.read(gateway_keys.file_of(flags.data_dir)))
    is_loopback = reached(flags.host, num_keys)
    check_range("--port", flags.port, "from 0 (a free one) to 65535", 0 <= flags.port < 1 << 16)
    check_range("--max-requests", flags.max_requests, "1 or more", flags.max_requests >= 1)
    check_range("--max-seconds", flags.max_seconds, "more than 0", flags.max_seconds > 0)
    if flags.allow is not None:
        raise ConfigError(
            "--allow: the gateway of `swarm up` is a peer with a new identity, which no list names; "
            "start the two apart: swarm node --allow FILE, and swarm serve --identity FILE"
        )
    identity, bans = operators.of_gateway(flags.operator_key, flags.data_dir)
    config = node.read(serve, flags.hosting())
    from node.gateway import server
    from node.gateway.http.origins import checked_origins

    flags = replace(flags, allow_origin=[*checked_origins(flags.allow_origin, bool(num_keys))])
    listening = server.bound(flags.host, flags.port)
    remark(who_may_ask(num_keys, is_loopback))
    operators.remark_who_orders(identity, num_keys)
    with contextlib.closing(listening):
        up = Up(config, flags, listening, is_loopback, identity, bans)
        node.host(config, up.run, flags.otlp, up.last_resort_s)


class Up:
    """The node and its gateway, once."""

    def __init__(
        self, config: NodeConfig, flags: UpOptions, listening: socket.socket, is_loopback: bool, operator: Identity | None = None,
        bans: Bans | None = None,
    ) -> None:  # fmt: skip
        """operator: who gives the orders of the page's visitors. bans: of the gateway."""
        self._operator, self._bans = operator, bans
        self._config, self._flags, self._listening, self._is_loopback = config, flags, listening, is_loopback
        self._addresses: list[str] = []
        self._models: dict[str, str] = {}
        """What the node serves: NAME -> NAME@DIGEST."""
        self._is_hosting = asyncio.Event()

    async def run(self, hosted: node.Hosted, on_event: OnEvent, traces: Telemetry | None) -> None:
        """Until cancelled: then answers may end, and the node leaves after them. Raises what ends either of the two."""
        with garbage.importing():  # before the node has weights, which it may give up
            from node.gateway import create_app, server

        hosting = asyncio.create_task(hosted(lambda event: self._hear(event, on_event)), name="hosting")
        ready = asyncio.create_task(self._is_hosting.wait())
        try:
            await _either(hosting, ready)
            on_event(Event("address", server.address_of(self._listening)))
            on_event(Event("page", server.page_of(self._listening)))
            app = create_app(self._gateway(traces), is_loopback=self._is_loopback)
            async with server.serving(app, self._listening, lambda names: on_event(Event("ready", ", ".join(names)))) as it:
                await _either(hosting, it)
        finally:
            for task in (ready, hosting):
                task.cancel()
            await asyncio.gather(ready, hosting, return_exceptions=True)

    def last_resort_s(self) -> float:
        """How long the end may take that begins now: answers have their time, a node that still loads has none."""
        from node.gateway import server

        return node.LAST_RESORT_S + (server.DRAIN_S if self._is_hosting.is_set() else 0.0)

    def _hear(self, event: Event, on_event: OnEvent) -> None:
        """`ready` is for the gateway to say."""
        if event.kind == "ready":
            self._is_hosting.set()
            return
        if event.kind == "multiaddr":
            self._addresses.append(event.text)
        elif event.kind == "model":
            name, _, rest = event.text.rpartition("@")
            self._models[name] = f"{name}@{rest.partition(' ')[0]}"
        on_event(event)

    def _gateway(self, traces: Telemetry | None) -> GatewayConfig:
        """Of exactly the weights that the node serves, by their names alone."""
        from node.gateway import GatewayConfig
        from node.gateway.answers.traces import OFF

        return GatewayConfig(
            models=tuple(self._models), weights=self._models, peers=tuple(self._addresses), swarm=self._config.swarm,
            entry=replace(self._config.entry, identity=None, bans=self._bans), operator=self._operator,
            data_dir=self._config.data_dir,
            max_requests=self._flags.max_requests, max_seconds=self._flags.max_seconds, origins=tuple(self._flags.allow_origin),
            runs=self._flags.runs_dir,
            keys=gateway_keys.file_of(self._flags.data_dir), traces=traces or OFF,
        )  # fmt: skip


async def _either(hosting: asyncio.Task[None], other: asyncio.Task[object] | asyncio.Task[None]) -> None:
    """Wait until one of them ends; what it raises is raised."""
    await asyncio.wait((hosting, other), return_when=asyncio.FIRST_COMPLETED)
    for task in (hosting, other):
        if task.done():
            task.result()
