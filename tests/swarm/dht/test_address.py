"""Addresses that people pass to `--peer`."""

from __future__ import annotations

import pytest

from protocols.errors import ConfigError
from protocols.identity import from_seed
from swarm.dht.address import PeerAddress, host_port, transport

PEER = from_seed(b"\x05" * 32).peer_id


@pytest.mark.parametrize("head", ["/ip4/127.0.0.1/tcp/4001", "/ip6/::1/tcp/4001", "/dns4/peer.example/tcp/1", "/dns/x/tcp/65535"])
def test_an_address_is_read_and_written_alike(head: str) -> None:
    found = PeerAddress.parse(f" {head}/p2p/{PEER}\n")
    assert str(found) == f"{head}/p2p/{PEER}" and found.transport == head and found.peer == PEER


@pytest.mark.parametrize(
    "text",
    [
        "", "127.0.0.1:4001", "/ip4/127.0.0.1/tcp/4001", f"/ip4/999.0.0.1/tcp/1/p2p/{PEER}", f"/ip4/1.2.3.4/udp/1/p2p/{PEER}",
        f"/ip4/1.2.3.4/tcp/0/p2p/{PEER}", f"/ip4/1.2.3.4/tcp/65536/p2p/{PEER}",
        "/ip4/1.2.3.4/tcp/1/p2p/QmNotOurs", f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}/x",
    ],
)  # fmt: skip
def test_anything_else_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PeerAddress.parse(text)
    assert "\n" not in str(caught.value)


def test_grpc_is_one_port_higher() -> None:
    assert PeerAddress.parse(f"/ip6/::1/tcp/4001/p2p/{PEER}").grpc == "[::1]:4002" == host_port("::1", 4002)
    assert (
        transport("::1", 4) == "/ip6/::1/tcp/4"
        and transport("10.0.0.1", 4) == "/ip4/10.0.0.1/tcp/4"
        and transport("a.b", 4) == "/dns/a.b/tcp/4"
    )
