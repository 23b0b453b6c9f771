"""Buddies: which stage copies a unit that it does not train.

Pure: each stage computes it from what all of them say (`run_status`), and copies what falls to itself. If two of them see the swarm
differently for a moment, a unit is copied twice or not at all; the next version that is held mends it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

from protocols.ids import PeerId
from protocols.units import Unit


def buddies(
    trained: Mapping[PeerId, Collection[Unit]], sizes: Mapping[Unit, int], with_memory: Collection[PeerId]
) -> dict[Unit, PeerId]:
    """By unit, the stage that copies it; units for which none has memory are left out.

    trained: the units of each stage. sizes: bytes of each unit of the model. with_memory: stages that have memory for copies: of others'
    units each takes as many bytes as its own have, at most. Units with the fewest replicas come first, and of these the largest. Among
    stages that can, the highest SHA-256 over unit and PeerID decides (rendezvous hashing), so few copies move if a stage comes or
    goes.
    """
    left = {peer: sum(sizes.get(unit, 0) for unit in own) for peer, own in trained.items() if peer in with_memory}
    num_replicas = {unit: sum(unit in own for own in trained.values()) for unit in sizes}
    found: dict[Unit, PeerId] = {}
    for unit in sorted(sizes, key=lambda unit: (num_replicas[unit], -sizes[unit], unit)):
        able = [peer for peer, num_bytes in left.items() if unit not in trained[peer] and num_bytes >= sizes[unit]]
        if able:
            found[unit] = max(able, key=lambda peer: _weight(unit, peer))
            left[found[unit]] -= sizes[unit]
    return found


def _weight(unit: Unit, peer: PeerId) -> bytes:
    return hashlib.sha256(f"{unit} {peer}".encode()).digest()
