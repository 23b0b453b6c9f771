"""Where a call comes from: the address that gRPC names, and the part of it that one owner has. Pure."""

from __future__ import annotations

import ipaddress
from urllib.parse import unquote

PREFIX_BITS = {4: 24, 6: 48}
"""Bits of an address by IP version: within them, addresses cost their owner nothing more."""


def host_of(peer: str) -> str:
    """The IP address in gRPC's name of a peer (`ipv4:10.0.0.1:5000`, `ipv6:%5B::1%5D:5000`); "" if there is none."""
    kind, _, place = unquote(peer).partition(":")
    host = place.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return ""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def prefix_of(host: str) -> str:
    """The network of PREFIX_BITS around an address, as text: `10.0.0.0/24`. What is no address is its own network."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(ipaddress.ip_network(f"{address}/{PREFIX_BITS[address.version]}", strict=False))
