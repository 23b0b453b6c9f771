"""Two neighbouring ports: p2pd's, and gRPC's one higher.

So one address of a peer tells both.
"""

from __future__ import annotations

import errno
import socket

from protocols.errors import ConfigError

_ATTEMPTS = 50
_HIGHEST = 65_535


def resolved(host: str) -> str:
    """The address of this machine that `host` stands for, of several an IPv4 one. ConfigError if it stands for none."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(
            f"--listen takes an address or a name of this machine, as 0.0.0.0 or localhost; {host[:80]!r} stands for none: "
            f"{getattr(error, 'strerror', None) or error}"
        ) from None
    addresses = [str(address[0]) for _family, _kind, _protocol, _name, address in found]
    return next((address for address in addresses if ":" not in address), addresses[0])


def pair(host: str, port: int) -> int:
    """`port` if it and the next are free at `host`, or for 0 some port of which that is true. ConfigError otherwise.

    It is free at this moment only: the caller binds the higher one first, which cannot be shared, and asks again if that fails.
    """
    host = resolved(host)
    if port:
        _check(host, port)
        return port
    for _attempt in range(_ATTEMPTS):
        with _bound(host, 0) as first:
            found: int = first.getsockname()[1]
            if found < _HIGHEST and _is_free(host, found + 1):
                return found
    raise ConfigError(f"no two neighbouring ports are free at {host}; choose some with --listen HOST:PORT")


def _check(host: str, port: int) -> None:
    for number, use in ((port, "discovery"), (port + 1, "gRPC")):
        try:
            if number > _HIGHEST:
                raise ConfigError(f"--listen takes a port from 1 to {_HIGHEST - 1}, since gRPC uses the next one, got {port}")
            _bound(host, number).close()
        except OSError as error:
            reason = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be had: {error.strerror or error}"
            raise ConfigError(
                f"port {number} at {host} (for {use}) {reason}; choose another with --listen HOST:PORT, or port 0 for free ones"
            ) from None


def _is_free(host: str, port: int) -> bool:
    try:
        _bound(host, port).close()
    except OSError:
        return False
    return True


def _bound(host: str, port: int) -> socket.socket:
    family, kind, protocol, _name, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise ConfigError(
                f"--listen takes an address of this machine, got {host}; "
                f"listen on 0.0.0.0:{port}, and give what others dial to --announce"
            ) from None
        raise
    return found
