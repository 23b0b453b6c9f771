"""A peer: identity, DHT, gRPC server, connections and directory under one lifetime.

    async with Peer(PeerConfig(bootstrap=("/ip4/…/p2p/…",), listen=("0.0.0.0", 4001), data_dir=…), handlers) as peer:
        await peer.directory.announce(make_record, [model.name])

Leaves no child process, socket or temporary file behind. Importing this is cheap; starting a peer imports hivemind (5 s, with torch).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Self

from protocols import services
from protocols.errors import DrainingError, SwarmError
from protocols.hello import Hello
from protocols.ids import short_peer
from swarm import places
from swarm.access_lists import keep_reading
from swarm.directory.answering import Answers
from swarm.directory.directory import Directory
from swarm.meeting import dial_back, hello
from swarm.meeting.bootstrap import Finder
from swarm.meeting.reachability import Verifier
from swarm.peer import keys, ports
from swarm.peer.config import PeerConfig
from swarm.peer.contacts import Contacts
from swarm.peer.dht_keeper import DhtKeeper
from swarm.peer.endpoint import Endpoint
from swarm.peer.greeter import Greeter
from swarm.rpc import Call, Handlers

log = logging.getLogger(__name__)

JOIN_S = 15.0
"""How long a client waits for the first peer that answers."""

BEGIN_AGAIN_S = 2.0
"""Seconds until a task begins again that failed by a fault of ours."""


def software() -> str:
    """Name and version, for people."""
    try:
        return f"murmuration {importlib.metadata.version('murmuration')}"
    except importlib.metadata.PackageNotFoundError:  # run from the source tree, not installed
        return "murmuration"


class Peer(Greeter):
    """One member of a swarm, for as long as the context lasts."""

    def __init__(self, config: PeerConfig, handlers: Handlers | None = None) -> None:
        """handlers: what this peer offers, by the names of `protocols.services`; `hello`, `dial_back` and `directory` are its own."""
        super().__init__(Hello(software=software(), swarm=config.swarm, name=config.name), config.entry)
        self.config = config
        self._answers = Answers(config.swarm, self._opened_directory)
        self._handlers: Handlers = {
            **(handlers or {}),
            services.HELLO.name: self._answer_hello,
            services.DIAL_BACK.name: dial_back.DialBacks(self.met.note, config.dial_back_s).answer,
            services.DIRECTORY.name: self._answers.answer,
        }
        self._stack = contextlib.AsyncExitStack()

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
        host = config.listen[0] if config.listen else None
        if host is not None:  # one address for p2pd, gRPC and what is announced, whatever a name stands for
            host = await asyncio.to_thread(ports.resolved, host)
        self.start_asking(self._keys.identity, Finder(config.find, self._keys.identity.peer_id, host))
        self._stack.push_async_callback(self.pool.close)
        self._keeper = DhtKeeper(config, self._keys, self.gate, self.has_met, self._handlers)
        await self._keeper.start(self._stack, host)
        self._dht = self._keeper.dht
        self._endpoint = Endpoint(
            peer=self.peer_id,
            listen=self._keeper.listen,
            announce=config.announce,
            p2pd_addresses=lambda: self._dht.addresses,
            certificate=self._keys.certificate.der if self._keys.certificate else b"",
        )
        self.directory = Directory(config.swarm, self.peer_id, self._dht, self.has_met)
        self._stack.push_async_callback(self.directory.withdraw)
        self._stack.push_async_callback(self._answers.close)
        self._contacts = Contacts(config, self, self._dht)
        given = [(address.peer, (address.grpc,), b"") for address in self._contacts.given]
        self._verifier = Verifier(self.pool, self.directory, given, lambda: self._endpoint.place)
        await self._start_tasks()

    async def _start_tasks(self) -> None:
        config = self.config
        self._stack.callback(self.finder.write_down)
        self._own(self.finder.keep_writing_down)
        if config.entry.changes:
            self._own(lambda: keep_reading(config.entry.lists, self.gate, self.pool.forget_refused, self.finder.say))
        self._own(self._contacts.keep_joined)
        self._own(lambda: self._keeper.keep_alive(self._come_back))
        self._own(lambda: self._contacts.tell_and_hear_neighbours(lambda: self._dht.addresses))
        if config.client_mode:
            await self.joined(JOIN_S)
            if self.refusal:
                raise self.refusal
        else:
            self._own(lambda: self._verifier.run(lambda: self.num_neighbours > 0))
            self._own(lambda: self._keeper.announce_after_changes(self.directory.refresh))

    def _own(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` until we stop. An error from it is a fault of ours: it is logged, and the work begins again, since without it other
        peers would lose this one sooner or later."""

        async def run() -> None:
            while True:
                try:
                    return await work()
                except Exception:
                    log.exception("a task of peer %s failed, and begins again in %.0f s", short_peer(self.peer_id), BEGIN_AGAIN_S)
                await asyncio.sleep(BEGIN_AGAIN_S)

        task = asyncio.create_task(run())

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self._stack.push_async_callback(end)

    async def _come_back(self) -> None:
        """Our daemon has been started again."""
        await self._contacts.rejoin()
        with contextlib.suppress(SwarmError):  # p2pd has ended again
            await self.directory.refresh()

    def _opened_directory(self) -> Directory:
        if not hasattr(self, "directory"):
            raise DrainingError("this peer is still starting: ask another one, or again in a moment")
        return self.directory

    async def _answer_hello(self, request: bytes, call: Call) -> bytes:
        return hello.answer(self._mine, request, self.clocks.now_s())

    # --- where we are

    @property
    def certificate(self) -> bytes:
        """DER of our TLS certificate; empty for a client."""
        return self._endpoint.certificate

    @property
    def multiaddrs(self) -> tuple[str, ...]:
        """What a newcomer passes to `--peer`, the most public first; none for a client."""
        return self._endpoint.multiaddrs

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where our gRPC server is reached; none for a client."""
        return self._endpoint.addresses

    @property
    def reachable(self) -> bool | None:
        """Has another peer dialled us back? None = none has tried yet: we serve, marked unverified."""
        return self._verifier.reachable

    async def verify(self) -> bool | None:
        """Let up to three peers dial us back: True if one reached us, False if none did, None if no peer could be asked."""
        return await self._verifier.verify()

    # --- whom we have met

    @property
    def num_neighbours(self) -> int:
        """Peers that we know in the DHT; 0 = alone so far."""
        return self._dht.num_neighbours

    @property
    def alone(self) -> str:
        """What a node without neighbours can say of it, for people."""
        return f"no peer was named, and none that is known or heard answers: this is the first of its swarm; {self.finder.hint}"

    @property
    def refusal(self) -> SwarmError | None:
        """Why a given peer that we met does not take us: another swarm, or no common version. None = no such word."""
        return self._contacts.refusal

    async def joined(self, timeout_s: float = JOIN_S) -> None:
        """Returns once a peer has answered; PeerUnreachableError if none does in time. `Contacts.joined` says more."""
        await self._contacts.joined(timeout_s)
