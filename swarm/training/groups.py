"""Which units are averaged together, by which peers.

Units that the same set of peers hosts are reduced in one all-reduce, so replicas need not have equal spans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from protocols.ids import PeerId
from protocols.units import Unit


def grouped(hosts: Mapping[PeerId, Mapping[Unit, bytes]]) -> Sequence[tuple[tuple[PeerId, ...], tuple[Unit, ...]]]:
    """(members in the order of their PeerIDs, their common units in order), for every unit once.

    hosts: the units of each peer, and on which group's step each has agreed (b"": none). Units are together only if their agreements are
    the same: else an old agreement on some of them would be taken for one on all.
    """
    replicas: dict[Unit, dict[PeerId, bytes]] = {}
    for peer, units in hosts.items():
        for unit, agreed in units.items():
            replicas.setdefault(unit, {})[peer] = agreed
    found: dict[tuple[tuple[PeerId, ...], frozenset[bytes]], list[Unit]] = {}
    for unit in sorted(replicas):
        own = replicas[unit]
        found.setdefault((tuple(sorted(own)), frozenset(own.values()) - {b""}), []).append(unit)
    return [(members, tuple(units)) for (members, _), units in found.items()]
