"""Events of a session's inbox, and how a late one is ended."""

from __future__ import annotations

from dataclasses import dataclass

from protocols.errors import SwarmError
from protocols.inference import Attach, Message, Open
from swarm.streams.message_stream import MessageStream


@dataclass(frozen=True, slots=True)
class Lost:
    """A wire is gone, or (wire None) could not be had in that epoch; cause None: it ended cleanly."""

    wire: MessageStream | None
    cause: SwarmError | None
    epoch: int


Event = tuple[MessageStream | None, Message | Lost]


def dismiss(wire: MessageStream | None, message: Message | Lost) -> None:
    """Refuse an event that came too late: the peer that opened a stream with it sees the stream end."""
    if isinstance(message, Open | Attach):
        end(wire)


def end(wire: MessageStream | None) -> None:
    if wire is not None:
        wire.end()
