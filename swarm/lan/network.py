"""Which local network this machine is on.

A name that is the same whenever the machine is there, and the machine's addresses.
"""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

from swarm.dht.address import is_loopback

_ROOT = Path("/")
_HAS_GATEWAY = 0x2


def name(root: Path = _ROOT) -> str:
    """A short hash of the default gateway's address and hardware address; `""` if there is no gateway.

    Home networks share addresses (192.168.1.1), hardware addresses tell them apart. root: where /proc is found.
    """
    try:
        gateway = _gateway((root / "proc/net/route").read_text())
        hardware = _hardware((root / "proc/net/arp").read_text(), gateway)
    except (OSError, ValueError, IndexError):
        return ""
    return hashlib.sha256(f"{gateway} {hardware}".encode()).hexdigest()[:16] if gateway else ""


def addresses() -> frozenset[str]:
    """This machine's IPv4 addresses but loopback ones, of interfaces that are up and connected; none = there is no network now."""
    import psutil  # 10 ms of import, which `name` does not need

    states = psutil.net_if_stats()
    return frozenset(
        one.address
        for interface, found in psutil.net_if_addrs().items()
        for one in found
        if one.family == socket.AF_INET and not is_loopback(one.address) and interface in states and states[interface].isup
    )


def _gateway(routes: str) -> str:
    """The IPv4 address of the default route's gateway, or `""`."""
    for line in routes.splitlines()[1:]:
        _interface, destination, gateway, flags = line.split()[:4]
        if destination == "00000000" and int(flags, 16) & _HAS_GATEWAY:
            return ".".join(str(byte) for byte in bytes.fromhex(gateway)[::-1])
    return ""


def _hardware(neighbours: str, address: str) -> str:
    rows = (line.split() for line in neighbours.splitlines()[1:])
    return next((row[3] for row in rows if row and row[0] == address), "")
