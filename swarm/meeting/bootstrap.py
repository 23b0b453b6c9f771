"""Which peers to ask if none was named.

The known ones, nodes of this machine among them, and neighbours on the local network. Also remembers which have answered.

No hivemind here, so that a thin client finds its peers the same way as a node. What is found is a place to try: the caller
checks PeerID and swarm there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from protocols.errors import ConfigError
from protocols.ids import PeerId
from protocols.words import counted
from swarm import recent
from swarm.dht.address import PeerAddress, is_loopback
from swarm.lan import mdns
from swarm.meeting import known_peers, running_nodes
from swarm.prefixes import prefix

log = logging.getLogger(__name__)

REMEMBER_S = 60.0
"""How often a peer writes down who answers it."""

GOOD_BYE_S = 1.5
"""How long a peer that leaves may take to tell its neighbours."""

LAN_AGAIN_S = 10.0
"""How often a peer looks whether its machine's addresses have changed: neighbours are then told and heard anew."""

LAN_UP_S = 10.0
"""Longest wait until neighbours can be heard; zeroconf starts within a second."""

_MAX_ANSWERING = 256
"""Addresses that may answer between two times of writing down; the file keeps fewer, and chooses by age."""

_MAX_MET = 32
"""Addresses that answered last in this process, only a part of them of one network. They are asked again if all contacts are lost, with or
without a file."""

NOBODY = (
    "no peer to ask: none was named, and none is remembered from an earlier time; expected --peer with an address of any node"
)
INSTALL = f"neighbours on the local network are found without an address by the extra `lan`, which is not installed: {mdns.HOW_TO_INSTALL}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FindConfig:
    """How peers are found if the user named none."""

    known_peers: Path | None = None
    """File of the last known peers (`known_peers.file_of`), asked if no named peer answers, and kept up to date; None = none."""

    here: tuple[Path, str] | None = None
    """A data directory and how the swarm is known in it: its running nodes are asked as known peers are; None = none."""

    lan: bool = False
    """Look for neighbours if no peer is named, and tell them of us, unless we listen on loopback only, or nowhere."""

    on_unnamed: Callable[[str], None] | None = None
    """Told, before it is done, that peers are asked whom the user did not name; None = the log is."""

    may_join: Callable[[str], bool] | None = None
    """Asked, in a thread of its own, whether neighbours may be joined, with the words that say whom; None = they may."""

    def known(self, now_s: float) -> list[PeerAddress]:
        """Who is asked if no peer was named, or none of the named answers: nodes of this machine, then those that answered before."""
        kept = known_peers.load(self.known_peers, now_s) if self.known_peers is not None else {}
        return list(dict.fromkeys([*(running_nodes.nodes(*self.here) if self.here else ()), *kept]))

    def check(self, named: Sequence[str]) -> None:
        """ConfigError, with the next step, if a client has no peer to ask and no way to find one."""
        has_lan = self.lan and mdns.is_installed()
        if named or has_lan or self.known(time.time()):
            return
        how = INSTALL if self.lan else "or leave out --no-lan, and neighbours are looked for"
        raise ConfigError(f"{NOBODY} (`swarm node` prints its own); {how}")


NOBODY_ELSE = FindConfig()
"""Those who were named, and whom we met through them."""


class Finder:
    """One peer's way of finding others."""

    def __init__(self, config: FindConfig, me: PeerId, listen_host: str | None) -> None:
        """listen_host: where we listen; None = nowhere, a client."""
        self._file, self._me = config.known_peers, me
        self._config = config
        self.has_lan = config.lan and mdns.is_installed() and not (listen_host and is_loopback(listen_host))
        """Do we take part in looking for neighbours? Not if the extra is missing, nor if no other machine could reach us."""
        self.lan_is_up = asyncio.Event()
        """Neighbours can be heard from now on."""
        self.hint = _hint(config.lan, is_reachable=not (listen_host and is_loopback(listen_host)))
        """How neighbours are found here, for people."""
        self._answering: dict[PeerAddress, None] = {}
        """Who has answered where, newest last, since that was last written down."""
        self._met: dict[PeerAddress, None] = {}
        """Who has answered where in this process, newest last."""
        self._writing = threading.Lock()

    # --- neighbours

    async def can_hear(self) -> None:
        """Returns once neighbours can be heard, or there is no network to hear them on; after LAN_UP_S at the latest."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAN_UP_S):
                await self.lan_is_up.wait()

    async def run_lan(self, announced: Callable[[], Sequence[str]], on_heard: Callable[[PeerAddress], None] | None) -> None:
        """Tell neighbours of `announced` (multiaddrs without `/p2p/`) and hear of theirs, until cancelled; also if a network comes later.

        announced: read again and again, in another thread. on_heard: called on the loop.
        """
        loop = asyncio.get_running_loop()

        def heard(address: PeerAddress) -> None:
            if on_heard is not None:
                loop.call_soon_threadsafe(on_heard, address)

        def places() -> list[str]:
            return [address for address in announced() if not is_loopback(address.split("/")[2])]

        mdns.load()
        speaker, over = mdns.Mdns(self._me, places, None if on_heard is None else heard), threading.Event()

        def live() -> bool:  # a thread of its own, since those of asyncio are gone when a program ends
            try:
                was_up = True
                while not over.is_set():
                    was_up = _is_up(speaker, was_up)
                    loop.call_soon_threadsafe(self.lan_is_up.set)
                    over.wait(LAN_AGAIN_S)
                return True
            finally:
                speaker.stop()

        speaking = _started(live, "mdns")
        try:
            await asyncio.shield(speaking)
        finally:
            over.set()
            await asyncio.wait([speaking], timeout=GOOD_BYE_S)

    async def may_join(self, swarm: str, num_nodes: int) -> bool:
        """Say whom we have heard; True if they may be joined."""
        heard = f"heard {counted(num_nodes, 'node')} of swarm `{swarm}` on this network"
        ask = self._config.may_join
        if ask is not None and not await in_thread(lambda: ask(heard)):
            return False
        self.say(
            f"{heard}: joining {'it' if num_nodes == 1 else 'them'}; --no-lan to stay alone, --swarm NAME for a swarm of your own"
        )
        return True

    def say(self, text: str) -> None:
        """Tell the user about peers that were not named."""
        if self._config.on_unnamed is not None:
            self._config.on_unnamed(text)
        else:
            log.warning("%s", text)

    # --- memory

    def remembered(self) -> list[PeerAddress]:
        """Nodes of this machine, the last known peers (the longest known first), and those that answered last in this process.

        Given peers may all be gone after a while; without the last ones, a peer that loses its contacts would then stay alone.
        """
        known = dict.fromkeys([*self._config.known(time.time()), *reversed(self._met)])
        return [address for address in known if address.peer != self._me]

    def note_answering(self, addresses: Iterable[PeerAddress]) -> None:
        """These have just answered."""
        for address in addresses:
            for book, most in ((self._answering, _MAX_ANSWERING), (self._met, _MAX_MET)):
                recent.note(book, address, None, most, lambda one: prefix(one.host))

    def write_down(self, failed: Sequence[PeerAddress] = ()) -> None:
        """Bring the file up to date. Blocks for as long as the disk takes."""
        self._write(self._unwritten(), failed)

    async def keep_writing_down(self) -> None:
        """Every REMEMBER_S, until cancelled."""
        while True:
            await asyncio.sleep(REMEMBER_S)
            await asyncio.to_thread(self._write, self._unwritten(), ())

    def _unwritten(self) -> dict[PeerAddress, None]:
        answered, self._answering = self._answering, {}
        return answered

    def _write(self, answered: dict[PeerAddress, None], failed: Sequence[PeerAddress]) -> None:
        if self._file is not None and (answered or failed):
            with self._writing:
                known_peers.update(self._file, answered, failed, time.time())


def _is_up(speaker: mdns.Mdns, was_up: bool) -> bool:
    """Do we speak with neighbours now? Says it if that has ended."""
    try:
        speaker.refresh()
    except OSError as error:
        if was_up:
            log.warning("neighbours on the local network are not looked for now: %s", error)
        return False
    return True


async def in_thread(function: Callable[[], bool]) -> bool:
    """As `asyncio.to_thread`, but a thread that still waits for a user's answer does not keep the process from ending."""
    return await _started(function, "question")


def _started(function: Callable[[], bool], name: str) -> asyncio.Future[bool]:
    """The result to come of a thread that does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bool] = loop.create_future()

    def settle(result: bool | BaseException) -> None:
        if answer.done():
            return
        if isinstance(result, BaseException):
            answer.set_exception(result)
        else:
            answer.set_result(result)

    def run() -> None:
        try:
            result: bool | BaseException = function()
        except Exception as error:  # the caller raises it
            result = error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return answer


def given_are_silent(given: int, why: str, remembered: int) -> str:
    """No named peer answers, so others are asked."""
    return (
        f"{'the given peer does' if given == 1 else f'none of the {given} given peers does'} not answer ({why[:300]}): "
        f"asking {counted(remembered, 'peer')} remembered from earlier"
    )


def _hint(lan: bool, *, is_reachable: bool) -> str:
    if not lan:
        return "neighbours are not looked for (--no-lan)"
    if not is_reachable:
        return "neighbours are not looked for, since --listen is this machine only"
    return "neighbours on the local network will be met as they come" if mdns.is_installed() else INSTALL
