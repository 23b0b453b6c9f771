"""`swarm up`: a node and a gateway in one process.

Both live on one event loop: the gateway's client has no DHT of its own (`swarm.peer.thin_peer`), the device computes in its own thread, and
tokenizers in processes of their own. The gateway is a peer like any other, with an identity of its own, and asks the node by its address.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NoReturn

from node import api_keys
from node.cli import gateway_keys, node
from node.cli.asking import check_range
from node.cli.command_options import UpOptions
from node.cli.console import remark
from node.cli.serve import reached, who_may_ask
from node.config import NodeConfig, Serve
from node.events import Event, OnEvent
from protocols.errors import ConfigError

if TYPE_CHECKING:
    import socket

    from node.gateway import GatewayConfig


def run(serve: Sequence[Serve], flags: UpOptions) -> NoReturn:
    """Host and serve until Ctrl-C, SIGTERM or SIGHUP, then end the process; raises whatever kept the node from serving."""
    num_keys = len(api_keys.read(gateway_keys.file_of(flags.data_dir)))
    is_loopback = reached(flags.host, num_keys)
    check_range("--port", flags.port, "from 0 (a free one) to 65535", 0 <= flags.port < 1 << 16)
    check_range("--max-requests", flags.max_requests, "1 or more", flags.max_requests >= 1)
    if flags.allow is not None:
        raise ConfigError(
            "--allow: the gateway of `swarm up` is a peer with a new identity, which no list names; "
            "start the two apart: swarm node --allow FILE, and swarm serve --identity FILE"
        )
    config = node.read(serve, flags.hosting())
    from node.gateway import server

    listening = server.bound(flags.host, flags.port)
    remark(who_may_ask(num_keys, is_loopback))

    async def work(hosted: node.Hosted, on_event: OnEvent) -> None:
        with contextlib.closing(listening):
            await host_and_serve(hosted, config, flags, listening, on_event)

    node.host(config, work, server.DRAIN_S + node.LAST_RESORT_S)


@dataclass(slots=True)
class Heard:
    """What the node has said of itself."""

    on_event: OnEvent
    """Gets everything but `ready`, which is for the gateway to say."""

    addresses: list[str] = field(default_factory=list)
    models: dict[str, str] = field(default_factory=dict)
    """NAME -> NAME@DIGEST."""

    is_ready: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, event: Event) -> None:
        if event.kind == "ready":
            self.is_ready.set()
            return
        if event.kind == "multiaddr":
            self.addresses.append(event.text)
        elif event.kind == "model":
            name, _, rest = event.text.rpartition("@")
            self.models[name] = f"{name}@{rest.partition(' ')[0]}"
        self.on_event(event)


async def host_and_serve(
    hosted: node.Hosted, config: NodeConfig, flags: UpOptions, listening: socket.socket, on_event: OnEvent
) -> None:
    """Until cancelled: then answers may end, and the node leaves after them. Raises what ends either of the two."""
    from node.gateway import create_app, server

    heard = Heard(on_event)
    hosting = asyncio.create_task(hosted(heard.hear), name="hosting")
    ready = asyncio.create_task(heard.is_ready.wait())
    try:
        await _either(hosting, ready)
        on_event(Event("address", server.address_of(listening)))
        app = create_app(gateway_config(heard, config, flags), is_loopback=reached(flags.host, 1))
        async with server.serving(app, listening, lambda names: on_event(Event("ready", ", ".join(names)))) as serving:
            await _either(hosting, serving)
    finally:
        for task in (ready, hosting):
            task.cancel()
        await asyncio.gather(ready, hosting, return_exceptions=True)


async def _either(hosting: asyncio.Task[None], other: asyncio.Task[object] | asyncio.Task[None]) -> None:
    """Wait until one of them ends; what it raises is raised."""
    await asyncio.wait((hosting, other), return_when=asyncio.FIRST_COMPLETED)
    for task in (hosting, other):
        if task.done():
            task.result()


def gateway_config(heard: Heard, config: NodeConfig, flags: UpOptions) -> GatewayConfig:
    """A gateway for exactly the weights that the node serves, by their names alone."""
    from node.gateway import GatewayConfig

    return GatewayConfig(
        models=tuple(heard.models), weights=heard.models, peers=tuple(heard.addresses), swarm=config.swarm,
        entry=replace(config.entry, identity=None), data_dir=config.data_dir, max_requests=flags.max_requests,
        keys=gateway_keys.file_of(flags.data_dir),
    )  # fmt: skip
