"""Checks of the way into a swarm: peers, clock, reachability."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from node.doctor.check import Check, failed, ok, skipped, warning
from protocols.errors import SwarmError
from protocols.hello import Hello
from protocols.words import counted
from swarm.dht.address import PeerAddress
from swarm.lan import mdns
from swarm.meeting.bootstrap import FindConfig, Finder
from swarm.meeting.entering import Entered
from swarm.peer import keys
from swarm.peer.config import PeerConfig
from swarm.peer.greeter import Greeter
from swarm.peer.peer import Peer, software

HELLO_S = 5.0
"""Longest wait for one peer."""

NEIGHBOURS_S = 3.0
"""How long neighbours are listened for; mDNS takes 0.8 to 1.6 s."""

JOIN_S = 15.0
"""Longest wait until another peer knows us, and could dial us."""

MAX_PEERS = 16
"""Peers that are asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a node of this machine would listen, and what others would dial."""

    listen: tuple[str, int]
    announce: tuple[str, int] | None
    is_given: bool
    """The user named one of the two: then a node is meant, and others must reach it."""


@dataclass(frozen=True, slots=True)
class Greeted:
    """One peer's answer, or why there is none."""

    address: PeerAddress
    answer: Hello | SwarmError
    round_trip_ms: float = 0.0


async def look(into: Entered, find: FindConfig, place: Place) -> list[Check]:
    """Meet the peers that were named or are known, and let one of them dial this machine."""
    known = {} if find.known_peers is None else dict.fromkeys(Finder(find, keys.fresh().identity.peer_id, None).remembered())
    asked = list(dict.fromkeys([*map(PeerAddress.parse, into.peers), *known]))[:MAX_PEERS]
    greeted, fault = await _greet(asked, into)
    answering = [one for one in greeted if isinstance(one.answer, Hello)]
    checks = [peers(greeted, is_named=bool(into.peers)), clock(fault, len(answering))]
    if not answering:
        return [*checks, skipped("reachable", "no peer could dial back")]
    return [*checks, await _reachable(into, [str(one.address) for one in answering], place)]


async def _greet(asked: Sequence[PeerAddress], into: Entered) -> tuple[list[Greeted], str]:
    """Say hello to all at once; and what their clocks say of ours."""
    greeter = Greeter(Hello(software=software(), swarm=into.swarm), into.entry)
    with keys.of_client(into.entry.identity) as held:
        greeter.start_asking(held.identity, Finder(FindConfig(on_unnamed=lambda _text: None), held.identity.peer_id, None))
        try:
            return list(await asyncio.gather(*(_hello(greeter, address) for address in asked))), greeter.clocks.fault
        finally:
            await greeter.pool.close()


async def _hello(greeter: Greeter, address: PeerAddress) -> Greeted:
    try:
        async with asyncio.timeout(HELLO_S):
            answer = await greeter.hello(address.peer, (address.grpc,))
    except SwarmError as error:
        return Greeted(address, error)
    except TimeoutError:
        return Greeted(address, SwarmError(f"no answer within {HELLO_S:.0f} s"))
    return Greeted(address, answer, greeter.round_trips_ms[address.peer])


def listen(find: FindConfig) -> Future[Check]:
    """Begin to listen for neighbours, in a thread that does not keep the process from ending."""
    found: Future[Check] = Future()
    if find.lan and mdns.is_installed():
        mdns.load()  # here: an import in the new thread would race with that of torch

    def run() -> None:
        try:
            found.set_result(asyncio.run(neighbours(find)))
        except BaseException as error:  # `result()` raises it
            found.set_exception(error)

    threading.Thread(target=run, name="neighbours", daemon=True).start()
    return found


async def neighbours(find: FindConfig) -> Check:
    """Is there another node on the local network?"""
    finder = Finder(find, keys.fresh().identity.peer_id, None)
    if not finder.has_lan:
        return skipped("neighbours", finder.hint)
    heard: set[PeerAddress] = set()
    listening = asyncio.create_task(finder.run_lan(tuple, heard.add))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(NEIGHBOURS_S):
            await listening
    await asyncio.gather(listening, return_exceptions=True)
    found = f"{counted(len({one.peer for one in heard}), 'node')} heard on the local network"
    return ok("neighbours", found) if heard else skipped("neighbours", found)


def peers(greeted: Sequence[Greeted], *, is_named: bool = True) -> Check:
    """Does a peer answer, of our swarm and with a version that we speak? is_named: by the user; else they are known from before. Pure."""
    if not greeted:
        return skipped("peers", "none was named, and none is known from before", "give --peer ADDRESS, as `swarm node` prints it")
    fast = sorted((one.round_trip_ms, one.answer.software) for one in greeted if isinstance(one.answer, Hello))
    silent = [f"{one.address.grpc}: {one.answer}" for one in greeted if not isinstance(one.answer, Hello)]
    if not fast and not is_named:
        found = f"none of {counted(len(greeted), 'peer')} known from before answers: {'; '.join(silent)[:300]}"
        return warning("peers", found, "they may have left since: give --peer ADDRESS of a node that runs now")
    if not fast:
        fix = "check the address, that the node runs, and that a firewall lets TCP out to its port and the next one"
        return failed("peers", f"none of {counted(len(greeted), 'peer')} answers: {'; '.join(silent)[:400]}", fix)
    versions = ", ".join(sorted({version for _, version in fast}))[:100]
    found = f"{len(fast)} of {counted(len(greeted), 'peer')} answer, the nearest in {fast[0][0]:.1f} ms ({versions})"
    return ok("peers", f"{found}; silent: {'; '.join(silent)[:300]}" if silent else found)


def clock(fault: str, num_asked: int) -> Check:
    """Is our clock that of the peers? fault: as `Clocks.fault`. Pure."""
    if not num_asked:
        return skipped("clock", "no peer to compare it with")
    if fault:
        what, _, fix = fault.partition(": ")
        return failed("clock", what, fix)
    return ok("clock", f"within 30 s of {counted(num_asked, 'peer')}")


async def _reachable(into: Entered, answering: Sequence[str], place: Place) -> Check:
    """Listen as a node would, with an identity of this moment, and let others dial us."""
    with tempfile.TemporaryDirectory(prefix="murmuration-") as folder:
        config = PeerConfig(
            swarm=into.swarm, bootstrap=tuple(answering), listen=place.listen, announce=place.announce, data_dir=Path(folder),
            entry=into.entry,
        )  # fmt: skip
        try:
            async with Peer(config) as peer:
                await peer.joined(JOIN_S)
                return reachable(await peer.verify(), peer.addresses, place)
        except SwarmError as error:
            return failed("reachable", f"no node can start here: {error}", "put right what the message names, and run this again")


def reachable(verdict: bool | None, addresses: Sequence[str], place: Place) -> Check:
    """Did another peer dial us? verdict: as `Peer.verify`. Pure."""
    where = ", ".join(addresses[:3])
    if verdict is None:
        return skipped(
            "reachable", f"no peer was willing to dial {where}", "a node finds out by itself, as soon as more peers are there"
        )
    if verdict:
        return ok("reachable", f"another peer has dialled {where}")
    fix = "forward two neighbouring TCP ports of the router or firewall here, and start with --listen 0.0.0.0:PORT --announce HOST:PORT"
    judged = failed if place.is_given else warning
    return judged("reachable", f"other peers cannot dial {where}: you can ask, and not host", fix)
