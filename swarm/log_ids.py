"""Which peer, session and request a line of the log is about.

They are context variables, so tasks inherit them. A thread that inherits nothing, as a device's, is about this process's first peer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from protocols.ids import PeerId

_peer: ContextVar[str] = ContextVar("peer", default="")
_session: ContextVar[str] = ContextVar("session", default="")
_request: ContextVar[str] = ContextVar("request", default="")
_first_peer = ""


def peer_is(peer: PeerId) -> None:
    """What is logged from here on, in this task and those that it starts, is of this peer."""
    global _first_peer
    _first_peer = _first_peer or peer
    _peer.set(peer)


def request_is(request: str) -> None:
    """What is logged from here on, in this task and those that it starts, is for this request of a gateway."""
    _request.set(request)


@contextmanager
def about_session(session: str) -> Iterator[None]:
    """What is logged inside is about this session (`protocols.ids.short`)."""
    token = _session.set(session)
    try:
        yield
    finally:
        _session.reset(token)


def current() -> dict[str, str]:
    """`peer`, `session` and `request`, those that are known."""
    found = {"peer": _peer.get() or _first_peer, "session": _session.get(), "request": _request.get()}
    return {kind: name for kind, name in found.items() if name}
