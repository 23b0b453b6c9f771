"""Where a call comes from. Pure.

The address that gRPC names, and what counts as one address.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from urllib.parse import unquote


@lru_cache(maxsize=4_096)
def remote_of(peer: str) -> tuple[str, int]:
    """Host and port in gRPC's name of a peer (`ipv4:10.0.0.1:5000`, `ipv6:%5B::1%5D:5000`); ("", 0) if they are not there."""
    kind, _, place = unquote(peer).partition(":")
    host, _, port = place.rpartition(":")
    return (plain(host.strip("[]")), int(port)) if kind in ("ipv4", "ipv6") and port.isdigit() else ("", 0)


def plain(host: str) -> str:
    """An IP address in one spelling, without its zone; IPv4 in IPv6 is IPv4. "" for what is none."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return ""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


@lru_cache(maxsize=4_096)
def group_of(host: str) -> str:
    """What counts as one address when connections and calls are counted: an IPv4 address, or 64 bits of IPv6, which one machine has."""
    address = ipaddress.ip_address(host) if host else None
    return host if address is None or address.version == 4 else str(ipaddress.ip_network(f"{host}/64", strict=False))
