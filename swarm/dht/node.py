"""This peer in the DHT: store what I say, ask who says what, and meet the others. Bytes in and out, every wait bounded.

hivemind's `DHTNode` runs in our own loop (no forked process); its daemon, p2pd, is our child and dies with us. It starts alone and
meets peers afterwards, since p2pd refuses to start where every bootstrap address is dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager

from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.p2p import P2PDaemonError, PeerID
from hivemind.p2p.p2p_daemon_bindings.utils import ControlFailure
from hivemind.utils.multiaddr import Multiaddr

from protocols.entries import SignedEntry
from protocols.errors import BadRequestError, ConfigError, PeerUnreachableError
from protocols.identity import Identity
from protocols.ids import PeerId, parse_peer_id, short_peer
from swarm.access import Gate
from swarm.dht import daemon, guard, sockets, storage
from swarm.dht.address import PeerAddress, transport
from swarm.dht.validator import SignedRecords, keep_valid

log = logging.getLogger(__name__)

CONNECT_S = 5.0
ASK_S = 3.0
"""Wait for one peer's answer to one question."""

GET_S = 6.0
"""Wait for all that peers know under some keys; whoever has not answered by then is left out."""

STOP_S = 1.0
NUM_REPLICAS = 5


class Dht:
    """A running member of the DHT. Use: `await start()` … `await stop()`."""

    def __init__(
        self,
        identity: Identity,
        identity_file: Callable[[], AbstractContextManager[str]],
        listen: tuple[str, int] | None,
        announce: tuple[str, int] | None = None,
        *,
        client_mode: bool = False,
        gate: Gate | None = None,
    ) -> None:
        """identity_file: a path for p2pd to read while it starts. listen: host and port of p2pd; None = listen nowhere.
        gate: who takes part with us; None = everybody, in a public swarm."""
        self._gate = gate or Gate()
        self._guard = guard.Guard(identity.peer_id, self._gate)
        self._identity, self._identity_file = identity, identity_file
        self._listen, self._announce, self._client_mode = listen, announce, client_mode
        self._node: DHTNode | None = None
        self.addresses: tuple[str, ...] = ()
        """Multiaddrs under which others reach us, without `/p2p/…`."""

    async def start(self) -> None:
        """Start p2pd, alone. ConfigError where its port cannot be had."""
        _quiet()
        storage.install()
        daemon.install()
        guard.install()
        await asyncio.to_thread(sockets.sweep)
        validator = SignedRecords(self._identity)
        creating = asyncio.create_task(self._create(validator))
        try:
            node = await asyncio.shield(creating)
        except asyncio.CancelledError:  # half a second more, or p2pd would outlive us
            with contextlib.suppress(ConfigError):
                await _end(await creating)
            raise
        node.protocol._validate_dictionary = functools.partial(keep_valid, validator)
        self._node = node
        with contextlib.suppress(ValueError):  # nowhere, if we do not listen
            found = [str(address).split("/p2p/")[0] for address in await node.get_visible_maddrs(latest=True)]
            self.addresses = tuple(address for address in found if "/tcp/" in address)

    async def _create(self, validator: SignedRecords) -> DHTNode:
        try:
            with self._identity_file() as path:
                return await DHTNode.create(
                    identity_path=path,
                    check_if_identity_free=False,  # it cannot read Ed25519 keys
                    strict=False,  # or a clock 3 s off keeps a laptop out
                    record_validator=validator,
                    authorizer=self._guard,
                    client_mode=self._client_mode,
                    num_replicas=NUM_REPLICAS,
                    wait_timeout=ASK_S,
                    cache_locally=False,  # we always ask for the latest, so copies would only be stale or forged
                    cache_nearest=0,
                    cache_on_store=False,
                    reuse_get_requests=False,  # or a question that hangs would take others along
                    nat_port_map=False,
                    no_listen=self._listen is None,
                    host_maddrs=[transport(*self._listen)] if self._listen else [],
                    announce_maddrs=[transport(*self._announce)] if self._announce else None,
                )
        except P2PDaemonError as error:
            raise ConfigError(f"the daemon of the DHT (p2pd) does not start at {self._listen}: {error}") from None

    @property
    def num_neighbours(self) -> int:
        """Peers in our routing table; 0 = alone."""
        return len(self._node.protocol.routing_table.uid_to_peer_id) if self._node else 0

    async def connected(self) -> frozenset[str]:
        """PeerIDs of those in our routing table to whom p2pd holds a connection: whoever dies is missing at once."""
        node = self._running
        try:
            async with asyncio.timeout(ASK_S):
                found = await node.p2p.list_peers()
        except (ControlFailure, P2PDaemonError, TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            raise PeerUnreachableError(f"the daemon of the DHT (p2pd) does not say whom it is connected to: {error}") from None
        return frozenset(str(one.peer_id) for one in found if one.peer_id in node.protocol.routing_table)

    @property
    def _running(self) -> DHTNode:
        if self._node is None:
            raise PeerUnreachableError("the DHT is not running here: it is being started again, or has been stopped")
        return self._node

    async def died(self) -> None:
        """Returns when p2pd has ended."""
        await self._running.p2p._child.wait()

    async def stop(self) -> None:
        """End p2pd and remove its sockets, within 2 × STOP_S."""
        node, self._node = self._node, None
        if node:
            await _end(node)

    async def join(self, address: PeerAddress) -> None:
        """Meet the peer at `address` and, through it, others. PeerUnreachableError where it does not answer."""
        node = self._running
        protocol, peer = node.protocol, PeerID.from_base58(address.peer)
        try:
            async with asyncio.timeout(CONNECT_S):
                await node.p2p._client.connect(peer, [Multiaddr(address.transport)])
        except (ControlFailure, TimeoutError, ValueError, OSError, asyncio.IncompleteReadError) as error:
            raise PeerUnreachableError(f"no peer answers at {address}: {_reason(error) or 'no answer in time'}") from None
        found = await protocol.call_ping(peer, validate=not self._client_mode, strict=False)
        if found is None:
            if refusal := self._guard.refusal(address.peer):
                raise refusal
            raise PeerUnreachableError(
                f"peer {short_peer(address.peer)} at {address.transport} takes no part in the DHT: it may be a client"
            )
        await protocol.update_routing_table(found, peer)
        await self.look_around()

    async def look_around(self) -> None:
        """Ask neighbours for peers near us, and near somewhere else: the routing table fills and heals."""
        node = self._running
        for near in (node.node_id, DHTID.generate(os.urandom(16))):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ASK_S):
                    await node.find_nearest_nodes([near])

    async def store(self, key: str, payload: bytes, expires_s: float, timeout_s: float = GET_S) -> bool:
        """Say `payload` under `key` in our name until `expires_s`. False where nobody took it, or not in time."""
        node = self._running
        try:
            async with asyncio.timeout(timeout_s):
                return bool(await node.store(key, payload, expires_s, subkey=str(self._identity.peer_id)))
        except TimeoutError:
            return False

    async def get(self, keys: Collection[str], timeout_s: float = GET_S) -> dict[str, dict[PeerId, SignedEntry]]:
        """What peers say under each key: newest, unexpired, by the peer who signed it, signature checked. A key without answer in
        time is empty."""
        futures = await self._running.get_many(tuple(keys), sufficient_expiration_time=float("inf"), return_futures=True)
        _done, late = await asyncio.wait(set(futures.values()), timeout=timeout_s)
        for future in late:
            future.cancel()
        now_s = time.time()
        may_be_seen = self._gate.access.may_be_seen
        found = {key: _entries(future, now_s) for key, future in futures.items()}
        return {key: {peer: entry for peer, entry in said.items() if may_be_seen(peer)} for key, said in found.items()}


async def _end(node: DHTNode) -> None:
    node.is_alive = False
    with contextlib.suppress(Exception):  # whatever it says, the daemon ends next
        async with asyncio.timeout(STOP_S):
            await node.protocol.shutdown()
    child = node.p2p._child
    try:
        async with asyncio.timeout(STOP_S):
            await node.p2p.shutdown()
    except TimeoutError:
        child.kill()
        await child.wait()
    control = node.p2p._client.control  # its tasks may have failed, since the daemon is gone: else asyncio would log that
    await asyncio.gather(control._read_task, control._write_task, return_exceptions=True)


def _entries(future: asyncio.Future[object], now_s: float) -> dict[PeerId, SignedEntry]:
    result = None if future.cancelled() or not future.done() or future.exception() else future.result()
    values = getattr(result, "value", None)
    found: dict[PeerId, SignedEntry] = {}
    for subkey, (value, expires_s) in values.items() if isinstance(values, dict) else ():
        with contextlib.suppress(BadRequestError):
            if isinstance(value, bytes) and expires_s > now_s:
                found[parse_peer_id(subkey)] = SignedEntry(value, expires_s)
    return found


def _reason(error: BaseException) -> str:
    """What p2pd says after the address it dialled last; before that it repeats the peer and its addresses."""
    return " ".join(str(error).split()).rpartition("] ")[2].removeprefix("dial ")[:200]


def _quiet() -> None:
    """hivemind logs to stderr by a handler of its own; HIVEMIND_LOGLEVEL brings it back."""
    if "HIVEMIND_LOGLEVEL" not in os.environ:
        logging.getLogger("hivemind").setLevel(logging.CRITICAL)
