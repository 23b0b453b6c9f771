"""Bounds by network and by caller: what made-up identities cannot fill."""

from __future__ import annotations

import pytest

from protocols.ids import PeerId, peer_id_of
from swarm.meter import MAX_CALLERS, Meter
from swarm.peer.acquaintances import MAX_MET, MAX_PER_PREFIX, Acquaintances
from swarm.prefixes import UNKNOWN, is_local, prefix


def peer(number: int) -> PeerId:
    return peer_id_of(number.to_bytes(32))


@pytest.mark.parametrize(
    ("host", "group"),
    [
        ("8.8.4.7", "8.8.4.0/24"),
        ("::ffff:8.8.4.7", "8.8.4.0/24"),
        ("2001:4860:4860:1::8888", "2001:4860:4860::/48"),
        ("peer.example", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_a_network_is_one_group(host: str, group: str) -> None:
    assert prefix(host) == group and not is_local(group)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "10.0.0.7", "192.168.1.2", "fe80::1%eth0", "fd00::1"])
def test_where_everybody_shares_a_network_is_known(host: str) -> None:
    assert is_local(prefix(host))


def test_one_network_cannot_fill_the_acquaintances() -> None:
    met = Acquaintances()
    met.note(peer(0), "9.9.9.9:4001")
    for number in range(1, 3_000):
        met.note(peer(number), f"8.8.8.{number % 250}:4001")
    assert peer(0) in met and peer(2_999) in met and len(list(met)) == MAX_PER_PREFIX + 1
    for number in range(10_000, 13_000):
        met.note(peer(number), "[::1]:4001")
    assert len(list(met)) == MAX_MET
    met.forget(peer(12_999))
    assert peer(12_999) not in met


def test_each_caller_has_a_budget_of_its_own() -> None:
    now = [0.0]
    meter = Meter(10, 5.0, lambda: now[0])
    assert meter.spend("a", 6) and not meter.spend("a", 6) and meter.spend("a", 4) and not meter.spend("a")
    assert meter.spend("b", 10)
    now[0] = 5.0
    assert meter.spend("a", 10)
    for number in range(2 * MAX_CALLERS):
        assert meter.spend(number)
    assert len(meter._spent) == MAX_CALLERS
