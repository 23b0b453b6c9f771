"""Gives orders to nodes, in the name of an operator.

An operator is an identity that the owners of nodes have listed (`swarm node --operators`). Its file is a secret: who has it may drain and
pause those nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from protocols import services
from protocols.errors import ConfigError
from protocols.identity import Identity
from protocols.ids import PeerId
from protocols.orders import Order, OrderReply
from swarm.access import Gate
from swarm.peer import keys
from swarm.rpc.pool import ChannelPool

DEFAULT_NAME = "operator.key"
"""In the data directory."""

_OF_OTHERS = 0o077
"""Rights of all but the owner."""


def make(path: Path) -> PeerId:
    """Make an operator's identity (mode 0600). ConfigError if there is a file already: nodes may know it."""
    if path.exists():
        raise ConfigError(
            f"{path} is there already; swarm whoami --identity {path} prints its PeerID, --operator-key FILE makes another"
        )
    return keys.peer_id(path)


def read(path: Path) -> Identity:
    """The identity in `path`. ConfigError if there is none, or others on this machine may read it."""
    if not path.is_file():
        raise ConfigError(f"there is no operator's key in {path}; make one: swarm operator new --operator-key {path}")
    if rights := path.stat().st_mode & _OF_OTHERS:
        raise ConfigError(f"others on this machine may use the operator's key {path} (rights {rights:03o}): chmod 600 {path}")
    with keys.shared(path) as held:
        return held.identity


def connections(identity: Identity, gate: Gate) -> ChannelPool:
    """By which orders are given; its owner closes it. gate: which nodes may be called."""
    return ChannelPool(identity, gate)


async def give(
    pool: ChannelPool,
    order: Order,
    peer: PeerId,
    addresses: Sequence[str],
    certificate: bytes = b"",
    timeout_s: float | None = None,
) -> OrderReply:
    """Give an order by the identity of `pool`; what the node answers. Its refusal, or PeerUnreachableError: it may have been obeyed."""
    channel = await pool.channel(peer, addresses, certificate)
    return OrderReply.parse(await channel.unary(services.ORDER, order.encode(), timeout_s))
