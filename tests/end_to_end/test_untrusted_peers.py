"""Random bytes at the ports of all nodes change nothing.

No node ends, and no answer is another.
"""

from __future__ import annotations

import contextlib
import random
import secrets
import socket
import ssl
from collections.abc import Iterator

import pytest

from tests.end_to_end.local_swarm import LocalSwarm
from tests.end_to_end.processes import NodeProcess

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MULTISTREAM = b"\x13/multistream/1.0.0\n"


def pokes(rng: random.Random) -> Iterator[bytes]:
    """Nothing, noise of many sizes, and noise after what the protocols begin with."""
    yield b""
    for size in (1, 9, 100, 5_000, 300_000):
        noise = rng.randbytes(size)
        yield from (noise, PREFACE + noise, MULTISTREAM + noise, b"\x16\x03\x01" + noise)


def poke(port: int, data: bytes, through_tls: bool) -> socket.socket | None:
    """The open connection after the bytes have been sent; None if the node has closed it already."""
    with contextlib.suppress(OSError):
        connection = socket.create_connection(("127.0.0.1", port), timeout=5.0)
        if through_tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_alpn_protocols(["h2"])
            connection = context.wrap_socket(connection)
        connection.sendall(data)
        return connection
    return None


def ports(node: NodeProcess) -> tuple[int, int]:
    """(p2p, gRPC)"""
    port = int(node.said["multiaddr"].split("/")[4])
    return port, port + 1


@pytest.mark.parametrize("port_kind", ["p2p", "grpc", "grpc behind TLS"])
def test_bytes_change_nothing(swarm: LocalSwarm, port_kind: str) -> None:
    seed = secrets.randbelow(1 << 30)
    print("seed", seed)
    rng = random.Random(seed)
    nodes = list(swarm.nodes.values())
    held: list[socket.socket] = []

    def poke_all(number: int, _journey: object) -> None:
        if number == 3:
            for data in pokes(rng):
                port = ports(rng.choice(nodes))[port_kind != "p2p"]
                if (connection := poke(port, data, port_kind.endswith("TLS"))) is not None:
                    held.append(connection)

    ids = swarm.prompt(4)
    answer = swarm.answer(ids, poke_all)
    assert answer.tokens == swarm.expected(ids)
    assert answer.replaced == 0
    assert held, "no node took a connection, so no port was tried"
    assert swarm.answer(ids).tokens == answer.tokens  # while half of the connections are still open
    for connection in held:
        connection.close()
    assert not [node.name for node in nodes if node.has_ended()]
