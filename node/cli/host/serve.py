"""`swarm serve`: the models of a swarm behind OpenAI's API."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from node import api_keys
from node.cli.flags.asking import check_range, find_config
from node.cli.flags.command_options import Serving
from node.cli.host import gateway_keys, operators
from node.cli.host.following import following
from node.cli.terminal.console import Lines, remark
from node.logs import Repetitions
from protocols.errors import ConfigError
from swarm import descriptors, garbage

if TYPE_CHECKING:
    from node.gateway.answers.gateway import Gateway


def run(models: Sequence[str], flags: Serving) -> None:
    """Serve until Ctrl-C; running answers may end first."""
    keys = gateway_keys.file_of(flags.data_dir)
    num_keys = len(api_keys.read(keys))
    is_loopback = reached(flags.host, num_keys)
    check_range("--port", flags.port, "from 0 (a free one) to 65535", 0 <= flags.port < 1 << 16)
    check_range("--patience", flags.patience, "0 seconds or more", flags.patience >= 0)
    check_range("--priority", flags.priority, "from -100 to 0", -100 <= flags.priority <= 0)
    check_range("--max-requests", flags.max_requests, "1 or more", flags.max_requests >= 1)
    check_range("--max-seconds", flags.max_seconds, "more than 0", flags.max_seconds > 0)
    identity, bans = operators.of_gateway(flags.operator_key, flags.data_dir)
    with garbage.importing():
        from node.gateway import GatewayConfig, create_app, server
        from node.gateway.answers.traces import OFF
        from node.gateway.http.origins import checked_origins

    origins = checked_origins(flags.allow_origin, bool(num_keys))
    into, lines = flags.enter(), Lines()
    find, told = find_config(into.swarm, flags.lan, flags.data_dir, into.entry.key), Repetitions()
    find = replace(find, on_unnamed=lambda text: remark(text) if told.is_new(text) else None)  # it is tried again and again
    find.check(into.peers)
    config = GatewayConfig(
        models=tuple(models), peers=into.peers, swarm=into.swarm, find=find, entry=replace(into.entry, bans=bans),
        data_dir=flags.data_dir, operator=identity, dtype=flags.dtype, priority=flags.priority, route_timeout_s=flags.patience,
        accept_new_weights=flags.accept_new_weights, follow=flags.follow, max_requests=flags.max_requests,
        max_seconds=flags.max_seconds, origins=origins, runs=flags.runs_dir, keys=keys,
    )  # fmt: skip
    descriptors.raise_limit()
    with following(flags.otlp, "gateway") as telemetry, contextlib.closing(server.bound(flags.host, flags.port)) as listening:
        app = create_app(replace(config, traces=telemetry or OFF), is_loopback=is_loopback)
        lines.say("address", server.address_of(listening))
        lines.say("page", server.page_of(listening))
        remark(who_may_ask(num_keys, is_loopback))
        operators.remark_who_orders(identity, num_keys)
        asyncio.run(_serve(app.state.gateway, server.serve(app, listening, lambda names: lines.say("ready", ", ".join(names)))))


async def _serve(gateway: Gateway, serving: Coroutine[Any, Any, None]) -> None:
    settling = asyncio.create_task(_settle(gateway))
    try:
        await serving
    finally:
        settling.cancel()


async def _settle(gateway: Gateway) -> None:
    """The page is imported beside requests; from then on, no collection looks at it either."""
    await gateway.is_warm.wait()
    gc.freeze()


def reached(host: str, num_keys: int, flag: str = "--host") -> bool:
    """Whether only this machine reaches the address. ConfigError if others do and there is no key: they could all ask in our name."""
    is_loopback = host == "localhost"
    with contextlib.suppress(ValueError):
        is_loopback = is_loopback or ipaddress.ip_address(host).is_loopback
    if not is_loopback and not num_keys:
        raise ConfigError(
            f"{flag} {host[:60]}: a gateway without keys listens on loopback only (127.0.0.1, ::1); "
            "make a key for each of its users first: swarm keys add NAME"
        )
    return is_loopback


def who_may_ask(num_keys: int, is_loopback: bool) -> str:
    """For a person who starts a gateway."""
    if not num_keys:
        return "there are no keys: only programs on this machine can ask; swarm keys add NAME makes one"
    said = f"every request needs one of {num_keys} keys" if num_keys > 1 else "every request needs the key"
    return said if is_loopback else f"{said}; HTTP is not encrypted, so outside a private network put a proxy with TLS in front"
