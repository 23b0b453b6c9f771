"""Which units are averaged together, by which peers.

Units that the same set of peers hosts are reduced in one all-reduce, so replicas need not have equal spans.
"""

from __future__ import annotations

from collections.abc import Mapping

from protocols.ids import PeerId
from protocols.units import Unit


def grouped(hosts: Mapping[PeerId, frozenset[Unit]]) -> dict[tuple[PeerId, ...], tuple[Unit, ...]]:
    """Members in the order of their PeerIDs -> their common units, in order. hosts: the units of each peer. Every unit is in one group."""
    replicas: dict[Unit, set[PeerId]] = {}
    for peer, units in hosts.items():
        for unit in units:
            replicas.setdefault(unit, set()).add(peer)
    found: dict[tuple[PeerId, ...], list[Unit]] = {}
    for unit in sorted(replicas):
        found.setdefault(tuple(sorted(replicas[unit])), []).append(unit)
    return {members: tuple(units) for members, units in found.items()}
