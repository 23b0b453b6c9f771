"""This peer in the DHT: stores, looks up, meets members.

Bytes in and out, every wait bounded.

Of hivemind we use the daemon (p2pd, our child, which dies with us) and the messages, in our own loop; what is kept, asked and answered is
bounded by `shelf.py`, `lookup.py` and `protocol.py`. It starts alone and meets peers afterwards, since p2pd refuses to start where every
bootstrap address is dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager

from hivemind.dht.routing import DHTID
from hivemind.p2p import P2P, P2PDaemonError, PeerID
from hivemind.p2p.p2p_daemon_bindings.utils import ControlFailure
from hivemind.utils.multiaddr import Multiaddr

from protocols.dictionary import Told
from protocols.entries import SignedEntry, key_id
from protocols.errors import ConfigError, PeerUnreachableError
from protocols.identity import Identity
from protocols.ids import PeerId, short_peer
from swarm.access import Gate
from swarm.clock import SYSTEM, Clock
from swarm.dht import checking, daemon, guard, sockets
from swarm.dht.address import PeerAddress, is_loopback, transport
from swarm.dht.dial_failures import failure
from swarm.dht.lookup import BEAM, Lookup
from swarm.dht.protocol import ASK_S, NUM_REPLICAS, Protocol, Rules
from swarm.dht.shelf import Shelf
from swarm.dht.signatures import Signatures

log = logging.getLogger(__name__)

CONNECT_S = 5.0

GET_S = 6.0
"""Seconds that a lookup of some keys waits for members; one that has not answered by then is left out."""

FIND_SHARE = 0.6
"""Part of a store's time that may go into finding the nearest members."""

MAX_ANCHORS = 3
"""Members that we joined by, the last ones, which keep our entries and are asked, however far from a key they are. Node ids are chosen
freely, so all that are nearest may be an attacker's; who joins by the same peers as we do still meets us there."""

ANCHOR_REST_S = 60.0
"""Seconds for which one of them that did not answer is left alone."""

STOP_S = 1.0
"""Time that our part in the DHT has to end, before p2pd does."""


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
        rules: Rules | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        """identity_file: a path for p2pd to read while it starts. listen: host and port of p2pd; None = listen nowhere.
        gate: which peers take part; None = all, in a public swarm.
        rules: what to keep for others; by default anything that its author has signed."""
        self._gate = gate or Gate()
        self._guard = guard.Guard(identity.peer_id, self._gate, lambda: self.addresses)
        self._identity, self._identity_file = identity, identity_file
        self._listen, self._announce, self._client_mode = listen, announce, client_mode
        self._rules, self._clock = rules or Rules(), clock
        self._signatures = Signatures(identity, clock.unix_s)
        self._node: Protocol | None = None
        self._ended_by_us: Protocol | None = None
        """The last one whose p2pd was ended by `end_daemon`."""
        self._anchors: dict[PeerID, tuple[int, float]] = {}
        """Members that we joined by: their node ids, and until when they are left alone."""
        self._is_lost = False
        """It was started again, and has not joined again those that it had joined."""
        self.addresses: tuple[str, ...] = ()
        """Multiaddrs under which others reach us, without `/p2p/…`."""

    async def start(self) -> None:
        """Start p2pd, alone. ConfigError if its port cannot be had."""
        _quiet()
        daemon.install()
        await asyncio.to_thread(sockets.sweep)
        creating = asyncio.create_task(self._create())
        try:
            node = await asyncio.shield(creating)
        except asyncio.CancelledError:  # half a second more, or p2pd would outlive us
            with contextlib.suppress(Exception):  # if it fails, p2pd has ended
                await _end(await creating)
            raise
        self._is_lost = bool(self._anchors)
        self._node, self._guard.connect = node, self._connect

    async def has_come_online(self) -> bool:
        """Does another machine reach us now, since p2pd has got a network that it lacked? Then `addresses` has changed."""
        if self._listen is None or is_loopback(self._listen[0]) or not all(map(_is_local, self.addresses)):
            return False
        if all(map(_is_local, found := await _visible_soon(self._running.p2p))):
            return False
        self.addresses = found
        return True

    async def _create(self) -> Protocol:
        try:
            with self._identity_file() as path:
                p2p = await P2P.create(
                    identity_path=path,
                    check_if_identity_free=False,  # it cannot read Ed25519 keys
                    nat_port_map=False,
                    auto_nat=False,  # we dial back by ourselves, with bounds
                    use_relay=False,  # our traffic is not relayed, so we relay none
                    no_listen=self._listen is None,
                    host_maddrs=[transport(*self._listen)] if self._listen else [],
                    announce_maddrs=[transport(*self._announce)] if self._announce else None,
                    **{"dht_mode": "client" if self._client_mode else "server", **guard.daemon_options(self._gate)},
                )
                daemon.keep_hearing(p2p)
                return await daemon.unless_it_ends(p2p, self._begin(p2p))
        except (P2PDaemonError, OSError, EOFError) as error:  # of the latter two, too, if it ends as soon as it has started
            raise ConfigError(f"the daemon of the DHT (p2pd) does not start at {self._listen}: {error}") from None

    async def _begin(self, p2p: P2P) -> Protocol:
        self.addresses = await _visible(p2p)
        shelf = Shelf(self._rules.rng, self._clock.unix_s, self._rules.has_met)
        return await Protocol.start(
            p2p, shelf, self._signatures, self._rules, client_mode=self._client_mode, guard=self._guard, clock=self._clock
        )

    @property
    def num_neighbours(self) -> int:
        """Peers in our routing table; 0 = alone."""
        return len(self._node.routing_table.uid_to_peer_id) if self._node else 0

    async def connected(self) -> frozenset[str]:
        """PeerIDs in our routing table to which p2pd holds a connection: a member that dies is missing at once."""
        node = self._running
        return frozenset(str(one.peer_id) for one in await node.connections() if one.peer_id in node.routing_table)

    @property
    def _running(self) -> Protocol:
        if self._node is None:
            raise PeerUnreachableError("the DHT is not running here: it is being started again, or has been stopped")
        return self._node

    async def is_alone(self) -> bool:
        """Do we know no member, and has p2pd no connection, to a client say? PeerUnreachableError if it does not say."""
        return not (self.num_neighbours or await self._running.connections())

    async def died(self) -> bool:
        """Returns when p2pd has ended, or is not heard any more. True if `end_daemon` ended it."""
        node = self._running
        await daemon.ended(node.p2p)
        return node is self._ended_by_us

    def end_daemon(self) -> None:
        """End p2pd at once, for `died` to return."""
        self._ended_by_us = self._running
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            self._running.p2p._child.kill()

    async def stop(self) -> None:
        """End p2pd and remove its sockets, within STOP_S and as long again for p2pd."""
        node, self._node = self._node, None
        if node:
            await _end(node)

    def go_on_alone(self) -> None:
        """It was started again, and none of those answers that it had joined: what it knows itself is all there is."""
        self._is_lost = False

    async def join(self, address: PeerAddress) -> None:
        """Meet the peer at `address` and, through it, others. PeerUnreachableError if it does not answer."""
        node, peer = self._running, PeerID.from_base58(address.peer)
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._connect(address.peer, [address.transport])
        except (ControlFailure, TimeoutError, ValueError, OSError, asyncio.IncompleteReadError) as error:
            raise failure(address, error) from None
        found = await node.call_ping(peer, validate=not self._client_mode, strict=False)
        if found is None:
            if refusal := self._guard.refusal(address.peer):
                raise refusal
            raise PeerUnreachableError(
                f"peer {short_peer(address.peer)} at {address.transport} takes no part in the DHT: it may be a client"
            )
        node.take_back(peer)
        await node.update_routing_table(found, peer)
        self._anchors.pop(peer, None)
        self._anchors[peer] = found, 0.0
        self._is_lost = False
        while len(self._anchors) > MAX_ANCHORS:
            del self._anchors[next(iter(self._anchors))]
        await self.look_around()

    async def _connect(self, peer: PeerId, transports: Sequence[str]) -> None:
        await self._running.p2p._client.connect(PeerID.from_base58(peer), [Multiaddr(one) for one in transports])

    async def look_around(self) -> None:
        """Ask neighbours for peers near us, and near somewhere else: the routing table fills and heals."""
        node = self._running
        for near in (node.node_id, DHTID.generate(os.urandom(16))):
            await self._lookup([near], ASK_S)

    async def _lookup(self, keys: Sequence[DHTID], timeout_s: float) -> Lookup:
        node = self._running
        known = {one for key in keys for one in node.routing_table.get_nearest_neighbors(key, BEAM, exclude=node.node_id)}
        anchors = {peer: number for peer, (number, rests_s) in self._anchors.items() if rests_s <= self._clock.now_s()}
        lookup = Lookup(keys, known, node.ask, node.peer_id, [(number, peer) for peer, number in anchors.items()])
        await lookup.run(timeout_s)
        for peer, number in anchors.items():
            if not lookup.has_answered(peer):
                self._anchors[peer] = number, self._clock.now_s() + ANCHOR_REST_S
        return lookup

    async def store(self, key: str, payload: bytes, expires_s: float, timeout_s: float = GET_S) -> bool:
        """Store `payload` under `key` in our name until `expires_s`. False if no other member took it in time (for a peer that is
        alone: if its own store refused it)."""
        node, key_bytes = self._running, key_id(key)
        entry = self._signatures.seal(key_bytes, payload, expires_s)
        is_ours = node.keep_ours(key_bytes, entry)
        # the same members are nearest, but no entry is kept there, so none is sent
        near = DHTID(int.from_bytes(key_bytes, "big") ^ 1)
        lookup = await self._lookup([near], FIND_SHARE * timeout_s)
        anchors = [peer for peer in self._anchors if lookup.has_answered(peer)]
        holders = list(dict.fromkeys([*lookup.nearest(near, NUM_REPLICAS), *anchors]))
        if not holders:
            return is_ours
        return any(await _stored_at(node, self._identity.peer_id, holders, key_bytes, entry, timeout_s * (1 - FIND_SHARE)))

    async def get(self, keys: Collection[str], timeout_s: float = GET_S) -> dict[str, dict[PeerId, SignedEntry]]:
        """What peers say under each key: newest, unexpired, by the peer who signed it, signature checked. Of a crowded key it is a
        sample, those first whom we have met. PeerUnreachableError after a start again until a member is met, or `go_on_alone`."""
        if self._is_lost and not self.num_neighbours:
            raise PeerUnreachableError("the DHT was started again here a moment ago, and no member of it has been joined yet")
        ids = {key: DHTID.from_bytes(key_id(key)) for key in keys}
        told = (await self._lookup(list(ids.values()), timeout_s)).told
        budget = max(checking.MAX_CHECKED // max(1, len(ids)), 1)
        node, now_s = self._running, self._clock.unix_s()
        found = {key: await _newest(node, now_s, number.to_bytes(), told[number], budget) for key, number in ids.items()}
        may_be_seen = self._gate.access.may_be_seen
        return {key: {peer: entry for peer, entry in said.items() if may_be_seen(peer)} for key, said in found.items()}


async def _newest(node: Protocol, now_s: float, key: bytes, told: Sequence[Told], budget: int) -> dict[PeerId, SignedEntry]:
    """Of what others told, and of what we keep, which was checked when it came."""
    kept = node.shelf.entries(key)
    fresh = [[(peer, entry) for peer, entry in one if entry.expires_s > now_s and kept.get(peer) != entry] for one in told]
    found = await checking.newest_valid(
        fresh,
        lambda peer, entry: node.signatures.is_valid(key, peer, entry),
        lambda peer, entry: node.signatures.is_seen(key, peer, entry),
        node.rules.has_met,
        budget,
    )
    return {peer: max(found.get(peer, entry), entry, key=lambda one: one.expires_s) for peer, entry in {**found, **kept}.items()}


async def _stored_at(
    node: Protocol, author: PeerId, holders: Sequence[PeerID], key: bytes, entry: SignedEntry, timeout_s: float
) -> list[bool]:
    """Store our own entry at these members; whether each that answers in time has taken it."""

    async def one(peer: PeerID) -> bool:
        kept = await node.call_store(peer, [DHTID.from_bytes(key)], [entry.value], [entry.expires_s], subkeys=[str(author)])
        return bool(kept and kept[0])

    tasks = [asyncio.create_task(one(peer)) for peer in holders]
    done, late = await asyncio.wait(tasks, timeout=timeout_s)
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    return [task.result() for task in done]


async def _end(node: Protocol) -> None:
    with contextlib.suppress(Exception):  # whatever it says, the daemon ends next
        async with asyncio.timeout(STOP_S):
            await node.shutdown()
    await daemon.end(node.p2p)


async def _visible(p2p: P2P) -> tuple[str, ...]:
    """Multiaddrs where p2pd listens now, as others see them, without `/p2p/…`."""
    found: list[str] = []
    with contextlib.suppress(ValueError):  # nowhere, if we do not listen
        found = [str(address).split("/p2p/")[0] for address in await p2p.get_visible_maddrs(latest=True)]
    return tuple(address for address in found if "/tcp/" in address)


async def _visible_soon(p2p: P2P) -> tuple[str, ...]:
    """The same within ASK_S; PeerUnreachableError if p2pd does not say."""
    try:
        async with asyncio.timeout(ASK_S):
            return await _visible(p2p)
    except (ControlFailure, TimeoutError, OSError, EOFError) as error:
        raise PeerUnreachableError(f"the daemon of the DHT (p2pd) does not say where it listens: {error!r}") from None


def _is_local(multiaddr: str) -> bool:
    return is_loopback(multiaddr.split("/")[2])


def _quiet() -> None:
    """hivemind logs to stderr by a handler of its own; HIVEMIND_LOGLEVEL brings it back."""
    if "HIVEMIND_LOGLEVEL" not in os.environ:
        logging.getLogger("hivemind").setLevel(logging.CRITICAL)
