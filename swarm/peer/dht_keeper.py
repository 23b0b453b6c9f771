"""Keeps a peer's server and its part of the DHT running.

The server starts first: its port cannot be shared, so the peer that holds it owns the pair of ports. p2pd, the daemon of the DHT, may end
at any time, and is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from protocols.directory import belongs
from protocols.errors import ConfigError, PeerUnreachableError, SwarmError
from protocols.ids import PeerId
from swarm.access import Gate
from swarm.peer import ports
from swarm.peer.config import PeerConfig
from swarm.peer.keys import Keys
from swarm.rpc import Handlers, RpcServer

if TYPE_CHECKING:
    from swarm.dht.node import Dht

log = logging.getLogger(__name__)

REANNOUNCE_S = 5.0
"""At least so long between two announcements for that reason."""

_GRACE_S = 1.0
_RESTART_S = 2.0
_PORT_ATTEMPTS = 5


class DhtKeeper:
    """Server and DHT of one peer."""

    dht: Dht
    listen: tuple[str, int] | None = None
    """Host and port of p2pd, resolved, once they have started; None for a client."""

    def __init__(self, config: PeerConfig, keys: Keys, gate: Gate, has_met: Callable[[PeerId], bool], handlers: Handlers) -> None:
        """handlers: what the server offers."""
        self._config, self._keys, self._gate, self._has_met, self._handlers = config, keys, gate, has_met, handlers

    async def start(self, stack: contextlib.AsyncExitStack, host: str | None) -> None:
        """Start both; `stack` stops them. host: where we listen, as an IP address; None = nowhere. ConfigError if no port is free."""
        importlib.import_module("swarm.dht.node")  # seconds; in a thread it would race with another thread that imports torch
        if host is None or self._config.listen is None:
            return await self._start_daemon(stack, None)
        wanted = self._config.listen[1]
        for attempt in range(_PORT_ATTEMPTS):
            port = ports.pair(host, wanted)
            try:
                return await self._start_pair(stack, host, port)
            except ConfigError:  # another process took a port of the pair in the meantime
                if wanted or attempt + 1 == _PORT_ATTEMPTS:
                    raise

    async def _start_pair(self, stack: contextlib.AsyncExitStack, host: str, port: int) -> None:
        assert self._keys.certificate
        server = RpcServer(self._keys.identity, self._keys.certificate, self._handlers, host, port + 1, gate=self._gate)
        await server.start()
        try:
            await self._start_daemon(stack, (host, port))
        except BaseException:
            await server.stop()
            raise
        self.listen = host, port
        stack.push_async_callback(server.stop, _GRACE_S)

    async def _start_daemon(self, stack: contextlib.AsyncExitStack, listen: tuple[str, int] | None) -> None:
        from swarm.dht.node import Dht
        from swarm.dht.protocol import Rules

        config = self._config
        self.dht = Dht(
            self._keys.identity,
            self._keys.file,
            listen,
            config.announce,
            client_mode=config.client_mode,
            gate=self._gate,
            rules=Rules(belongs=functools.partial(belongs, config.swarm), has_met=self._has_met),
        )
        await self.dht.start()
        stack.push_async_callback(self.dht.stop)

    async def keep_alive(self, come_back: Callable[[], Awaitable[None]]) -> None:
        """Start p2pd again whenever it has ended, and then call `come_back`; until cancelled."""
        while True:
            is_wanted = False
            with contextlib.suppress(PeerUnreachableError):  # it does not run, since this was ended by a fault of ours
                is_wanted = await self.dht.died()
            if is_wanted:
                log.info("we have ended the daemon of the DHT (p2pd), and start it again")
            else:
                log.error("the daemon of the DHT (p2pd) has ended; we start it again")
            await self.dht.stop()
            await self._restart()
            try:
                await come_back()
            finally:
                self.dht.go_on_alone()

    async def _restart(self) -> None:
        while True:
            try:
                return await self.dht.start()
            except ConfigError as error:
                log.error("%s; we try again", error)
            await asyncio.sleep(_RESTART_S)

    async def announce_after_changes(self, announce: Callable[[], Awaitable[bool]]) -> None:
        """Our record is with the few peers nearest its key; if they die, it is gone until the next renewal. So renew it then.

        Also if this machine had no network at first: the record then told of addresses that no other machine reaches.

        announce: False if there is nothing to announce. Runs until cancelled.
        """
        before: frozenset[str] = frozenset()
        while True:
            await asyncio.sleep(self._config.watch_s)
            with contextlib.suppress(SwarmError):  # the DHT is being started again
                now = await self.dht.connected()
                is_other = await self.dht.has_come_online()
                if (is_other or before - now) and await announce():
                    await asyncio.sleep(REANNOUNCE_S)
                before = now
