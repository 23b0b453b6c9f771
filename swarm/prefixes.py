"""Groups of addresses that count as one.

One party can easily have many addresses of a group.

PeerIDs are free and addresses are cheap, so bounds on peers are also bounds on networks: /24 of IPv4, /48 of IPv6. On loopback and in
private networks all peers share one prefix, so bounds there are looser.
"""

from __future__ import annotations

import ipaddress

UNKNOWN = "unknown"
"""The group of all whose address is not known, or is a name: a name costs nothing either."""

_LOCAL = "local "


def prefix(host: str) -> str:
    """The group of an IP address; `UNKNOWN` for anything else."""
    try:
        address = ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return UNKNOWN
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    network = ipaddress.ip_network((address, 24 if address.version == 4 else 48), strict=False)
    is_local = address.is_loopback or address.is_private or address.is_link_local
    return f"{_LOCAL if is_local else ''}{network}"


def is_local(group: str) -> bool:
    """Is it loopback or a private network?"""
    return group.startswith(_LOCAL)
