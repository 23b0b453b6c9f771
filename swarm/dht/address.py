"""The address of a peer's p2pd, as in `--peer`.

For example `/ip4/203.0.113.7/tcp/4001/p2p/12D3KooW…`.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from protocols.errors import BadRequestError, ConfigError
from protocols.ids import PeerId, parse_peer_id

_PATTERN = re.compile(r"/(ip4|ip6|dns4|dns6|dns)/([^/]{1,253})/tcp/([0-9]{1,5})(?:/p2p/([^/]{1,80}))?/?")


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where a p2pd listens, and who it should be."""

    kind: str
    """`ip4`, `ip6`, `dns4`, `dns6` or `dns`."""
    host: str
    port: int
    peer: PeerId

    @classmethod
    def parse(cls, text: str) -> PeerAddress:
        """Read a multiaddr; ConfigError says what is missing."""
        match = _PATTERN.fullmatch(text.strip())
        if not match or not 0 < int(match[3]) < 65_536:
            raise ConfigError(
                "a peer's address looks like /ip4/203.0.113.7/tcp/4001/p2p/12D3KooW…, as `swarm node` prints it for --peer, "
                f"got {text[:120]!r}"
            )
        if not match[4]:
            raise ConfigError(f"the peer's address {text[:120]!r} lacks its name: add /p2p/12D3KooW…, as `swarm node` prints it")
        try:
            if match[1] in ("ip4", "ip6"):
                ipaddress.ip_address(match[2])
            return cls(match[1], match[2], int(match[3]), parse_peer_id(match[4]))
        except (ValueError, BadRequestError) as error:
            raise ConfigError(f"the peer's address {text[:120]!r} is wrong: {error}") from None

    @property
    def transport(self) -> str:
        """The part without the PeerID."""
        return f"/{self.kind}/{self.host}/tcp/{self.port}"

    @property
    def grpc(self) -> str:
        """Where the same peer serves gRPC by convention: one port higher."""
        return host_port(self.host, self.port + 1)

    @property
    def is_loopback(self) -> bool:
        """Is the host a loopback name, which means another machine to each reader?"""
        return is_loopback(self.host)

    def __str__(self) -> str:
        return f"{self.transport}/p2p/{self.peer}"


def is_loopback(host: str) -> bool:
    """Is it a loopback address or `localhost`?"""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def beside(grpc: str, peer: PeerId) -> PeerAddress | None:
    """Where p2pd listens, by convention, for a peer that serves gRPC at `host:port`: one port lower. None if that is no address."""
    host, _, port = grpc.rpartition(":")
    try:
        return PeerAddress.parse(f"{transport(host.strip('[]'), int(port) - 1)}/p2p/{peer}")
    except (ValueError, ConfigError):
        return None


def host_port(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def transport(host: str, port: int) -> str:
    """The multiaddr of a TCP port; `host` is an IP address or a name."""
    try:
        kind = f"ip{ipaddress.ip_address(host).version}"
    except ValueError:
        kind = "dns"
    return f"/{kind}/{host}/tcp/{port}"
