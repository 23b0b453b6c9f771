"""`swarm serve`: the models of a swarm behind OpenAI's API."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import Sequence

from node.cli.asking import check_range, find_config
from node.cli.command_options import Serving
from node.cli.console import Lines, remark
from protocols.errors import ConfigError
from swarm import descriptors


def run(models: Sequence[str], flags: Serving) -> None:
    """Serve until Ctrl-C; running answers may end first."""
    check_loopback(flags.host)
    check_range("--port", flags.port, "from 0 (a free one) to 65535", 0 <= flags.port < 1 << 16)
    check_range("--patience", flags.patience, "0 seconds or more", flags.patience >= 0)
    check_range("--priority", flags.priority, "from -100 to 0", -100 <= flags.priority <= 0)
    check_range("--max-requests", flags.max_requests, "1 or more", flags.max_requests >= 1)
    from node.gateway import GatewayConfig, create_app, server  # 0.7 s of imports: only after the flags have proved right

    into, lines = flags.enter(), Lines()
    find = find_config(into.swarm, flags.lan, flags.data_dir, into.entry.key)
    find.check(into.peers)
    config = GatewayConfig(
        models=tuple(models), peers=into.peers, swarm=into.swarm, find=find, entry=into.entry, data_dir=flags.data_dir,
        dtype=flags.dtype, priority=flags.priority, route_timeout_s=flags.patience,
        accept_new_weights=flags.accept_new_weights, follow=flags.follow, max_requests=flags.max_requests,
    )  # fmt: skip
    descriptors.raise_limit()
    listening = server.bound(flags.host, flags.port)
    with contextlib.closing(listening):
        lines.say("address", server.address_of(listening))
        remark("there are no keys: only programs on this machine can ask")
        asyncio.run(server.serve(create_app(config), listening, lambda names: lines.say("ready", ", ".join(names))))


def check_loopback(host: str) -> None:
    """ConfigError for an address that other machines reach: there are no keys, so all of them could ask in our name."""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    if host != "localhost":
        raise ConfigError(
            f"--host {host[:60]}: a gateway without keys listens on loopback only (127.0.0.1, ::1); "
            "put a proxy that checks its callers in front of it"
        )
