"""What a handler knows of its call.

Who asks, and how long they wait. And what a handler is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from protocols.ids import PeerId
from swarm.rpc.stream import Stream


@dataclass(frozen=True, slots=True)
class Call:
    """One call of one authenticated peer."""

    peer: PeerId
    _remaining_s: Callable[[], float | None]
    address: str = ""
    """Where the call comes from: an IP address as text, without a port; "" = unknown."""

    def remaining_s(self) -> float | None:
        """Seconds until the caller stops waiting (never negative); None if it set no deadline: streams of sessions."""
        left = self._remaining_s()
        return None if left is None else max(0.0, left)


UnaryHandler = Callable[[bytes, Call], Awaitable[bytes]]
StreamHandler = Callable[[Stream, Call], Awaitable[None]]
Handler = UnaryHandler | StreamHandler
Handlers = Mapping[str, Handler]
"""Handlers by `Method.name`; whether a name is unary or streaming is the service table's word."""
