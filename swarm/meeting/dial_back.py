"""Dials a caller back at the address that its call comes from.

A caller could name any address, and our machine would scan it. So only the caller's own address is dialled, as
libp2p's AutoNAT does, the answer to a failure takes the same time whatever failed, and each network has few dials at once.
`reachability.py` asks. Source: https://github.com/libp2p/specs/blob/master/autonat/autonat-v1.md
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from protocols.errors import OverloadedError, PeerUnreachableError, UnauthenticatedError
from protocols.hello import DialBack, DialBackReply
from protocols.ids import PeerId
from swarm.prefixes import prefix
from swarm.rpc import Call, tls

MAX_DIAL_BACKS = 32
"""Callers that are dialled back at once."""

MAX_PER_NETWORK = 2
"""Of these, callers of one network (/24 of IPv4, /48 of IPv6)."""

MAX_ADDRESSES = 2
"""Addresses that are dialled for one call."""

_OWN_BITS = 64
"""IPv6 addresses that share these first bits are one machine's: it calls from a temporary one and announces a lasting one."""

_IP = ipaddress.IPv4Address | ipaddress.IPv6Address


class DialBacks:
    """Answers those who ask to be dialled."""

    def __init__(self, on_reached: Callable[[PeerId, str], None], wait_s: float) -> None:
        """on_reached: told of each caller that has proven itself, and where.

        wait_s: longest wait for a caller's address, and the time after which a failure is told, whatever failed.
        """
        self._on_reached, self._wait_s = on_reached, wait_s
        self._callers: set[PeerId] = set()
        self._networks: Counter[str] = Counter()

    async def answer(self, request: bytes, call: Call) -> bytes:
        """Dial the caller where its call comes from: what answers there must prove the caller's PeerID."""
        asked = DialBack.parse(request)
        places = own(asked.addresses, call.address, is_here)
        if places:
            with self._place(call):
                reachable = await _first_that_is(places, call.peer, self._wait_s)
        elif is_hidden(asked.addresses, call.address):
            return DialBackReply(reachable=(), reason=f"you call from {call.address} and announce private addresses").encode()
        else:
            raise UnauthenticatedError(
                f"only the address that a call comes from is dialled back, and that is {call.address or 'unknown'}: you named others"
            )
        for address in reachable:
            self._on_reached(call.peer, address)
        reason = "" if reachable else f"no peer proves your identity at {', '.join(places)}"
        return DialBackReply(reachable=reachable, reason=reason).encode()

    @contextlib.contextmanager
    def _place(self, call: Call) -> Iterator[None]:
        """One of the few places of the caller, of its network and of all."""
        network = prefix(call.address)
        if call.peer in self._callers:
            raise OverloadedError("you are being dialled back here already: one at a time; ask another peer")
        if self._networks[network] >= MAX_PER_NETWORK:
            raise OverloadedError(
                f"{MAX_PER_NETWORK} peers of your network are being dialled back here; ask another peer, or again"
            )
        if self._networks.total() >= MAX_DIAL_BACKS:
            raise OverloadedError(f"{MAX_DIAL_BACKS} peers are being dialled back here; ask another peer")
        self._callers.add(call.peer)
        self._networks[network] += 1
        try:
            yield
        finally:
            self._callers.discard(call.peer)
            self._networks[network] -= 1
            self._networks += Counter()  # forget networks that have none


def own(addresses: Sequence[str], caller: str, is_here: Callable[[str], bool]) -> tuple[str, ...]:
    """Those of `addresses` that are the caller's own, at most MAX_ADDRESSES; names are not. is_here: is an address this machine's?"""
    found: list[str] = []
    for address in dict.fromkeys(addresses):
        ip = _ip_of(address)
        if ip is not None and _is_own(ip, caller, is_here):
            found.append(address)
    return tuple(found[:MAX_ADDRESSES])


def _is_own(ip: _IP, caller: str, is_here: Callable[[str], bool]) -> bool:
    try:
        source = ipaddress.ip_address(caller)
    except ValueError:
        return False
    if ip == source:
        return True
    if source.version == ip.version == 6 and source.is_global and ip.is_global:
        return int(source) >> (128 - _OWN_BITS) == int(ip) >> (128 - _OWN_BITS)
    return source.is_loopback and is_here(str(ip))  # a process of this machine may announce any address of it


def is_hidden(addresses: Sequence[str], caller: str) -> bool:
    """A caller from the public internet that announces nothing public: it cannot be reached from here, which needs no dial."""
    try:
        is_public = ipaddress.ip_address(caller).is_global
    except ValueError:
        return False
    ips = [_ip_of(address) for address in addresses]
    return is_public and bool(ips) and all(ip is not None and not ip.is_global for ip in ips)


def _ip_of(address: str) -> _IP | None:
    """The IP address in `host:port`; None for a name, and for what no peer has."""
    try:
        ip = ipaddress.ip_address(tls.split_address(address)[0])
    except (PeerUnreachableError, ValueError):
        return None
    return getattr(ip, "ipv4_mapped", None) or ip


def is_here(ip: str) -> bool:
    """Is this an address of our own machine? Only then a socket can be bound to it."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((ip, 0))
    except OSError:
        return False
    return True


async def _first_that_is(places: Sequence[str], peer: PeerId, wait_s: float) -> tuple[str, ...]:
    """The first place at which this peer proves itself, at once; else nothing, and only after `wait_s`.

    So a caller cannot tell a closed port from a silent one, or from one where another peer answers.
    """
    tasks = [asyncio.create_task(_is_at(address, peer, wait_s)) for address in places]
    try:
        async with asyncio.timeout(wait_s):
            for answered in asyncio.as_completed(tasks):
                if found := await answered:
                    return (found,)
            await asyncio.sleep(wait_s)
    except TimeoutError:
        pass
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return ()


async def _is_at(address: str, peer: PeerId, wait_s: float) -> str:
    """The address if `peer` proves itself there, else nothing."""
    try:
        return address if tls.owner(await tls.fetch(address, wait_s)) == peer else ""
    except (PeerUnreachableError, UnauthenticatedError):
        return ""
