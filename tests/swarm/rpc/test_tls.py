"""Untrusted certificates and addresses get typed refusals."""

from __future__ import annotations

import random

import pytest

from protocols.errors import PeerUnreachableError, UnauthenticatedError
from protocols.identity import from_seed
from swarm.rpc import tls
from swarm.rpc.pool import PeerChannel

P256 = bytes.fromhex("06082a8648ce3d030107")
ME = from_seed(bytes(32))


def test_a_curve_that_nobody_knows_is_refused_wherever_it_comes_from() -> None:
    """A record's certificate is untrusted: one that raises anything else would end every client that reads the directory."""
    der = tls.make(ME).der
    bad = der.replace(P256, P256[:-1] + b"\x7f")
    assert bad != der
    with pytest.raises(UnauthenticatedError, match="curve P-256"):
        tls.owner(bad)
    with pytest.raises(UnauthenticatedError, match="curve P-256"):
        PeerChannel(from_seed(bytes([1] * 32)), ME.peer_id).target(("127.0.0.1:1",), bad)


@pytest.mark.filterwarnings("error")
def test_a_damaged_certificate_is_refused_and_never_crashes() -> None:
    der = tls.make(ME).der
    rng = random.Random(5)
    refused = 0
    for _ in range(1_500):
        bad = bytearray(der)
        for _ in range(rng.randint(1, 3)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        try:
            assert tls.owner(bytes(bad)) == ME.peer_id  # the damage is where nothing is proved, as in a date
        except UnauthenticatedError:
            refused += 1
    assert refused > 1_000


@pytest.mark.parametrize("host", ["169.254.169.254", "[fe80::1]", "0.0.0.0", "[::]", "224.0.0.1", "[::ffff:169.254.169.254]"])
async def test_addresses_that_no_peer_has_are_not_dialled(host: str) -> None:
    with pytest.raises(PeerUnreachableError, match="not dialled"):
        await tls.fetch(f"{host}:80")
    channel = PeerChannel(from_seed(bytes([1] * 32)), ME.peer_id)
    with pytest.raises(PeerUnreachableError, match="not dialled"):
        await channel.connect((f"{host}:80",), tls.make(ME).der)


@pytest.mark.parametrize("address", ["127.0.0.1:4000", "192.168.1.2:4000", "[::1]:4000", "peer.example:4000"])
def test_addresses_that_a_peer_may_have_are(address: str) -> None:
    assert tls.split_address(address)[1] == 4_000
