"""A peer: identity, DHT, gRPC server, connections and directory under one lifetime.

    async with Peer(PeerConfig(bootstrap=("/ip4/…/p2p/…",), listen=("0.0.0.0", 4001), data_dir=…), handlers) as peer:
        await peer.directory.announce(make_record, [model.name])

Leaves no child process, socket or temporary file behind. Importing this is cheap; starting a peer imports hivemind (5 s, with torch).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import importlib.metadata
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from protocols import services
from protocols.directory import belongs
from protocols.errors import ConfigError, DrainingError, PeerUnreachableError, SwarmError
from protocols.hello import Hello
from protocols.ids import PeerId, short_peer
from protocols.records import PeerRecord
from swarm import places
from swarm.access_lists import keep_reading
from swarm.dht.address import PeerAddress, beside, host_port, transport
from swarm.directory.answering import Answers
from swarm.directory.directory import Directory
from swarm.meeting import dial_back, hello, reachability
from swarm.meeting.bootstrap import FindConfig, Finder
from swarm.meeting.clocks import Clocks
from swarm.meeting.entering import ANYBODY, Entry
from swarm.meeting.invitation import check_name
from swarm.meeting.joining import NEIGHBOUR_S, Joiner, Met, Sources, is_refusal
from swarm.peer import keys, ports
from swarm.peer.acquaintances import Acquaintances
from swarm.rpc import Call, ChannelPool, Handlers, RpcServer

if TYPE_CHECKING:
    from swarm.dht.node import Dht

log = logging.getLogger(__name__)

JOIN_S = 15.0
"""How long a client waits for the first peer that answers."""

_REMEMBERED_FIRST_S = 2.0
"""Start that the remembered peers get before a client looks for neighbours."""

WATCH_S = 2.0
"""How often we look whether peers of the DHT have gone; with them may have gone copies of our record."""

REANNOUNCE_S = 5.0
"""At least so long between two announcements for that reason."""

_GRACE_S = 1.0
_RESTART_S = 2.0
_PORT_ATTEMPTS = 5
_MAX_ROUND_TRIPS = 64


def software() -> str:
    """Name and version, for people."""
    try:
        return f"murmuration {importlib.metadata.version('murmuration')}"
    except importlib.metadata.PackageNotFoundError:  # run from the source tree, not installed
        return "murmuration"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerConfig:
    """How a peer takes part in a swarm."""

    swarm: str = "public"
    """Name of the swarm: 1 to 64 printable letters. All keys in the DHT carry it."""

    bootstrap: tuple[str, ...] = ()
    """Multiaddrs of any peers of the swarm; none = those that `find` finds, or be the first."""

    find: FindConfig = field(default_factory=FindConfig)
    """Which further peers to ask; none, by default."""

    listen: tuple[str, int] | None = ("127.0.0.1", 0)
    """Host and port of p2pd; gRPC takes the next port; 0 = a free pair; None = listen nowhere (clients)."""

    announce: tuple[str, int] | None = None
    """Host and port under which others reach `listen`, where that is another (a forwarded port)."""

    data_dir: Path | None = None
    """Folder of the default identity; None = that of this user (`places.data_dir`)."""

    identity_path: Path | None = None
    """Identity file; None = the first one in `data_dir` that no other process uses, or, for a client, a fresh identity."""

    name: str = ""
    """What the volunteer calls this machine, at most 64 letters."""

    client_mode: bool = False
    """Ask only: no server, no records kept for others; the start fails if no given peer answers."""

    entry: Entry = ANYBODY
    """The key of a private swarm, and the lists of whom we talk to."""

    on_join: Callable[[bool, str], None] | None = None
    """Told (True, text) when peers were met, and (False, text) after every round in which none answered."""

    def __post_init__(self) -> None:
        check_name(self.swarm)
        if self.listen is None and not self.client_mode:
            raise ConfigError("a peer that listens nowhere must be a client (client_mode=True)")
        for address in self.bootstrap:
            PeerAddress.parse(address)


class Peer:
    """One member of a swarm, for as long as the context lasts."""

    def __init__(self, config: PeerConfig, handlers: Handlers | None = None) -> None:
        """handlers: what this peer offers, by the names of `protocols.services`; `hello`, `dial_back` and `directory` are its own."""
        self.config = config
        self._host = config.listen[0] if config.listen else None
        self.gate = config.entry.gate()
        """Who may do what with us; `renew` changes it while we run."""
        self.met = Acquaintances()
        """Peers that have answered us: by a hello, or when we dialled them back."""
        self._hello = Hello(software=software(), swarm=config.swarm, name=config.name)
        self._answers = Answers(config.swarm, self._opened_directory)
        self._handlers: Handlers = {
            **(handlers or {}),
            services.HELLO.name: self._answer_hello,
            services.DIAL_BACK.name: dial_back.DialBacks(self.met.note).answer,
            services.DIRECTORY.name: self._answers.answer,
        }
        self._bootstrap = tuple(PeerAddress.parse(address) for address in config.bootstrap)
        self._stack = contextlib.AsyncExitStack()
        self.refusal: SwarmError | None = None
        """Why a given peer that we met does not take us: another swarm, or no common version. None = no such word."""
        self.clocks = Clocks()
        """Is this machine's clock right? What the peers that were asked say."""
        self._had_fault = False
        self.round_trips_ms: dict[PeerId, float] = {}
        """Measured by hello, newest last."""

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def _held(self) -> contextlib.AbstractContextManager[keys.Keys]:
        path, folder = self.config.identity_path or self.config.entry.identity, self.config.data_dir
        if self.config.client_mode:
            return keys.of_client(path)
        return keys.held(path, folder or places.data_dir() if path is None else Path(), self.config.entry.key)

    async def _start(self) -> None:
        config = self.config
        self._keys = self._stack.enter_context(self._held())
        self.identity = self._keys.identity
        self.peer_id = self.identity.peer_id
        self.pool = ChannelPool(self.identity, self.gate)
        self._stack.push_async_callback(self.pool.close)
        if self._host is not None:  # one address for p2pd, gRPC and what is announced, whatever a name stands for
            self._host = await asyncio.to_thread(ports.resolved, self._host)
        self._dht = await self._start_dht()
        self.directory = Directory(config.swarm, self.peer_id, self._dht, self.has_met)
        self._stack.push_async_callback(self.directory.withdraw)
        self._stack.push_async_callback(self._answers.close)
        self._bootstrap = tuple(address for address in self._bootstrap if address.peer != self.peer_id)  # one list for all nodes
        given = [(address.peer, (address.grpc,), b"") for address in self._bootstrap]
        self._verifier = reachability.Verifier(self.pool, self.directory, given, self._place)
        self._finder = Finder(config.find, self.peer_id, self._host)
        self._sources = Sources(
            given=self._bootstrap,
            remembered=self._finder.remembered,
            say=self._finder.say,
            may_join=lambda number: self._finder.may_join(config.swarm, number),
            has_lan=self._finder.has_lan and not self._bootstrap,
            check=self._check,
        )
        self._joiner = Joiner(self._dht, self._sources, self._on_join)
        self._stack.callback(self._finder.write_down)
        self._own(self._finder.keep_writing_down)
        if config.entry.lists.files:
            self._own(lambda: keep_reading(config.entry.lists, self.gate, self.pool.forget_refused, self._finder.say))
        self._own(self._joiner.run)
        self._own(self._keep_daemon_alive)
        if self._finder.has_lan and not (config.client_mode and self._bootstrap):
            self._own(self._tell_and_hear_neighbours)
        if config.client_mode:
            await self._joiner.joined(JOIN_S)
            if self.refusal:
                raise self.refusal
        else:
            self._own(lambda: self._verifier.run(lambda: self.num_neighbours > 0))
            self._own(self._announce_after_losses)

    def _own(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` until we stop; it never returns by itself, so whatever it raises is a fault, and is logged."""

        async def run() -> None:
            try:
                await work()
            except Exception:
                log.exception("a task of peer %s failed", short_peer(self.peer_id))

        task = asyncio.create_task(run())

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self._stack.push_async_callback(end)

    def _opened_directory(self) -> Directory:
        if not hasattr(self, "directory"):
            raise DrainingError("this peer is still starting: ask another one, or again in a moment")
        return self.directory

    async def _start_dht(self) -> Dht:
        """Server first, then p2pd: the server's port cannot be shared, so the peer that holds it owns the pair."""
        importlib.import_module("swarm.dht.node")  # seconds; in a thread it would race with another thread that imports torch
        if self.config.listen is None:
            return await self._start_daemon(None)
        host, wanted = self._host or self.config.listen[0], self.config.listen[1]
        for attempt in range(_PORT_ATTEMPTS):
            port = ports.pair(host, wanted)
            assert self._keys.certificate
            server = RpcServer(self.identity, self._keys.certificate, self._handlers, host, port + 1, gate=self.gate)
            try:
                await server.start()
                try:
                    dht = await self._start_daemon((host, port))
                except BaseException:
                    await server.stop()
                    raise
            except ConfigError:
                if wanted or attempt + 1 == _PORT_ATTEMPTS:
                    raise
                continue  # another process took a port of the pair in the meantime
            self._port = port
            self._stack.push_async_callback(server.stop, _GRACE_S)
            return dht
        raise AssertionError("unreachable")

    async def _start_daemon(self, listen: tuple[str, int] | None) -> Dht:
        from swarm.dht.node import Dht
        from swarm.dht.protocol import Rules

        config = self.config
        rules = Rules(belongs=functools.partial(belongs, config.swarm), has_met=self.has_met)
        dht = Dht(
            self.identity,
            self._keys.file,
            listen,
            config.announce,
            client_mode=config.client_mode,
            gate=self.gate,
            rules=rules,
        )
        await dht.start()
        self._stack.push_async_callback(dht.stop)
        return dht

    async def _keep_daemon_alive(self) -> None:
        while True:
            await self._dht.died()
            log.error("the daemon of the DHT (p2pd) has ended; we start it again")
            await self._dht.stop()
            await self._restart()
            for address in dict.fromkeys((*self._bootstrap, *self._finder.remembered())):
                with contextlib.suppress(SwarmError):  # silent, or it does not take us
                    await self._dht.join(address)
            with contextlib.suppress(SwarmError):  # p2pd has ended again
                await self.directory.refresh()

    async def _announce_after_losses(self) -> None:
        """Our record is with the few peers nearest its key; if they die, it is gone until the next renewal. So renew it then."""
        before: frozenset[str] = frozenset()
        while True:
            await asyncio.sleep(WATCH_S)
            with contextlib.suppress(SwarmError):  # the DHT is being started again
                now = await self._dht.connected()
                if before - now and await self.directory.refresh():
                    await asyncio.sleep(REANNOUNCE_S)
                before = now

    async def _restart(self) -> None:
        while True:
            try:
                return await self._dht.start()
            except ConfigError as error:
                log.error("%s; we try again", error)
            await asyncio.sleep(_RESTART_S)

    # --- who and where we are

    @property
    def certificate(self) -> bytes:
        """DER of our TLS certificate; empty for a client."""
        return self._keys.certificate.der if self._keys.certificate else b""

    @property
    def multiaddrs(self) -> tuple[str, ...]:
        """What a newcomer passes to `--peer`, the most public first; none for a client."""
        if self.config.listen is None:
            return ()
        found = [transport(*self.config.announce)] if self.config.announce else [*_best_first(self._dht.addresses)]
        return tuple(
            f"{address}/p2p/{self.peer_id}" for address in found or [transport(self._host or self.config.listen[0], self._port)]
        )

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where our gRPC server is reached; none for a client."""
        places = dict.fromkeys(PeerAddress.parse(address) for address in self.multiaddrs)
        port = self.config.announce[1] + 1 if self.config.announce else getattr(self, "_port", 0) + 1
        return tuple(dict.fromkeys(host_port(place.host, port) for place in places))

    def _place(self) -> reachability.Place:
        return self.peer_id, self.addresses, self.certificate

    @property
    def reachable(self) -> bool | None:
        """Has another peer dialled us back? None = none has tried yet: we serve, marked unverified."""
        return self._verifier.reachable

    async def verify(self) -> bool | None:
        """Let up to three peers dial us back: True if one reached us, False if none did, None if no peer could be asked."""
        return await self._verifier.verify()

    @property
    def num_neighbours(self) -> int:
        """Peers that we know in the DHT; 0 = alone so far."""
        return self._dht.num_neighbours

    @property
    def alone(self) -> str:
        """What a node without neighbours can say of it, for people."""
        return f"no peer was named, and none is remembered or heard; serving as the first of its swarm; {self._finder.hint}"

    async def joined(self, timeout_s: float = JOIN_S) -> None:
        """Returns once a peer has answered; PeerUnreachableError if none does in time.

        A node that was given none returns within NEIGHBOUR_S of being able to hear neighbours, alone or not: there may be no other node
        yet, and it goes on looking.
        """
        if self._bootstrap or self.config.client_mode:
            return await self._joiner.joined(timeout_s)
        if self._finder.has_lan:
            await self._finder.lan_is_up.wait()
        await self._joiner.settled(min(timeout_s, NEIGHBOUR_S))

    # --- hello

    async def hello(self, peer: PeerId, addresses: tuple[str, ...] = (), certificate: bytes = b"") -> Hello:
        """Ask a peer who it is, and measure the round trip. Raises where it is of another swarm or speaks no common version."""
        channel = await self.pool.channel(peer, addresses, certificate)
        theirs, round_trip_ms = await hello.ask(channel, self._hello, self.clocks)
        self._look_at_clock()
        self.round_trips_ms.pop(peer, None)
        self.round_trips_ms[peer] = round_trip_ms
        while len(self.round_trips_ms) > _MAX_ROUND_TRIPS:
            del self.round_trips_ms[next(iter(self.round_trips_ms))]
        self.met.note(peer, channel.address)
        place = beside(channel.address, peer)
        self._finder.note_answering([place] if place else [])
        return theirs

    async def ping(self, record: PeerRecord) -> float:
        """Say hello; its round trip in milliseconds, without the time to connect. The errors of `hello`."""
        await self.hello(record.peer, record.addresses, record.certificate)
        return self.round_trips_ms[record.peer]

    def has_met(self, peer: PeerId) -> bool:
        """Has it answered us, or does our user trust it?"""
        return peer in self.met or self.gate.access.is_trusted(peer)

    async def _answer_hello(self, request: bytes, call: Call) -> bytes:
        return hello.answer(self._hello, request, self.clocks.now_s())

    async def _on_join(self, met: Met | None, text: str) -> None:
        log.log(logging.INFO if met else logging.WARNING, "%s", text)
        if met:
            if met.kind == "given":
                await self._greet_bootstrap()
            if self.refusal is None:
                self._finder.note_answering(met.answered)
            self._finder.write_down(met.failed)
        if self.config.on_join:
            self.config.on_join(met is not None, text)

    async def _greet_bootstrap(self) -> None:
        """Check at once whether we are in the right swarm. A peer whose gRPC is elsewhere says nothing here, and that is fine; one that
        refuses us counts only if no other takes us."""

        async def greet(address: PeerAddress) -> SwarmError | None:
            try:
                await self.hello(address.peer, (address.grpc,))
            except SwarmError as error:
                return error
            return None

        answers = await asyncio.gather(*map(greet, self._bootstrap))
        refusals = [error for error in answers if error and is_refusal(error)]
        for error in refusals:
            log.warning("a given peer does not take us: %s", error)
        self.refusal = None if None in answers else next(iter(refusals), None)

    # --- peers to ask if the user named none

    async def _tell_and_hear_neighbours(self) -> None:
        """A node tells of itself, and listens where it was named no peer; a client only listens, and only if it must."""
        is_client = self.config.client_mode
        if is_client and self._finder.remembered():
            with contextlib.suppress(PeerUnreachableError):
                return await self._joiner.joined(_REMEMBERED_FIRST_S)
        announced = () if is_client else self._dht.addresses
        await self._finder.run_lan(announced, None if self._bootstrap else self._sources.neighbours.hear)

    async def _check(self, address: PeerAddress) -> None:
        """A peer that our user did not name must prove its PeerID, and be in our swarm, before we join by it."""
        await hello.prove(self.identity, self.gate, address, self._hello, self.clocks)
        self._look_at_clock()

    def _look_at_clock(self) -> None:
        """Tell the user once when a fault of this machine's clock shows."""
        fault = self.clocks.fault
        if fault and not self._had_fault:
            self._finder.say(fault)
        self._had_fault = bool(fault)


def _best_first(addresses: tuple[str, ...]) -> list[str]:
    """Without loopback if there is anything else: on another machine, a loopback address means that machine."""
    outside = [address for address in addresses if not address.startswith(("/ip4/127.", "/ip6/::1/"))]
    return outside or list(addresses)
