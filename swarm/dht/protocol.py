"""What members of the DHT ask each other.

hivemind's messages, answered within bounds and stored on our shelf.

The wire is hivemind's. What differs is what we do for a caller: only an author stores its own entry (libp2p authenticates the caller), a
question names few keys, an answer holds a sample of a crowded key, and nothing is passed on to others unasked: authors announce again
every 20 s, so hivemind's copying to newcomers would only spread a flood.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID, RoutingTable
from hivemind.p2p import P2P, P2PContext, PeerID
from hivemind.proto import dht_pb2
from hivemind.utils.auth import AuthRole

from protocols import dictionary
from protocols.dictionary import Told
from protocols.entries import SignedEntry, packed_subkey
from protocols.errors import BadRequestError, PeerUnreachableError
from protocols.ids import PeerId, parse_peer_id
from swarm.clock import Clock
from swarm.dht.checking import shuffled
from swarm.dht.guard import Guard, Guarded
from swarm.dht.lookup import BEAM, LATE_S, Answer
from swarm.dht.neighbourhood import BUCKET_SIZE, DEPTH_MODULO, Neighbourhood, node_id_of
from swarm.dht.origins import Origins
from swarm.dht.shelf import OURS, Shelf
from swarm.dht.signatures import Signatures
from swarm.meter import Meter

log = logging.getLogger(__name__)

NUM_REPLICAS = 5
ASK_S = 3.0
"""Wait for one peer's answer to one question."""

MAX_KEYS = 16
"""Keys of one question or store; we ask for 8."""

MAX_ANSWERED = 256
"""Entries of one key in an answer."""

MAX_ANSWER_BYTES = 2 << 20
"""Bytes of entries in an answer; p2pd carries 4 MiB."""

WINDOW_S = 10.0
MAX_STORES = 200
"""Entries that one caller may store in WINDOW_S; an author has at most 9, and says them anew when its state changes."""

MAX_FINDS = 4_000
MAX_FOUND_BYTES = 32 << 20
"""Keys that one caller may ask for in WINDOW_S, and entries that it is told; beyond, it is told only who is near."""

MAX_PINGS = 100
"""Times in WINDOW_S that one caller may have us look whether it can be reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a member keeps, and whom it prefers."""

    belongs: Callable[[bytes, PeerId, bytes], bool] = lambda key, author, payload: True
    """Is it a payload of our swarm that this author may have under this key (`protocols.directory.belongs`)?"""

    has_met: Callable[[PeerId], bool] = lambda peer: False
    """Has this peer answered us? Then its entries are told first, and give way last."""

    rng: random.Random = field(default_factory=random.Random)


class Protocol(Neighbourhood):
    """One member's side of the DHT."""

    @classmethod
    async def start(
        cls, p2p: P2P, shelf: Shelf, signatures: Signatures, rules: Rules, *, client_mode: bool, guard: Guard, clock: Clock
    ) -> Protocol:
        """Answer from now on, unless `client_mode`."""
        self = cls(_initialized_with_create=True)
        self.p2p, self.peer_id, self.node_id = p2p, p2p.peer_id, DHTID.generate()
        self.me = parse_peer_id(str(p2p.peer_id))
        self.shelf, self.signatures, self.rules = shelf, signatures, rules
        self.bucket_size, self.num_replicas, self.wait_timeout = BUCKET_SIZE, NUM_REPLICAS, ASK_S
        self.rpc_semaphore = asyncio.Semaphore(1_000)
        self.routing_table = RoutingTable(self.node_id, BUCKET_SIZE, DEPTH_MODULO)
        self.client_mode, self.guard, self.clock = client_mode, guard, clock
        self.origins = Origins(self.connections, clock.now_s)
        self._stores, self._pings, self._finds, self._found_bytes = (
            Meter(limit, WINDOW_S, clock.now_s) for limit in (MAX_STORES, MAX_PINGS, MAX_FINDS, MAX_FOUND_BYTES)
        )
        self._silent, self._pinged, self._tasks = dict[PeerID, float](), dict[PeerID, float](), set[asyncio.Task[None]]()
        self.node_info = dht_pb2.NodeInfo() if client_mode else dht_pb2.NodeInfo(node_id=self.node_id.to_bytes())
        if not client_mode:
            await self.add_p2p_handlers(p2p, Guarded(self, AuthRole.SERVICER, guard))
        return self

    @classmethod
    def _get_handle_name(cls, namespace: str | None, method_name: str) -> str:
        """The name on the wire is that of hivemind's class."""
        return f"DHTProtocol.{method_name}"

    def get_stub(self, peer: PeerID) -> Guarded:
        """A stub of hivemind's, through our guard."""
        return Guarded(super(DHTProtocol, self).get_stub(self.p2p, peer), AuthRole.CLIENT, self.guard)

    async def connections(self) -> Sequence[Any]:
        """Whom our daemon is connected to, each with `peer_id` and `addrs`. PeerUnreachableError if it does not say."""
        try:
            async with asyncio.timeout(ASK_S):
                found: list[Any] = await self.p2p.list_peers()
                return found
        except Exception as error:  # hivemind has no class that all its failures share
            raise PeerUnreachableError(f"the daemon of the DHT (p2pd) does not say whom it is connected to: {error!r}") from None

    # --- what others ask of us

    async def rpc_ping(self, request: dht_pb2.PingRequest, context: P2PContext) -> dht_pb2.PingResponse:
        """Says who we are, and looks whether the caller can be reached if it wants to know."""
        if not self._pings.spend(context.remote_id):
            raise BadRequestError(f"at most {MAX_PINGS} pings in {WINDOW_S:.0f} s are answered")
        return await super().rpc_ping(request, context)

    async def rpc_store(self, request: dht_pb2.StoreRequest, context: P2PContext) -> dht_pb2.StoreResponse:
        """Keep the caller's own entries."""
        parts = (request.keys, request.subkeys, request.values, request.expiration_time)
        if len({len(part) for part in parts}) != 1 or len(request.keys) > MAX_KEYS:
            raise BadRequestError(f"a store has 1 to {MAX_KEYS} keys, each with its subkey, value and expiry")
        self._meet(request, context)
        origin = await self.origins.of(context.remote_id)
        response = dht_pb2.StoreResponse(peer=self.node_info)
        for key, subkey, value, expires_s in zip(*parts, strict=True):
            is_kept = self._stores.spend(context.remote_id) and self.keep(
                key, subkey, SignedEntry(value, expires_s), str(context.remote_id), origin
            )
            response.store_ok.append(is_kept)
        return response

    def keep(self, key: bytes, subkey: bytes, entry: SignedEntry, caller: str, origin: str) -> bool:
        """Put what the caller says in its own name under a key of its own on the shelf; False for anything else. Cheap checks first."""
        try:
            author = parse_peer_id(caller)
        except BadRequestError:  # an RSA key, say: it is no peer of ours
            return False
        if len(key) != DHTID.HASH_NBYTES or subkey != packed_subkey(author):
            return False
        if not self.shelf.would_take(key, author, entry.expires_s) or not self.signatures.is_valid(key, author, entry):
            return False
        payload = entry.payload
        may: bool = self.rules.belongs(key, author, payload) if payload else self.shelf.holds(key, author)
        return may and bool(self.shelf.put(key, author, entry, origin))

    def keep_ours(self, key: bytes, entry: SignedEntry) -> bool:
        """Our own entry, which no flood pushes out."""
        return not self.client_mode and bool(self.keep(key, packed_subkey(self.me), entry, self.me, OURS))

    async def rpc_find(self, request: dht_pb2.FindRequest, context: P2PContext) -> dht_pb2.FindResponse:
        """What we keep under the keys, or a sample of it, and who is nearer."""
        if len(request.keys) > MAX_KEYS or any(len(key) != DHTID.HASH_NBYTES for key in request.keys):
            raise BadRequestError(f"a question has at most {MAX_KEYS} keys of {DHTID.HASH_NBYTES} bytes")
        caller = self._meet(request, context)
        may_read = self._finds.spend(context.remote_id, len(request.keys))
        response = dht_pb2.FindResponse(peer=self.node_info)
        for key in request.keys:
            told = self.sample(key, MAX_ANSWER_BYTES // len(request.keys)) if may_read else []
            packed = dictionary.pack(told) if told else b""
            if packed and self._found_bytes.spend(context.remote_id, len(packed)):
                latest_s = max(entry.expires_s for _peer, entry in told)
                result = dht_pb2.FindResult(type=dht_pb2.FOUND_DICTIONARY, value=packed, expiration_time=latest_s)
            else:
                result = dht_pb2.FindResult(type=dht_pb2.NOT_FOUND)
            for node, peer in self.routing_table.get_nearest_neighbors(DHTID.from_bytes(key), BUCKET_SIZE, exclude=caller):
                result.nearest_node_ids.append(node.to_bytes())
                result.nearest_peer_ids.append(peer.to_bytes())
            response.results.append(result)
        return response

    def sample(self, key: bytes, max_bytes: int) -> Told:
        """What we keep under a key: our own entry, then those of peers that we have met, then others at random."""
        told: Told = []
        for peer, entry in shuffled(self.shelf.entries(key), self.me, self.rules.has_met, self.rules.rng)[:MAX_ANSWERED]:
            max_bytes -= len(entry.value) + 64
            if max_bytes < 0:
                break
            told.append((peer, entry))
        return told

    def _meet(self, request: Any, context: P2PContext) -> DHTID | None:
        """The node id that a caller says is its own; it may be a neighbour."""
        node = node_id_of(request.peer.node_id)
        if node is not None:
            self._spawn(self.update_routing_table(node, context.remote_id))
        return node

    # --- what we ask of others

    async def ask(self, peer: PeerID, keys: Sequence[int]) -> Answer | None:
        """What a member knows of some keys; None if it does not answer in time, or with nonsense."""
        if self.is_silent(peer):
            return None
        ids, began_s = [DHTID(key) for key in keys], self.clock.now_s()
        request = dht_pb2.FindRequest(keys=[key.to_bytes() for key in ids], peer=self.node_info)
        try:
            async with self.rpc_semaphore:
                response = await self.get_stub(peer).rpc_find(request, timeout=ASK_S)
            if len(response.results) != len(keys):
                raise BadRequestError(f"{len(response.results)} results for {len(keys)} keys")
            answer = _parsed(ids, response)
        except asyncio.CancelledError:  # others have answered meanwhile
            if self.clock.now_s() - began_s >= LATE_S:
                self.leave_alone(peer)
            raise
        except Exception as error:  # hivemind has no class that all its failures share
            log.debug("member %s does not answer: %r", peer, error)
            self.leave_alone(peer)
            return None
        node = node_id_of(response.peer.node_id)
        if node is not None:
            self._spawn(self.update_routing_table(node, peer))
        return answer


def _parsed(keys: Sequence[DHTID], response: dht_pb2.FindResponse) -> Answer:
    nearest: dict[int, PeerID] = {}
    told: dict[int, Told] = {}
    for key, result in zip(keys, response.results, strict=True):
        for node, peer in list(zip(result.nearest_node_ids, result.nearest_peer_ids, strict=False))[:BEAM]:
            if (number := node_id_of(node)) is not None and len(peer) <= 64:
                nearest[number] = PeerID(peer)
        if result.type == dht_pb2.FOUND_DICTIONARY:
            told[key] = dictionary.parse(result.value)
    return Answer(nearest=nearest, told=told)
