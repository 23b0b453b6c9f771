"""Which local network this machine is on.

A name that is the same whenever the machine is there.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

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
